"""Which DNS records a MailDomain needs, and what is wrong with those that are there. Pure: answers go in.

    check(needs, answers) → Verdict, or the Questions that must be answered first

The caller looks up what is asked and calls again with all answers so far; a few rounds end it, because SPF is bounded.
The verdict is the condition `DNSConfigured`, which is no part of Ready: somebody must act outside the cluster, and
nothing in it waits for that.

Records: SPF (RFC 7208) must cover every address that the domain's mail can leave from, those of SOCKS proxies included;
DKIM (RFC 6376, 8463) must publish each signing key; DMARC (RFC 9989) here or at a parent domain; for domains that
receive: MX, MTA-STS (RFC 8461) and TLSRPT (RFC 8460). Each egress address needs a PTR whose name leads back to it.

The record of an MTA-STS policy that we serve is told once the policy is served, and not before (STS-23b): whoever saw
the new id too early would keep the old policy under it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final

from mailrail.core.mtasts.own import own_policy, own_record
from mailrail.core.mtasts.policy import Mode, Policy
from mailrail.core.mtasts.record import POLICY_LABEL, StsRecord, read_records, record_name
from mailrail.core.revision.revision import Domain, DomainDelivery, Match, ObjectRef, Revision, TransportKind

SPF_LOOKUPS: Final = 10
"""RFC 7208 4.6.4: terms that cause DNS queries."""
ADDRESSES_LIMIT: Final = 32
"""Egress addresses of one domain that are checked."""
NOT_SERVED: Final = "the policy is not served yet by every policy process; the record is told once it is"
_VALUES_SHOWN: Final = 200


class DnsReason(StrEnum):
    """Reasons of DNSConfigured. Closed, like those of the other conditions."""

    CONFIGURED = "Configured"
    """Every record that the domain needs is there."""
    RECORDS_MISSING = "RecordsMissing"
    """A record is missing or says something else; the message and `dnsRecords` say which."""
    LOOKUP_FAILED = "LookupFailed"
    """The resolver gave no answer for a record; nothing is known to be wrong."""
    PENDING = "Pending"
    """The domain was not looked up yet, or its MTA-STS policy is not served yet; the message says which."""
    NOT_CHECKED = "NotChecked"
    """The check is switched off, or the domain is not attached to a gateway."""


class RecordState(StrEnum):
    """Of one record."""

    MATCH = "Match"
    MISSING = "Missing"
    MISMATCH = "Mismatch"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True, order=True)
class Question:
    """One lookup: TXT, MX, PTR (name is the address) or A (means A and AAAA)."""

    type: str
    name: str


@dataclass(frozen=True, slots=True)
class DnsAnswer:
    """What a lookup gave: texts (TXT joined; MX as `preference host`; PTR names; addresses). `failed`: no answer."""

    values: tuple[str, ...] = ()
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """A record that is needed, and how it fares."""

    purpose: str
    type: str
    name: str
    value: str
    state: RecordState
    message: str = ""

    def as_status(self) -> dict[str, Any]:
        """As `status.dnsRecords` has it."""
        row = {"purpose": self.purpose, "type": self.type, "name": self.name, "value": self.value}
        row["state"] = self.state.value
        return row | ({"message": self.message[:1024]} if self.message else {})


@dataclass(frozen=True, slots=True)
class DnsVerdict:
    """The condition and the records behind it."""

    status: str
    reason: DnsReason
    message: str
    records: tuple[Record, ...] = ()

    @classmethod
    def pending(cls) -> "DnsVerdict":
        """Before the first look."""
        return cls("Unknown", DnsReason.PENDING, "DNS was not looked up yet")

    @classmethod
    def not_checked(cls, why: str) -> "DnsVerdict":
        """Nobody looks."""
        return cls("Unknown", DnsReason.NOT_CHECKED, why)


@dataclass(frozen=True, slots=True)
class Egress:
    """An address that the domain's mail can leave from, and the name that goes with it."""

    address: str
    hostname: str


