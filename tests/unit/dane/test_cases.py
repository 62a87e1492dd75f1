"""Small cases of what goes wrong with DANE elsewhere (cases.yml), and OpenSSL's own table of chains."""

import base64
import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from mailrail.core.dane.demand import DaneDemand
from mailrail.core.dane.match import verify
from mailrail.core.dane.names import (
    Expansion,
    NextHopDomain,
    TlsaAnswer,
    base_candidates,
    found,
    next_candidate,
    reference_names,
    tlsa_name,
)
from mailrail.core.dane.tlsa import TlsaRecord, judge
from mailrail.core.outbound.targets import HostList, Mx, NoHosts, mx_hosts
from mailrail.core.revision.revision import TlsMode
from mailrail.core.tlspolicy.decision import Hop, decide
from mailrail.core.tlspolicy.facts import DnsFacts

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
_FILE = yaml.safe_load((Path(__file__).parent / "cases.yml").read_text())
_CERTIFICATES: Mapping[str, str] = _FILE["certificates"]
CASES: Sequence[Mapping[str, Any]] = _FILE["cases"]
OPENSSL = Path(__file__).parents[4] / "shared" / "data" / "dane" / "openssl" / "danetest.in"
_CERTIFICATE = re.compile(r"-----BEGIN (?:TRUSTED )?CERTIFICATE-----(.*?)-----END", re.DOTALL)


def of_kind(when: str) -> list[Any]:
    chosen = [pytest.param(case, id=case["id"]) for case in CASES if case["when"] == when]
    assert chosen
    return chosen


def certificates(pem: str) -> list[bytes]:
    return [base64.b64decode(each) for each in _CERTIFICATE.findall(pem)]


def test_each_case_is_of_a_kind_that_is_tested() -> None:
    assert {case["when"] for case in CASES} == {"authenticate the server", "find out what applies"}
    assert len(CASES) == 22


@pytest.mark.parametrize("case", of_kind("authenticate the server"))
def test_a_server_is_authenticated_or_not(case: Mapping[str, Any]) -> None:
    given, expect = case["given"], case["expect"]
    judged = judge(map(TlsaRecord.from_text, given["tlsa"]))
    if "usable" in expect:
        # What follows from it, TLS without authentication and never clear text, is the decision's (core/tlspolicy).
        assert len(judged.usable) == expect["usable"]
        assert len(judged.ignored) == len(given["tlsa"])
        return
    chain = [der for name in given["chain"] for der in certificates(_CERTIFICATES[name])]
    verdict = verify(chain, DaneDemand.of(given["base"], judged.usable, given["reference_names"]), NOW)
    assert verdict.matched is expect["authenticated"], verdict.fault


class _LookupFailed(Exception):
    pass


class _Zone:
    """The DNS of a case, and what was asked of it."""

    def __init__(self, records: Sequence[Mapping[str, Any]]) -> None:
        self._records = records
        self.asked: list[str] = []

    def ask(self, name: str, kind: str) -> tuple[list[str], str, bool]:
        """Data, the name at the end of the aliases, and whether all of it is secure. Raises _LookupFailed."""
        secure = True
        while True:
            records = [each for each in self._records if each["name"] == name]
            mine = [each for each in records if each["type"] == kind]
            alias = next((each for each in records if each["type"] == "CNAME"), None)
            if not mine and alias is not None and kind != "CNAME":
                secure = secure and alias["secure"]
                name = alias["data"][0]
                continue
            if any(each.get("rcode") == "SERVFAIL" for each in mine):
                raise _LookupFailed(name)
            # What is not listed is as secure as what is listed beside or above it.
            near = mine or records or [each for each in self._records if name.endswith(each["name"])]
            secure = secure and all(each.get("secure", False) for each in near if each.get("rcode") != "SERVFAIL")
            return [data for each in mine for data in each.get("data", [])], name, secure

    def tlsa(self, base: str) -> TlsaAnswer:
        self.asked.append(tlsa_name(base, 25))
        data, _, secure = self.ask(self.asked[-1], "TLSA")
        return TlsaAnswer(base, secure, tuple(map(TlsaRecord.from_text, data)))


@dataclass
class _Host:
    name: str
    addresses: list[str]
    applies: TlsaAnswer | None = None
    expansion: Expansion | None = None
    reachable: bool = True


def _explored(zone: _Zone) -> tuple[NextHopDomain, list[_Host]]:
    """What outbound finds out of example.com, the DNS aside the same steps."""
    data, expanded, secure = zone.ask("example.com", "MX")
    records = [Mx(int(each.split()[0]), each.split()[1]) for each in data]
    hosts = mx_hosts("example.com", records, own_names=frozenset(), random=lambda: 0.5)
    domain = NextHopDomain(Expansion("example.com", expanded, secure), implicit=not records)
    return domain, [_looked_up(zone, name) for name in hosts.names] if isinstance(hosts, HostList) else []


