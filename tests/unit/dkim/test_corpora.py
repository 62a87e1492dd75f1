"""The messages with which other programs are tested (chasquid, dkimpy, the verifier of lieser)."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from mailrail.core.dkim.key import KeyRecordError, read_key_record
from mailrail.core.lookups import LookupAnswer

from testkit.signed_mail import TROUBLE, crlf, dkim_results, from_table, txt

SHARED = Path(__file__).parents[4] / "shared" / "data" / "dkim"
NOW = 1_767_269_100.0
FOOTBALL = {
    "brisbane._domainkey.football.example.com": "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
    "test._domainkey.football.example.com": (
        "v=DKIM1; k=rsa; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWRiGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQiY/J1"
        "6JYi0Qvx/byYzCNb3W91y3FutACDfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqMKrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3Ip3G+2kryOTIKT"
        "+l/K4w3QIDAQAB"
    ),
}

pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="the messages are not here (../shared/data/dkim)")


def outcomes(message: bytes, table: dict[str, Any]) -> list[str]:
    return [str(each.outcome) for each in dkim_results(crlf(message), from_table(table), NOW)]


LIESER: dict[str, Any] = (
    yaml.safe_load((SHARED / "lieser/expected.yml").read_text()) if SHARED.exists() else {"none": {}}
)


@pytest.mark.parametrize("name", LIESER)
def test_the_messages_of_lieser_have_the_results_that_the_rfcs_ask_for(name: str) -> None:
    keys = yaml.safe_load((SHARED / "lieser/dns.yml").read_text())
    expected = LIESER[name]["dkim"]
    assert outcomes((SHARED / "lieser" / name).read_bytes(), keys) == expected


CHASQUID = sorted(each.stem for each in (SHARED / "chasquid").glob("*.msg"))
STATES = {"SUCCESS": {"pass"}, "TEMPFAIL": {"temperror"}, "PERMFAIL": {"permerror", "fail"}}


def _chasquid_dns(name: str) -> dict[str, LookupAnswer]:
    file = SHARED / "chasquid" / f"{name}.dns"
    records: defaultdict[str, list[str]] = defaultdict(list)
    text = file.read_text().replace("\\\n", "") if file.exists() else ""
    for line in text.splitlines():
        host, colon, record = line.partition(":")
        if colon:
            records[host.strip()].append(record.strip())
    table = {host: TROUBLE if values == ["TEMPERROR"] else txt(*values) for host, values in records.items()}
    return {host: answer for host, answer in table.items() if answer.records != (b"PERMERROR",)}


@pytest.mark.parametrize("name", CHASQUID)
def test_the_messages_of_chasquid_have_its_results(name: str) -> None:
    results = outcomes((SHARED / "chasquid" / f"{name}.msg").read_bytes(), _chasquid_dns(name))
    file = SHARED / "chasquid" / f"{name}.result"
    if not file.exists():
        assert name == "03-bad_message"  # its header ends at a line that is no field, and has no signature before that
        assert results == []
        return
    expected = [STATES[each["State"]] for each in json.loads(file.read_text())["Results"]]
    if name == "02-too_many_headers":
        # It stops after five signatures; we evaluate twenty, and the two below are the same.
        assert results == ["pass"] * 7
        return
    if name == "09-limited_body":
        assert results[0] == "policy"  # it covers a part of the body (DKIM-07)
        results[0] = "pass"
    assert len(results) == len(expected)
    assert all(result in wanted for result, wanted in zip(results, expected, strict=True)), results


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rfc6376.signed.msg", ["pass", "pass"]),
        ("rfc6376.signed.rsa.msg", ["pass"]),
        ("rfc6376.signed.no_t.msg", ["fail"]),  # its tags were changed after it was signed
        ("rfc6376.msg", []),
        ("rfc6376.w1258.msg", []),
        ("test.message", []),
        ("test.message.baddomain", ["permerror"]),
        ("test_nofrom.message", []),
    ],
)
def test_the_messages_of_dkimpy_have_its_results(name: str, expected: list[str]) -> None:
    assert outcomes((SHARED / "dkimpy" / name).read_bytes(), FOOTBALL) == expected


def test_an_ed25519_signature_of_exim_verifies() -> None:
    table = {"sed._domainkey.test.ex": (SHARED / "dkimpy/eximtest.dns").read_text().strip()}
    assert outcomes((SHARED / "dkimpy/ed25519test2.msg").read_bytes(), table) == ["pass"]


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("test.txt", True),
        ("test_tlsrpt.txt", True),
        ("1024_testkey_wo_markers.pub.txt", True),
        ("1024_testkey_wo_markers.pub.rsa.txt", True),  # a bare RSAPublicKey
        ("2048_testkey_wo_markers.pub.txt", True),
        ("2048_testkey_wo_markers.pub.rsa.txt", True),
        ("2048_testkey_PKCS8.key.pub.txt", True),
        ("badk.txt", False),
        ("badversion.txt", False),
        ("test_bad.txt", False),
    ],
)
def test_the_key_records_of_dkimpy_are_read(name: str, valid: bool) -> None:
    record = (SHARED / "dkimpy" / name).read_bytes().strip()
    if valid:
        read_key_record(record)
    else:
        with pytest.raises(KeyRecordError):
            read_key_record(record)