@dataclass(frozen=True, slots=True)
class Needs:
    """What there is to know about a domain besides DNS itself."""

    domain: str
    receives: bool
    hostname: str
    """Of the gateway: target of MX, name in EHLO."""
    egress: tuple[Egress, ...] = ()
    dkim: tuple[tuple[str, str], ...] = ()
    """(selector, text of the record)."""
    notes: tuple[str, ...] = field(default=())
    """What cannot be checked, for people."""
    policy: Policy | None = None
    """The MTA-STS policy that we serve for it; None: none of ours."""
    policy_served: bool = True
    """Every live policy process serves this policy, and there is one."""


def needs_of(domain: Domain, revision: Revision, dkim: Mapping[str, str], addresses: Sequence[str]) -> Needs | None:
    """What a domain needs, from the revision. `addresses`: where direct mail of the cluster comes from, if known.

    `dkim`: record text by selector. None when the domain's gateway is not there.
    """
    gateway = next((g for g in revision.gateways if g.ref == domain.gateway), None)
    if gateway is None:
        return None
    transports = {t.ref: t for t in revision.transports}
    egress: dict[str, Egress] = {}
    direct = False
    for ref in _transports_of(domain, revision):
        transport = transports.get(ref) if ref is not None else None
        if ref is None or (transport is not None and transport.kind is TransportKind.DIRECT):
            own = transport.source_addresses if transport is not None else ()
            direct = direct or not own
            for address in own:
                egress[address] = Egress(address, gateway.hostname)
        elif transport is not None and transport.kind is TransportKind.SOCKS:
            for address in transport.remote_ips:
                egress[address] = Egress(address, transport.remote_hostname or gateway.hostname)
    if direct:
        for address in addresses:
            egress.setdefault(address, Egress(address, gateway.hostname))
    notes: list[str] = []
    if direct and not addresses:
        notes.append("not checked: the operator does not know the egress addresses of direct delivery")
    if len(egress) > ADDRESSES_LIMIT:
        notes.append(f"only the first {ADDRESSES_LIMIT} of {len(egress)} egress addresses are checked")
    return Needs(
        domain.name,
        domain.delivery is not DomainDelivery.NONE,
        gateway.hostname,
        tuple(egress[a] for a in sorted(egress))[:ADDRESSES_LIMIT],
        tuple((key.selector, dkim[key.selector]) for key in domain.dkim if key.selector in dkim),
        tuple(notes),
        own_policy(domain, gateway.hostname),
    )


def _transports_of(domain: Domain, revision: Revision) -> Iterator[ObjectRef | None]:
    """Every transport that some rule may choose for mail from the domain; None is direct delivery.

    Account routes come first, then the domain's, then global ones; a rule that takes everything ends it, and what no
    rule takes is delivered directly (design 4).
    """
    accounts = {a.ref for a in revision.accounts if a.domain == domain.ref}
    for level in revision.account_routes:
        if level.parent in accounts:
            yield from (rule.transport for rule in level.rules)
    for levels, parent in ((revision.domain_routes, domain.ref), (revision.global_routes, domain.gateway)):
        for rule in (rule for level in levels if level.parent == parent for rule in level.rules):
            yield rule.transport
            if not rule.matches or any(m == Match() for m in rule.matches):
                return
    yield None


class _Ask(Exception):
    """An answer is needed that is not there yet."""


class _Answers:
    """The answers so far; what is asked and not there is collected, so that one round asks for all of it."""

    def __init__(self, known: Mapping[Question, DnsAnswer]) -> None:
        self._known = known
        self.open: set[Question] = set()

    def of(self, kind: str, name: str) -> DnsAnswer:
        """Raises _Ask."""
        question = Question(kind, name)
        found = self._known.get(question)
        if found is None:
            self.open.add(question)
            raise _Ask
        return found


def check(needs: Needs, known: Mapping[Question, DnsAnswer]) -> DnsVerdict | frozenset[Question]:
    """The verdict; or the questions whose answers it needs first."""
    answers = _Answers(known)
    records: list[Record] = []
    for part in (_spf, _dkim, _dmarc, _mx, _mta_sts, _tls_reports):
        try:
            records += part(needs, answers)
        except _Ask:
            continue
    for egress in needs.egress:
        try:
            records.append(_ptr(egress, answers))
        except _Ask:
            continue
    if answers.open:
        return frozenset(answers.open)
    return _verdict(needs, records)


