"""`mailrail dkim check` against a real DNS server: whether a record is right, and that of the key."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mailrail.cli.app import app

from testkit.dns import DnsServer, Failure

NAME = "s1._domainkey.example.org"


class World:
    """A key of ours, and a DNS with its record."""

    def __init__(self, dns: DnsServer, folder: Path) -> None:
        self.dns = dns
        made = self._run("generate", "example.org", "--selector", "s1", "--key-type", "rsa", "--folder", str(folder))
        self.file, self.line = made["keys"][0]["file"], made["keys"][0]["line"]
        dns.add(NAME, "TXT", self.data)

    @property
    def data(self) -> str:
        """The record as the command told it."""
        return str(self.line.partition(" IN TXT ")[2])

    def _run(self, *arguments: str, status: int = 0) -> Any:
        done = CliRunner().invoke(app, ["dkim", *arguments, "--json"])
        assert done.exit_code == status, done.output
        return json.loads(done.stdout)

    def check(self, *file: str, status: int = 0) -> tuple[str, str]:
        """State and sentence."""
        found = self._run("check", "example.org", "s1", *file, "--resolver", self.dns.endpoint, status=status)
        assert found["name"] == NAME
        return found["state"], found["message"]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with DnsServer() as dns:
        yield World(dns, tmp_path)


def test_the_record_that_was_told_is_right_once_it_is_published(world: World) -> None:
    assert world.check(world.file) == ("stands", f"{NAME} has the key")
    assert world.check() == ("stands", f"{NAME} has a key that verifiers use: rsa, 2048 bits")


def test_a_record_that_is_missing_wrong_or_of_another_key_is_told_with_exit_status_1(world: World) -> None:
    world.dns.set(NAME, "TXT", '"v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="')
    state, text = world.check(world.file, status=1)
    assert (state, "another key" in text, "publish v=DKIM1; k=rsa" in text) == ("wrong", True, True)
    assert world.check()[0] == "stands"
    world.dns.set(NAME, "TXT", world.data, '"v=spf1 -all"')
    assert "leave only" in world.check(world.file, status=1)[1]
    world.dns.set(NAME, "TXT", '"v=DKIM1; p="')
    for file in ([], [world.file]):
        state, text = world.check(*file, status=1)
        assert (state, "revoked" in text) == ("wrong", True)
    world.dns.remove(NAME)
    for file in ([], [world.file]):
        assert world.check(*file, status=1)[0] == "absent"


def test_a_dns_that_does_not_answer_accuses_nobody_and_is_exit_status_3(world: World) -> None:
    world.dns.fail(NAME, Failure.SERVFAIL)
    assert world.check(world.file, status=3)[0] == "unknown"


def test_people_read_what_is_wrong_on_standard_error(world: World) -> None:
    asked = ["dkim", "check", "example.org", "s1", world.file, "--resolver", world.dns.endpoint]
    done = CliRunner().invoke(app, asked)
    assert (done.exit_code, done.stdout, done.stderr) == (0, f"{NAME} has the key\n", "")
    world.dns.remove(NAME)
    done = CliRunner().invoke(app, asked)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(f"mailrail: {NAME} has no TXT record: publish v=DKIM1; k=rsa; p=")
