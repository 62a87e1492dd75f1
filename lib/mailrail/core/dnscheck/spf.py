"""SPF (RFC 7208): the record must pass every address that the domain's mail can leave from."""

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from mailrail.core.dnscheck.answers import Ask, DnsAnswer, DnsAnswers, Record, RecordState, judge, shown, tagged
from mailrail.core.dnscheck.needs import Needs

SPF_LOOKUPS: Final = 10
"""RFC 7208 4.6.4: terms that cause DNS queries."""

_Address = IPv4Address | IPv6Address


class _SpfProblem(Exception):
    """permerror or temperror of RFC 7208, with words."""

    def __init__(self, message: str, *, temporary: bool = False) -> None:
        self.temporary = temporary
        super().__init__(message)


def spf(needs: Needs, answers: DnsAnswers) -> list[Record]:
    """The record, and whether it passes each egress address. Raises Ask."""
    addresses = [ip_address(e.address) for e in needs.egress]
    mechanisms = " ".join(f"ip{a.version}:{a}" for a in addresses)
    value = f'"v=spf1 {mechanisms + " " if mechanisms else "mx "}-all"'
    answer = tagged(answers.of("TXT", needs.domain), "v=spf1")
    record = judge("SPF", "TXT", needs.domain, value, answer, True, "")
    if record.state is not RecordState.MATCH:
        return [record]
    if len(answer.values) > 1:
        message = "there is more than one v=spf1 record; receivers treat that as an error (RFC 7208 4.5)"
        return [Record("SPF", "TXT", needs.domain, value, RecordState.MISMATCH, message)]
    uncovered: list[str] = []
    waiting = False
    for address in addresses:
        try:
            if _spf_result(address, needs.domain, answer.values[0], answers, [SPF_LOOKUPS]) != "+":
                uncovered.append(str(address))
        except Ask:
            waiting = True
        except _SpfProblem as problem:
            state = RecordState.UNKNOWN if problem.temporary else RecordState.MISMATCH
            return [Record("SPF", "TXT", needs.domain, value, state, f"{problem}")]
    if waiting:
        raise Ask
    if uncovered:
        message = f"it does not pass {', '.join(uncovered)}; add {' '.join(_ip_terms(uncovered))}"
        return [Record("SPF", "TXT", needs.domain, value, RecordState.MISMATCH, message)]
    return [record]


def _ip_terms(addresses: Iterable[str]) -> Iterator[str]:
    for address in addresses:
        yield f"ip{ip_address(address).version}:{address}"


def _spf_result(address: _Address, domain: str, record: str, answers: DnsAnswers, budget: list[int]) -> str:
    """The qualifier of the first term that matches (RFC 7208 4.6); `?` when none does."""
    redirect = None
    for term in record.split()[1:]:
        name, equals, value = term.partition("=")
        if equals and name.isalpha():
            if name.casefold() == "redirect":
                redirect = value
            continue
        qualifier, mechanism = (term[0], term[1:]) if term[0] in "+-~?" else ("+", term)
        if _spf_matches(mechanism, address, domain, answers, budget):
            return qualifier
    if redirect is None:
        return "?"
    _spend(budget)
    target = _target(redirect, domain)
    return _spf_result(address, target, _spf_of(target, answers), answers, budget)


def _spend(budget: list[int]) -> None:
    budget[0] -= 1
    if budget[0] < 0:
        raise _SpfProblem(f"it needs more than {SPF_LOOKUPS} lookups (RFC 7208 4.6.4)")


def _target(text: str, domain: str) -> str:
    if "%" in text:
        raise _SpfProblem(f"the macro in {shown([text])} cannot be evaluated here", temporary=True)
    return text.rstrip(".").casefold() or domain


def _spf_of(domain: str, answers: DnsAnswers) -> str:
    answer = tagged(answers.of("TXT", domain), "v=spf1")
    if answer.failed:
        raise _SpfProblem(f"the lookup of {domain} failed", temporary=True)
    if len(answer.values) != 1:
        raise _SpfProblem(f"it includes {domain}, which has {len(answer.values) or 'no'} v=spf1 records")
    return answer.values[0]


def _spf_matches(mechanism: str, address: _Address, domain: str, answers: DnsAnswers, budget: list[int]) -> bool:
    kind, _, argument = mechanism.partition(":")
    if "/" in kind:
        kind, _, length = kind.partition("/")
        argument = f"/{length}"
    match kind.casefold():
        case "all":
            return True
        case "ip4" | "ip6":
            return _in_network(address, argument)
        case "include":
            _spend(budget)
            target = _target(argument, domain)
            return _spf_result(address, target, _spf_of(target, answers), answers, budget) == "+"
        case "a" | "mx":
            _spend(budget)
            name, _, lengths = argument.partition("/")
            hosts = [_target(name, domain)]
            if kind.casefold() == "mx":
                found = _spf_lookup("MX", hosts[0], answers)
                hosts = [value.split()[-1].rstrip(".").casefold() for value in found.values if value.split()][:10]
            return any(
                _same_network(address, other, lengths)
                for host in hosts
                for other in _spf_lookup("A", host, answers).values
            )
        case "exists":
            _spend(budget)
            return bool(_spf_lookup("A", _target(argument, domain), answers).values)
        case "ptr":
            _spend(budget)
            return False  # RFC 7208 5.5: do not use; nobody should depend on it
        case _:
            raise _SpfProblem(f"{shown([mechanism])} is not a mechanism (RFC 7208 5)")


def _spf_lookup(kind: str, name: str, answers: DnsAnswers) -> DnsAnswer:
    answer = answers.of(kind, name)
    if answer.failed:
        raise _SpfProblem(f"the lookup of {name} failed", temporary=True)
    return answer


def _in_network(address: _Address, text: str) -> bool:
    try:
        network: IPv4Network | IPv6Network = ip_network(text, strict=False)
    except ValueError:
        raise _SpfProblem(f"{shown([text])} is not a network") from None
    return address.version == network.version and address in network


def _same_network(address: _Address, other: str, lengths: str) -> bool:
    """`/24//64`: one length for each family (RFC 7208 5.6)."""
    four, _, six = lengths.partition("//") if "//" in lengths else (lengths, "", "")
    length = (four if address.version == 4 else six.lstrip("/")) or None
    try:
        return _in_network(address, f"{other}/{length}" if length else other)
    except _SpfProblem:
        return False