def _verdict(needs: Needs, records: Sequence[Record]) -> DnsVerdict:
    wrong = [r for r in records if r.state in (RecordState.MISSING, RecordState.MISMATCH)]
    unknown = [r for r in records if r.state is RecordState.UNKNOWN]
    noted = "".join(f"; {note}" for note in needs.notes)
    if wrong:
        return DnsVerdict("False", DnsReason.RECORDS_MISSING, "; ".join(map(_words, wrong)) + noted, tuple(records))
    if unknown and all(r.message == NOT_SERVED for r in unknown):
        return DnsVerdict("Unknown", DnsReason.PENDING, f"MTA-STS: {NOT_SERVED}{noted}", tuple(records))
    if unknown:
        names = ", ".join(dict.fromkeys(f"{r.purpose} {r.name}" for r in unknown))
        return DnsVerdict("Unknown", DnsReason.LOOKUP_FAILED, f"no answer for {names}{noted}", tuple(records))
    return DnsVerdict("True", DnsReason.CONFIGURED, "every record is there" + noted, tuple(records))


def _words(record: Record) -> str:
    if record.state is RecordState.MISSING:
        return f"{record.purpose}: publish {record.type} {record.name} {record.value}"
    return f"{record.purpose}: {record.message}"


def _judge(purpose: str, kind: str, name: str, value: str, answer: DnsAnswer, there: bool, wrong: str) -> Record:
    """A record that is right, wrong, missing, or not known."""
    if answer.failed:
        return Record(purpose, kind, name, value, RecordState.UNKNOWN, "the lookup failed")
    if not answer.values:
        return Record(purpose, kind, name, value, RecordState.MISSING, "there is no such record")
    return Record(
        purpose, kind, name, value, RecordState.MATCH if there else RecordState.MISMATCH, "" if there else wrong
    )


def _tagged(answer: DnsAnswer, version: str) -> DnsAnswer:
    """Only the TXT records of one purpose."""
    wanted = version.casefold()
    values = tuple(
        v for v in answer.values if v.casefold() == wanted or v.casefold().startswith((f"{wanted} ", f"{wanted};"))
    )
    return DnsAnswer(values, answer.failed)


def _tags(text: str) -> dict[str, str]:
    """A `tag=value; tag=value` list (RFC 6376 3.2), tags in lower case."""
    pairs = (part.partition("=") for part in text.split(";"))
    return {name.strip().casefold(): value.strip() for name, equals, value in pairs if equals}


def _shown(values: Iterable[str]) -> str:
    text = "".join(c if c.isprintable() else "?" for c in ", ".join(values))
    return text if len(text) <= _VALUES_SHOWN else text[: _VALUES_SHOWN - 1] + "…"


# --- SPF ---------------------------------------------------------------------------------------------------------


_Address = IPv4Address | IPv6Address


class _SpfProblem(Exception):
    """permerror or temperror of RFC 7208, with words."""

    def __init__(self, message: str, *, temporary: bool = False) -> None:
        self.temporary = temporary
        super().__init__(message)


def _spf(needs: Needs, answers: _Answers) -> list[Record]:
    addresses = [ip_address(e.address) for e in needs.egress]
    mechanisms = " ".join(f"ip{a.version}:{a}" for a in addresses)
    value = f'"v=spf1 {mechanisms + " " if mechanisms else "mx "}-all"'
    answer = _tagged(answers.of("TXT", needs.domain), "v=spf1")
    record = _judge("SPF", "TXT", needs.domain, value, answer, True, "")
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
        except _Ask:
            waiting = True
        except _SpfProblem as problem:
            state = RecordState.UNKNOWN if problem.temporary else RecordState.MISMATCH
            return [Record("SPF", "TXT", needs.domain, value, state, f"{problem}")]
    if waiting:
        raise _Ask
    if uncovered:
        message = f"it does not pass {', '.join(uncovered)}; add {' '.join(_ip_terms(uncovered))}"
        return [Record("SPF", "TXT", needs.domain, value, RecordState.MISMATCH, message)]
    return [record]


def _ip_terms(addresses: Iterable[str]) -> Iterator[str]:
    for address in addresses:
        yield f"ip{ip_address(address).version}:{address}"


