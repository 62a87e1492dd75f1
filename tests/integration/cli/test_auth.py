"""`mailrail auth check` against a real DNS server: the verdict on a message, step by step."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mailrail.cli.app import app

from testkit.dns import DnsServer, Failure
from testkit.signed_mail import ed25519_key, published, signed_naively

MESSAGE = b"From: Ann <ann@example.com>\r\nTo: bob@example.net\r\nSubject: lunch\r\n\r\nAt one?\r\n"
SIGNED = signed_naively(MESSAGE, {"d": "example.com"}, ed25519_key())
FORGED_BY = "198.51.100.9"


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    with DnsServer() as server:
        for name in ("example.com", "mail.example.com"):
            server.add(name, "TXT", '"v=spf1 ip4:192.0.2.1 -all"')
        server.add("sel._domainkey.example.com", "TXT", f'"{published(ed25519_key())}"')
        server.add("_dmarc.example.com", "TXT", '"v=DMARC1; p=reject"')
        server.add("1.2.0.192.in-addr.arpa", "PTR", "mail.example.com.")
        server.add("mail.example.com", "A", "192.0.2.1")
        yield server


def check(
    dns: DnsServer | None, message: bytes, *more: str, ip: str = "192.0.2.1", sender: str = "ann@example.com"
) -> Any:
    """The command's result, with the message on standard input."""
    where = ["--name-server", dns.endpoint] if dns is not None else []
    words = ["auth", "check", "-", "--ip", ip, "--helo", "mail.example.com", "--from", sender, *where, *more]
    return CliRunner().invoke(app, words, input=message)


def test_a_message_that_is_right_is_accepted_step_by_step(dns: DnsServer, tmp_path: Path) -> None:
    file = tmp_path / "message.eml"
    file.write_bytes(SIGNED)
    words = [
        "auth",
        "check",
        str(file),
        "--ip",
        "192.0.2.1",
        "--helo",
        "mail.example.com",
        "--from",
        "<ann@example.com>",
    ]
    done = CliRunner().invoke(app, [*words, "--name-server", dns.endpoint])
    assert done.exit_code == 0, done.output
    assert [line.split("  ")[0] for line in done.stdout.splitlines()[:9]] == [
        "CHECK",
        "client's name",
        "SPF of HELO",
        "SPF of MAIL FROM",
        "DKIM signature 1",
        "DMARC of example.com",
        "sender",
        "verdict",
        "",
    ]
    assert "    example.com: ip4:192.0.2.1 matches: pass" in done.stdout
    assert "Authentication-Results: " in done.stdout
    assert done.stderr == ""


def test_a_forged_message_is_refused_with_the_reply_of_a_gateway(dns: DnsServer) -> None:
    done = check(dns, MESSAGE, "--json", ip=FORGED_BY)
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert (found["action"], found["sender_authenticated"], found["disposition"]) == ("reject", "forged", "reject")
    assert (found["reply"]["code"], found["reply"]["enhanced"]) == (550, "5.7.1")
    assert [(each["scope"], each["result"]) for each in found["spf"]] == [("helo", "fail"), ("mfrom", "fail")]
    assert found["iprev"] == {"result": "permerror", "name": ""}
    assert (found["dmarc"][0]["author"], found["dmarc"][0]["result"], found["dkim"]) == ("example.com", "fail", [])
    assert found["authentication_results"].startswith("Authentication-Results: ")
    assert found["steps"][-1]["result"] == "reject"


def test_a_file_with_lf_from_a_mailbox_is_taken_as_it_was_on_the_wire_and_it_is_said(dns: DnsServer) -> None:
    done = check(dns, b"From ann@example.com Mon Nov 30 12:00:00 2026\n" + SIGNED.replace(b"\r\n", b"\n"), "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["dkim"][0]["result"] == "pass"
    assert "as if it had CRLF" in done.stderr
    assert "mailbox file" in done.stderr


@pytest.mark.parametrize("sender", ["", "<>"])
def test_a_null_reverse_path_is_checked_by_the_helo_name_SPF_10(dns: DnsServer, sender: str) -> None:
    found = json.loads(check(dns, MESSAGE, "--json", sender=sender).stdout)
    assert [(each["scope"], each["domain"]) for each in found["spf"]] == [("mfrom", "mail.example.com")]
    assert found["sender_authenticated"] == "unknown"


@pytest.mark.parametrize("name", ["_dmarc.example.com", "example.com"])
def test_where_the_dns_does_not_answer_the_status_says_so(dns: DnsServer, name: str) -> None:
    dns.remove(name)
    dns.fail(name, Failure.SERVFAIL)
    assert check(dns, SIGNED).exit_code == 3
    assert "temperror" in check(dns, SIGNED).stdout


def test_a_quarantined_message_is_told_by_the_status_too(dns: DnsServer) -> None:
    dns.set("_dmarc.example.com", "TXT", '"v=DMARC1; p=quarantine"')
    done = check(dns, MESSAGE, ip=FORGED_BY)
    assert done.exit_code == 1
    assert "set apart as its author's domain asks" in done.stdout


@pytest.mark.parametrize(
    ("message", "more", "words"),
    [
        (b"", [], "does not begin with a header field"),
        (b"no header\r\n", [], "does not begin with a header field"),
        (SIGNED, ["--ip", "192.0.2"], "--ip: '192.0.2' is no address"),
        (SIGNED, ["--from", "ann@"], "--from: 'ann@'"),
        (SIGNED, ["--name-server", "nowhere:x"], "--name-server"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(message: bytes, more: list[str], words: str) -> None:
    done = check(None, message, *more)
    assert done.exit_code == 2
    assert words in done.stderr


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none.eml"
    words = ["auth", "check", str(missing), "--ip", "192.0.2.1", "--helo", "a.example", "--from", ""]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert f"{missing} cannot be read" in done.stderr


def test_what_a_stranger_wrote_reaches_no_terminal_raw(dns: DnsServer) -> None:
    message = SIGNED.replace(b"d=example.com", b"d=e\x1b[31mxample.com")
    done = check(dns, message)
    assert done.exit_code == 0, done.output  # SPF passes
    assert "\x1b" not in done.stdout