def _looked_up(zone: _Zone, name: str) -> _Host:
    addresses: list[str] = []
    expansion = Expansion(name, name, secure=False)
    for kind in ("A", "AAAA"):
        try:
            found_addresses, expanded, secure = zone.ask(name, kind)
        except _LookupFailed:
            continue
        if found_addresses:
            addresses += found_addresses
            expansion = Expansion(name, expanded, secure)
    if not expansion.secure and expansion.expanded != name:
        _, _, alias_secure = zone.ask(name, "CNAME")
        expansion = Expansion(name, expansion.expanded, False, alias_secure)
    host = _Host(name, addresses, expansion=expansion)
    asked: list[TlsaAnswer] = []
    try:
        while (base := next_candidate(expansion, asked)) is not None:
            asked.append(zone.tlsa(base))
    except _LookupFailed:
        host.reachable = False
    host.applies = found(asked)
    return host


def _hop(host: _Host | None, domain: NextHopDomain | None) -> Hop:
    name = host.name if host is not None else "none"
    if domain is None:
        return Hop(name, TlsMode.OPPORTUNISTIC)
    return Hop(name, None, dns=DnsFacts(trusted=True, mx_secure=domain.mx.secure))


@pytest.mark.parametrize("case", of_kind("find out what applies"))
def test_what_applies_is_found_out(case: Mapping[str, Any]) -> None:
    zone = _Zone(case["given"]["dns"])
    domain, hosts = _explored(zone)
    first = hosts[0] if hosts else None
    facts: dict[str, Any] = {
        "dial_order": [host.name for host in hosts],
        "tlsa_queried": bool(zone.asked),
        "tlsa_queries": zone.asked,
        "dane": "applies" if first is not None and first.applies is not None else "not applicable",
        "logged_as_verified_for_domain": decide(_hop(first, domain)).mx_proven,
    }
    if first is not None:
        assert first.expansion is not None
        facts |= {
            "connected": first.reachable,
            "delivered": first.reachable,
            "result": "delivered" if first.reachable else "deferred",
            "addresses": first.addresses,
        }
        if first.applies is not None:
            base = first.applies.base
            facts |= {
                "base": base,
                "sni": base,
                "reference_names": list(reference_names(base, first.expansion, domain)),
            }
    also = case["expect"].get("also")
    expected = {fact: value for fact, value in case["expect"].items() if fact != "also"}
    assert {fact: facts.get(fact) for fact in expected} == expected
    if also == ["host unusable"]:
        assert first is None


def test_an_mx_that_is_an_address_is_no_host_and_no_base_domain() -> None:
    records = [Mx(10, "192.0.2.1")]
    assert isinstance(mx_hosts("example.com", records, own_names=frozenset(), random=lambda: 0.5), NoHosts)
    assert base_candidates(Expansion("192.0.2.1", "192.0.2.1", secure=True)) == ()


@dataclass
class _Row:
    number: int
    records: list[TlsaRecord]
    chain: list[bytes]
    names_unchecked: bool
    good: bool


def _openssl_rows() -> list[_Row]:
    if not OPENSSL.exists():
        return []
    lines = [line for line in OPENSSL.read_text().splitlines() if line.strip() and not line.startswith("#")]
    rows: list[_Row] = []
    while lines:
        records, certs, unchecked, result, _ = map(int, lines.pop(0).split())
        tlsa = [TlsaRecord.from_text(lines.pop(0)) for _ in range(records)]
        pem: list[str] = []
        while sum("-----END" in line for line in pem) < certs:
            pem.append(lines.pop(0))
        rows.append(_Row(len(rows) + 1, tlsa, certificates("\n".join(pem)), bool(unchecked), result == 0))
    return rows


@pytest.mark.skipif(not OPENSSL.exists(), reason="OpenSSL's table of chains is not here (../shared/data/dane)")
def test_we_judge_as_openssl_does_wherever_smtp_asks_the_same() -> None:
    rows = _openssl_rows()
    judged = 0
    for row in rows:
        usable = judge(row.records).usable
        assert bool(usable) == any(record.usage in (2, 3) for record in row.records)
        if not usable:
            continue  # OpenSSL knows public authorities; RFC 7672 3.1.3 knows none for SMTP
        verdict = verify(row.chain, DaneDemand.of("example.com", usable, ["example.com"]), NOW)
        # RFC 7672 3.1.1: DANE-EE asks for no name. OpenSSL has a row in which it was told to ask.
        ours = all(record.usage == 3 for record in usable) and not row.names_unchecked
        assert verdict.matched is (row.good or ours), (row.number, verdict.fault)
        judged += 1
    assert (len(rows), judged) == (54, 34)