def _spf_result(address: _Address, domain: str, record: str, answers: _Answers, budget: list[int]) -> str:
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
        raise _SpfProblem(f"the macro in {_shown([text])} cannot be evaluated here", temporary=True)
    return text.rstrip(".").casefold() or domain


def _spf_of(domain: str, answers: _Answers) -> str:
    answer = _tagged(answers.of("TXT", domain), "v=spf1")
    if answer.failed:
        raise _SpfProblem(f"the lookup of {domain} failed", temporary=True)
    if len(answer.values) != 1:
        raise _SpfProblem(f"it includes {domain}, which has {len(answer.values) or 'no'} v=spf1 records")
    return answer.values[0]


def _spf_matches(mechanism: str, address: _Address, domain: str, answers: _Answers, budget: list[int]) -> bool:
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
            raise _SpfProblem(f"{_shown([mechanism])} is not a mechanism (RFC 7208 5)")


def _spf_lookup(kind: str, name: str, answers: _Answers) -> DnsAnswer:
    answer = answers.of(kind, name)
    if answer.failed:
        raise _SpfProblem(f"the lookup of {name} failed", temporary=True)
    return answer


def _in_network(address: _Address, text: str) -> bool:
    try:
        network: IPv4Network | IPv6Network = ip_network(text, strict=False)
    except ValueError:
        raise _SpfProblem(f"{_shown([text])} is not a network") from None
    return address.version == network.version and address in network


def _same_network(address: _Address, other: str, lengths: str) -> bool:
    """`/24//64`: one length for each family (RFC 7208 5.6)."""
    four, _, six = lengths.partition("//") if "//" in lengths else (lengths, "", "")
    length = (four if address.version == 4 else six.lstrip("/")) or None
    try:
        return _in_network(address, f"{other}/{length}" if length else other)
    except _SpfProblem:
        return False


# --- the others ---------------------------------------------------------------------------------------------------


def _dkim(needs: Needs, answers: _Answers) -> list[Record]:
    records: list[Record] = []
    for selector, wanted in needs.dkim:
        name = f"{selector}._domainkey.{needs.domain}"
        answer = answers.of("TXT", name)
        key = _tags(wanted)["p"]
        published = ["".join(_tags(v).get("p", "").split()) for v in answer.values]
        wrong = "the key is revoked (p= is empty)" if published == [""] else "it is not the key that signs"
        records.append(
            _judge("DKIM", "TXT", name, f'"{wanted}"', answer, published == [key], f"{name}: {wrong}; publish {wanted}")
        )
    return records


def _dmarc(needs: Needs, answers: _Answers) -> list[Record]:
    name = f"_dmarc.{needs.domain}"
    value = f'"v=DMARC1; p=none; rua=mailto:postmaster@{needs.domain}"'
    labels = needs.domain.split(".")
    failed = False
    for start in range(max(1, len(labels) - 1)):
        answer = _tagged(answers.of("TXT", "_dmarc." + ".".join(labels[start:])), "v=DMARC1")
        failed = failed or answer.failed
        if len(answer.values) > 1:
            return [_judge("DMARC", "TXT", name, value, answer, False, "there is more than one v=DMARC1 record")]
        if answer.values:
            policy = _tags(answer.values[0]).get("p", "")
            there = start > 0 or policy in ("none", "quarantine", "reject")
            return [_judge("DMARC", "TXT", name, value, answer, there, f"p={_shown([policy])} is not a policy")]
    return [_judge("DMARC", "TXT", name, value, DnsAnswer((), failed), False, "")]


def _mx(needs: Needs, answers: _Answers) -> list[Record]:
    if not needs.receives:
        return []
    answer = answers.of("MX", needs.domain)
    hosts = {value.split()[-1].rstrip(".").casefold() for value in answer.values if value.split()}
    wrong = f"it leads to {_shown(sorted(hosts))}, not to {needs.hostname}"
    value = f"10 {needs.hostname}."
    return [_judge("MX", "MX", needs.domain, value, answer, needs.hostname.casefold() in hosts, wrong)]


