"""The test suite of RFC 7208, pyspf's own cases, and small cases of our own making (cases.yml)."""

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

from mailrail.core.lookups import answered
from mailrail.core.smtp.address import Address
from mailrail.core.spf.evaluation import QUESTION_LIMIT, SpfReceiver, check_host
from mailrail.core.spf.identity import mail_from_identity
from mailrail.core.spf.result import SpfVerdict

from testkit.dns_table import DnsTable

_DATA = Path(__file__).parents[4] / "shared" / "data" / "spf"
SUITE = _DATA / "rfc7208-tests.yml"
PYSPF = _DATA / "pyspf" / "test.yml"
CASES: Sequence[Mapping[str, Any]] = yaml.safe_load((Path(__file__).parent / "cases.yml").read_text("utf-8"))

PYSPF_DIFFERS = {
    # RFC 7208 6: a modifier that is not known changes nothing; pyspf's lax mode knows `default` of a draft.
    "default-modifier": "neutral",
    "default-modifier-harsh": "neutral",
}


def checked(host: str, sender: str, helo: str, table: DnsTable) -> SpfVerdict:
    local, at, domain = sender.rpartition("@")
    identity = mail_from_identity(Address(local, domain) if at else None, helo)
    verdict = answered(check_host(identity, ip_address(host), helo, SpfReceiver("receiver.example", 1)), table)
    assert len(table.asked) <= QUESTION_LIMIT
    return verdict


def _table(zone: Mapping[str, Sequence[Any]]) -> DnsTable:
    """A zone of the suite: SPF records stand for TXT ones, unless the name has those (TXT: NONE means none)."""
    table = DnsTable()
    for name, entries in zone.items():
        table.exists(name)
        records = [next(iter(entry.items())) for entry in entries if isinstance(entry, dict)]
        has_txt = any(kind == "TXT" for kind, _ in records)
        for kind, value in records:
            if value == "NONE" or (kind == "SPF" and has_txt):
                continue
            if kind == "MX":
                table.add(name, "MX", f"{value[0]} {value[1]}")
            elif kind in ("SPF", "TXT"):
                table.add(name, "TXT", "".join(value))
            else:
                table.add(name, kind, value)
        if "TIMEOUT" in entries:
            table.fail(name)
    return table


def _of_suite(path: Path) -> Iterator[Any]:
    if not path.exists():
        return
    for document in yaml.safe_load_all(path.read_text("utf-8")):
        for name, test in document["tests"].items():
            yield pytest.param(test, document["zonedata"], id=name)


@pytest.mark.skipif(not SUITE.exists(), reason="the suite of RFC 7208 is not here (../shared/data/spf)")
@pytest.mark.parametrize(("test", "zone"), list(_of_suite(SUITE)))
def test_the_suite_of_rfc_7208_holds(test: Mapping[str, Any], zone: Mapping[str, Sequence[Any]]) -> None:
    """SPF-01, SPF-02, SPF-03, SPF-06, SPF-07, SPF-08, SPF-09, SPF-12, SPF-15."""
    verdict = checked(test["host"], test["mailfrom"], test["helo"], _table(zone))
    allowed = test["result"] if isinstance(test["result"], list) else [test["result"]]
    assert verdict.result in allowed, verdict
    if "explanation" in test:
        wanted = "" if test["explanation"] == "DEFAULT" else test["explanation"]
        assert verdict.explanation == wanted


def test_the_suite_is_whole() -> None:
    if not SUITE.exists():
        pytest.skip("the suite of RFC 7208 is not here (../shared/data/spf)")
    assert len(list(_of_suite(SUITE))) == 203


@pytest.mark.skipif(not PYSPF.exists(), reason="pyspf's own cases are not here (../shared/data/spf)")
@pytest.mark.parametrize(("test", "zone"), list(_of_suite(PYSPF)))
def test_we_judge_as_pyspf_does(
    test: Mapping[str, Any], zone: Mapping[str, Sequence[Any]], request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id
    verdict = checked(test["host"], test["mailfrom"], test["helo"], _table(zone))
    assert verdict.result == PYSPF_DIFFERS.get(name, test["result"]), verdict


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in CASES])
def test_what_goes_wrong_elsewhere_goes_right_here(case: Mapping[str, Any]) -> None:
    """SPF-01, SPF-04, SPF-06, SPF-09, SPF-10, SPF-12, SPF-15."""
    given, expect = case["given"], case["expect"]
    verdict = checked(given["ip"], given["mail_from"], given["helo"], DnsTable.of_case(given["dns"]))
    assert verdict.result == expect["spf"], verdict
    if "identity" in expect:
        assert str(verdict.identity) == expect["identity"]
    if "must_not_appear_unquoted" in expect:
        assert expect["must_not_appear_unquoted"] not in verdict.reason + verdict.explanation


def test_each_small_case_is_here() -> None:
    assert len(CASES) == len({case["id"] for case in CASES}) == 27
