"""`mailrail dkim generate` and `record`: keys that others can sign with, and records that others can read."""

import json
import re
import stat
import sys
from pathlib import Path
from typing import Any

import dkim as dkimpy
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from typer.testing import CliRunner

from mailrail.cli.app import app
from mailrail.core.dkim.published import Publication, find_published
from mailrail.core.dkim.sign import read_private_key
from mailrail.core.dkim.signature import KeyName

from testkit.signed_mail import txt

MESSAGE = b"From: a@example.org\r\nSubject: x\r\n\r\nHello\r\n"
RSA, ED25519 = "s1-rsa", "s1-ed25519"


def run(*arguments: str, given: bytes | None = None) -> Any:
    return CliRunner().invoke(app, ["dkim", *arguments], input=given)


def generate(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """The keys that the command says it made."""
    done = run("generate", "Example.org", "--selector", "s1", "--folder", str(folder), "--json", *arguments)
    assert done.exit_code == 0, done.output
    found: list[dict[str, Any]] = json.loads(done.stdout)["keys"]
    return found


def data_of(line: str) -> tuple[str, bytes]:
    """The name of a zone file's line, and the strings of its record, joined."""
    name, data = line.split(" IN TXT ", 1)
    record: Any = dns.rdata.from_text(dns.rdataclass.IN, dns.rdatatype.TXT, data)
    return name, b"".join(record.strings)


def test_a_domain_gets_an_rsa_and_an_ed25519_key_with_a_record_each_DKIM_08b(tmp_path: Path) -> None:
    rsa, ed25519 = generate(tmp_path)
    keys = [read_private_key(Path(each["file"]).read_bytes()) for each in (rsa, ed25519)]
    assert isinstance(keys[0], RSAPrivateKey)
    assert keys[0].key_size == 2048
    assert isinstance(keys[1], Ed25519PrivateKey)
    for key, made, selector in zip(keys, (rsa, ed25519), (RSA, ED25519), strict=True):
        assert Path(made["file"]).name == f"example.org.{selector}.pem"
        assert data_of(made["line"]) == (f"{selector}._domainkey.example.org.", made["value"].encode())
        name = KeyName("example.org", selector)
        assert find_published(name, key.public_key(), txt(made["value"])).state is Publication.STANDS


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes of files")
def test_only_its_owner_may_read_a_key(tmp_path: Path) -> None:
    assert {stat.S_IMODE(Path(each["file"]).stat().st_mode) for each in generate(tmp_path)} == {0o600}


def test_another_signer_signs_with_the_keys_and_another_verifier_finds_the_records_right(tmp_path: Path) -> None:
    for made, algorithm in zip(generate(tmp_path), (b"rsa-sha256", b"ed25519-sha256"), strict=True):
        selector = made["name"].partition(".")[0].encode()
        pem = Path(made["file"]).read_bytes()
        if algorithm == b"ed25519-sha256":  # dkimpy takes the seed alone, which is the end of what PKCS #8 holds
            pem = re.sub(rb"-----.*-----\n|\n", b"", pem)
            pem = dkimpy.base64.b64encode(dkimpy.base64.b64decode(pem)[-32:])
        signature = dkimpy.sign(MESSAGE, selector, b"example.org", pem, signature_algorithm=algorithm)
        asked: list[bytes] = []

        def answer(name: bytes, timeout: int = 5, value: str = made["value"], asked: list[bytes] = asked) -> bytes:
            asked.append(name)
            return value.encode()

        assert dkimpy.verify(signature + MESSAGE, dnsfunc=answer)
        assert [each.decode().rstrip(".") for each in asked] == [made["name"]]


def test_a_key_that_is_there_is_never_written_over_and_no_half_is_left(tmp_path: Path) -> None:
    there = tmp_path / f"example.org.{ED25519}.pem"
    there.write_text("the only copy")
    done = run("generate", "example.org", "--selector", "s1", "--folder", str(tmp_path))
    assert done.exit_code == 1
    assert f"{there} is there already: give another --selector or --folder; nothing was written" in done.stderr
    assert [each.name for each in tmp_path.iterdir()] == [there.name]
    assert there.read_text() == "the only copy"


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    done = run("generate", "example.org", "--folder", str(tmp_path / "none"))
    assert done.exit_code == 1
    assert "cannot be written" in done.stderr


def test_the_selector_is_the_date_and_one_key_has_it_as_it_is(tmp_path: Path) -> None:
    done = run("generate", "example.org", "--key-type", "rsa", "--folder", str(tmp_path))
    assert done.exit_code == 0
    (file,) = tmp_path.iterdir()
    assert re.fullmatch(r"example\.org\.20[0-9]{6}\.pem", file.name)
    assert done.stderr == ""


def test_an_ed25519_key_alone_is_advised_against_DKIM_08b(tmp_path: Path) -> None:
    done = run("generate", "example.org", "--key-type", "ed25519", "--folder", str(tmp_path))
    assert done.exit_code == 0
    assert "add an RSA key, which all verifiers know" in done.stderr


@pytest.mark.parametrize("name", ["dkim-keys", "1234"])
def test_a_secret_is_a_manifest_alone_on_standard_output(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("generate", "example.org", "--selector", "s1", "--secret", name)
    assert done.exit_code == 0, done.output
    assert list(tmp_path.iterdir()) == []
    manifest = yaml.safe_load(done.stdout)
    keys = manifest.pop("stringData")
    assert manifest == {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": "Opaque"}
    assert list(keys) == [f"{RSA}.pem", f"{ED25519}.pem"]
    lines = {data_of(each) for each in done.stderr.splitlines() if " IN TXT " in each}
    for selector in (RSA, ED25519):
        told = json.loads(run("record", "-", "example.org", selector, "--json", given=keys[f"{selector}.pem"]).stdout)
        assert data_of(told["line"]) in lines
    assert "PRIVATE" not in done.stderr


def test_the_record_of_a_key_is_told_for_a_zone_file_and_as_one_value(tmp_path: Path) -> None:
    made = generate(tmp_path)[0]
    told = run("record", made["file"]).stdout.splitlines()
    assert made["value"] in told
    assert "IN TXT " + made["line"].partition(" IN TXT ")[2] in told
    assert made["line"] in run("record", made["file"], "example.org", RSA).stdout.splitlines()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("generate", "no domain"), "write it as example.org"),
        (("generate", "example.org", "--selector", "a b"), "is no selector"),
        (("generate", "example.org", "--selector", "a/../b"), "is no selector"),
        (("generate", "example.org", "--selector", "s" * 60), "is no selector"),
        (("generate", ".".join(["d" * 60] * 4), "--selector", "s"), "longer than a name in the DNS may be"),
        (("generate", "example.org", "--secret", "No_Name"), "is no name of a Secret"),
        (("generate", "example.org", "--secret", "a" * 254), "is no name of a Secret"),
        (("record", "nowhere.pem"), "cannot be read: No such file"),
        (("record", "-"), "no private key in PEM"),
        (("record", "-", "example.org"), "give SELECTOR, too"),
        (("check", "example.org", "a b"), "is no selector"),
        (("check", "example.org", "s1", "-"), "no private key in PEM"),
        (("check", "example.org", "s1", "--resolver", "nowhere"), "--resolver"),
    ],
)
def test_a_command_that_makes_no_sense_says_what_would(
    arguments: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*arguments, given=b"junk")
    assert (done.exit_code, words in done.stderr) == (2, True), done.output
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_any_size_is_read_no_further_than_a_key_goes(tmp_path: Path) -> None:
    done = run("record", "-", given=b"x" * 1_000_000)
    assert (done.exit_code, "at most 16384 are read" in done.stderr) == (2, True), done.output