def _mta_sts(needs: Needs, answers: _Answers) -> list[Record]:
    if not needs.receives and needs.policy is None:
        return []
    answer = _tagged(answers.of("TXT", record_name(needs.domain)), "v=STSv1")
    record = _sts_record(needs, answer)
    records = [record]
    host = f"{POLICY_LABEL}.{needs.domain}"
    policy = answers.of("A", host)
    if (record.state is RecordState.MATCH or needs.policy is not None) and not policy.values:
        missing = "its policy host has no address (RFC 8461 3.3)"
        state = RecordState.UNKNOWN if policy.failed else RecordState.MISSING
        records.append(Record("MTA-STS", "A", host, "the address of a web server with the policy", state, missing))
    if needs.policy is not None and needs.policy.mode is not Mode.NONE:
        records += _hosts_outside(needs.domain, needs.policy, answers)
    return records


def _sts_record(needs: Needs, answer: DnsAnswer) -> Record:
    name = record_name(needs.domain)
    found = read_records([[value.encode()] for value in answer.values])
    if needs.policy is None:
        wrong = "there must be one record with an id of letters and digits (RFC 8461 3.1)"
        return _judge("MTA-STS", "TXT", name, '"v=STSv1; id=1"', answer, isinstance(found, StsRecord), wrong)
    wanted = own_record(needs.policy)
    if not needs.policy_served and found != wanted and not answer.failed:
        # STS-23b: the record that is there belongs to the policy that is served still.
        if isinstance(found, StsRecord):
            return Record("MTA-STS", "TXT", name, f'"{found}"', RecordState.MATCH, f"a new policy: {NOT_SERVED}")
        return Record("MTA-STS", "TXT", name, "(not yet)", RecordState.UNKNOWN, NOT_SERVED)
    wrong = f"{name}: it is not the record of the policy that is served; publish {wanted}"
    return _judge("MTA-STS", "TXT", name, f'"{wanted}"', answer, found == wanted, wrong)


def _hosts_outside(domain: str, policy: Policy, answers: _Answers) -> list[Record]:
    """The MX hosts that the policy keeps others from: with `enforce` they get no mail."""
    answer = answers.of("MX", domain)
    hosts = {value.split()[-1].rstrip(".").casefold() for value in answer.values if value.split()}
    outside = sorted(host for host in hosts if host and not policy.matches(host))
    if not outside:
        return []
    wrong = f"the policy does not name {_shown(outside)}; add it to spec.mtaSts.mx, or take it out of the MX records"
    return [Record("MTA-STS", "MX", domain, ", ".join(policy.mx)[:4096], RecordState.MISMATCH, wrong)]


def _tls_reports(needs: Needs, answers: _Answers) -> list[Record]:
    if not needs.receives:
        return []
    name = f"_smtp._tls.{needs.domain}"
    answer = _tagged(answers.of("TXT", name), "v=TLSRPTv1")
    there = len(answer.values) == 1 and bool(_tags(answer.values[0]).get("rua"))
    value = f'"v=TLSRPTv1; rua=mailto:postmaster@{needs.domain}"'
    return [_judge("TLSRPT", "TXT", name, value, answer, there, "there must be one record with rua= (RFC 8460 3)")]


def _ptr(egress: Egress, answers: _Answers) -> Record:
    """The name of the address must lead back to it; that it is the EHLO name is better, and said."""
    name = ip_address(egress.address).reverse_pointer
    value = f"{egress.hostname}."
    answer = answers.of("PTR", egress.address)
    hosts = [v.rstrip(".").casefold() for v in answer.values][:10]
    if answer.failed or not hosts:
        return _judge("PTR", "PTR", name, value, answer, False, "")
    address = ip_address(egress.address)
    back = {host: answers.of("A", host) for host in hosts}
    confirmed = [h for h in hosts if any(ip_address(v) == address for v in back[h].values)]
    if not confirmed:
        if any(a.failed for a in back.values()):
            return Record("PTR", "PTR", name, value, RecordState.UNKNOWN, "the lookup of its name failed")
        wrong = f"{egress.address} is called {_shown(hosts)}, which does not resolve back to it"
        return Record("PTR", "PTR", name, value, RecordState.MISMATCH, wrong)
    note = "" if egress.hostname.casefold() in confirmed else f"it is {confirmed[0]}; the EHLO name would be better"
    return Record("PTR", "PTR", name, value, RecordState.MATCH, note)
