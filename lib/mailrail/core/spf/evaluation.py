"""check_host(): what the records of a domain say of a client (RFC 7208 4 to 7).

A decision that asks the DNS (`core.lookups`): it is bounded in questions, in depth and in what it keeps, and raises for
nothing that a stranger publishes or says.
"""

from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from typing import Final, NoReturn, TypeVar

from mailrail.core.lookups import Asking, DnsOutcome, DnsQuestion, LookupAnswer
from mailrail.core.shown import shown_text
from mailrail.core.smtp.address import AddressError, domain_to_ascii, plain_ip
from mailrail.core.spf.explanation import explain, parse_explanation
from mailrail.core.spf.macro import MacroString, SpfSyntaxError, expand, letters_of, name_of
from mailrail.core.spf.record import (
    IpAddress,
    SpfKind,
    SpfMechanism,
    SpfRecord,
    parse_record,
    records_among,
)
from mailrail.core.spf.result import SpfIdentity, SpfResult, SpfStep, SpfVerdict

TERM_LIMIT: Final = 10
"""Terms that ask the DNS, in one evaluation (SPF-02; RFC 7208 4.6.4)."""
VOID_LIMIT: Final = 2
"""Terms that ask the DNS and find nothing, unless the receiver says another number (SPF-04)."""
HOST_LIMIT: Final = 10
"""Hosts of one `mx`, and names of the client's address (SPF-03)."""
TIME_LIMIT: Final = 20.0
"""Seconds that an evaluation may ask for at least (SPF-05): later answers are `late`."""
QUESTION_LIMIT: Final = 1 + TERM_LIMIT * (1 + HOST_LIMIT) + (1 + HOST_LIMIT) + 1
"""Questions of one evaluation: the first record, the terms, the names of the client, the explanation."""
_STEP_LIMIT: Final = 300
_TERM_SHOWN: Final = 200  # characters
_RECORD_SHOWN: Final = 1000  # characters

_T = TypeVar("_T")
_Asking = Generator[tuple[DnsQuestion, ...], tuple[LookupAnswer, ...], _T]


@dataclass(frozen=True, slots=True)
class SpfReceiver:
    """What the receiver adds to an evaluation."""

    name: str = "unknown"
    """`%{r}`: the name of the host that checks."""
    now: int = 0
    """`%{t}`: seconds since 1970."""
    void_limit: int = VOID_LIMIT
    explains: bool = True
    """A fail asks for the explanation."""


class _Ended(Exception):
    """The evaluation cannot go on: a permerror or a temperror, at whatever depth (SPF-07)."""

    def __init__(self, result: SpfResult, reason: str, domain: str, term: str = "") -> None:
        super().__init__(reason)
        self.result, self.reason, self.domain, self.term = result, reason, domain, term


@dataclass(frozen=True, slots=True)
class _Found:
    """What the record of a domain says; `term` is empty if no mechanism matches."""

    result: SpfResult
    domain: str
    term: str = ""
    exp: MacroString | None = None


def check_host(
    identity: SpfIdentity, client: IpAddress, helo: str, receiver: SpfReceiver | None = None
) -> Asking[SpfVerdict]:
    """Whether the domain of `identity` lets `client` send for it (RFC 7208 4). `helo`: as the client said it. Never
    raises; asks QUESTION_LIMIT questions at most."""
    domain = domain_of(identity.domain)
    if domain is None:
        # SPF-15; RFC 7208 4.3: an address literal, a name with one label or none at all is no domain to ask.
        reason = f"{shown_text(identity.domain) or 'an empty text'} is not a domain name with a dot in it"
        return SpfVerdict(SpfResult.NONE, identity, "", reason)
    evaluation = _Evaluation(identity, domain, in_dns(client), helo, receiver or SpfReceiver())
    return (yield from evaluation.run())


def in_dns(client: IpAddress) -> IpAddress:
    """The address as records have it: IPv4 as such (SPF-12; RFC 7208 5), and without the zone that a socket adds."""
    return plain_ip(IPv6Address(int(client)) if client.version == 6 else client)


def domain_of(text: str) -> str | None:
    """A domain that can be asked, in lower-case A-labels (SPF-16; RFC 8616 4): two labels or more, and no address."""
    try:
        name = domain_to_ascii(text.removesuffix("."), in_address=True)
    except AddressError:
        return None
    _, dot, top = name.rpartition(".")
    return name if dot and not top.isdigit() and name_of(name) == name else None


class _Evaluation:
    """The state of one: what it has spent and what it has seen."""

    def __init__(self, identity: SpfIdentity, domain: str, client: IpAddress, helo: str, receiver: SpfReceiver) -> None:
        self._identity, self._domain, self._client = identity, domain, client
        self._local = identity.local or "postmaster"  # RFC 7208 4.3
        self._helo = domain_of(helo) or helo  # SPF-16: A-labels in macros, too
        self._receiver = receiver
        self._terms = 0
        self._voids = 0
        self._names: tuple[str, ...] | None = None  # of the client, that lead back to it
        self._steps: list[SpfStep] = []
        self._local_counted = False

    def run(self) -> Asking[SpfVerdict]:
        try:
            found = yield from self._check(self._domain, 0)
        except _Ended as ended:
            return self._verdict(ended.result, ended.reason, ended.term, ended.domain)
        if isinstance(found, str):
            return self._verdict(SpfResult.NONE, found)
        verdict = self._verdict(found.result, self._in_words(found), found.term, found.domain)
        if found.result is SpfResult.FAIL and found.exp is not None and self._receiver.explains:
            explanation = yield from self._explanation(found.exp, found.domain)
            verdict = replace(verdict, explanation=explanation, local_part_counted=self._local_counted)
        return verdict

    def _verdict(self, result: SpfResult, reason: str, term: str = "", record_domain: str = "") -> SpfVerdict:
        return SpfVerdict(
            result,
            self._identity,
            self._domain,
            reason,
            term[:_TERM_SHOWN],
            shown_text(record_domain),
            local_part_counted=self._local_counted,
            steps=tuple(self._steps),
        )

    def _in_words(self, found: _Found) -> str:
        whose = self._domain
        if found.domain != self._domain:
            whose += f" (by the record of {shown_text(found.domain)})"
        if not found.term:
            return f"no term in the record of {whose} matches {self._client}"
        does = {
            SpfResult.PASS: "permits",
            SpfResult.FAIL: "does not permit",
            SpfResult.SOFTFAIL: "probably does not permit",
            SpfResult.NEUTRAL: "says neither yes nor no to",
        }[found.result]
        return f"{whose} {does} {self._client}: {shown_text(found.term)} matches"

    def _step(self, depth: int, domain: str, term: str, said: str) -> None:
        if len(self._steps) < _STEP_LIMIT:
            self._steps.append(SpfStep(depth, shown_text(domain), term[:_TERM_SHOWN], said))
        elif len(self._steps) == _STEP_LIMIT:
            self._steps.append(
                SpfStep(depth, shown_text(domain), "", f"more than {_STEP_LIMIT} steps; the rest is left out")
            )

    # --- records ---

    def _check(self, domain: str, depth: int) -> _Asking[_Found | str]:
        """What the record of a domain says; words if it has none. Raises _Ended."""
        record = yield from self._record(domain, depth)
        if isinstance(record, str):
            self._step(depth, domain, "", record)
            return record
        for mechanism in record.mechanisms:
            matches = yield from self._matches(mechanism, domain, depth)
            self._step(depth, domain, mechanism.text, f"matches: {mechanism.result}" if matches else "does not match")
            if matches:
                return _Found(mechanism.result, domain, mechanism.text, record.exp)
        # SPF-08: only here, where nothing has matched; `all` always does, so beside it there is no redirect.
        if record.redirect is not None:
            return (yield from self._redirected(record.redirect, record.redirect_text, domain, depth))
        self._step(depth, domain, "", "no term matches: neutral")
        return _Found(SpfResult.NEUTRAL, domain)

    def _redirected(self, redirect: MacroString, text: str, domain: str, depth: int) -> _Asking[_Found]:
        self._spend(domain, text)
        expanded = yield from self._expanded(redirect, domain)
        if expanded is None:
            self._step(depth, domain, text, "leads nowhere: the local part is not ASCII")
            return _Found(SpfResult.NEUTRAL, domain)
        target = name_of(expanded)
        self._step(depth, domain, text, f"goes on with {shown_text(expanded)}")
        found = (yield from self._check(target, depth + 1)) if target is not None else "it is no name in the DNS"
        if isinstance(found, str):
            # SPF-08; RFC 7208 6.1. The exp= of this record does not count either way (6.2).
            self._fault(f"{shown_text(text)} leads to no record: {found}", domain, text)
        return found

    def _record(self, domain: str, depth: int) -> _Asking[SpfRecord | str]:
        (answer,) = yield (DnsQuestion(domain, "TXT"),)
        self._trust(answer, f"the TXT records of {shown_text(domain)}", domain)
        texts = records_among(answer.texts)
        if not texts:
            if answer.outcome is DnsOutcome.NO_NAME:
                return f"{shown_text(domain)} does not exist"
            return f"{shown_text(domain)} has no SPF record"
        if len(texts) > 1:
            self._fault(f"{shown_text(domain)} has {len(texts)} SPF records; there may be one", domain)  # SPF-01
        try:
            record = parse_record(texts[0])
        except SpfSyntaxError as error:
            self._fault(f"the SPF record of {shown_text(domain)} is not valid: {error}", domain)
        self._step(depth, domain, "", f"has the record {shown_text(texts[0].decode('ascii'), _RECORD_SHOWN)}")
        return record

    # --- limits and faults ---

    def _spend(self, domain: str, term: str) -> None:
        self._terms += 1
        if self._terms > TERM_LIMIT:  # SPF-02
            self._fault(f"more than {TERM_LIMIT} terms ask the DNS", domain, term)

    def _void(self, domain: str, term: str) -> None:
        self._voids += 1
        if self._voids > self._receiver.void_limit:  # SPF-04: terms, however many queries each of them needs
            last = shown_text(term)
            self._fault(
                f"more than {self._receiver.void_limit} terms ask for what is not there; {last} is the last",
                domain,
                term,
            )

    def _trust(self, answer: LookupAnswer, what: str, domain: str, term: str = "") -> None:
        """SPF-06: an answer that says nothing about the name ends the evaluation."""
        if answer.outcome is DnsOutcome.TROUBLE:
            self._trouble(answer, what, domain, term)

    def _in_time(self, answers: Iterable[LookupAnswer], domain: str, term: str) -> None:
        """SPF-05: where trouble is passed over, the end of all time is not."""
        for answer in answers:
            if answer.late:
                self._trouble(answer, "the names of the client's address", domain, term)

    def _trouble(self, answer: LookupAnswer, what: str, domain: str, term: str) -> NoReturn:
        reason = f"the DNS gave no answer for {what}" + (f": {shown_text(answer.text)}" if answer.text else "")
        raise _Ended(SpfResult.TEMPERROR, reason, domain, term)

    def _fault(self, reason: str, domain: str, term: str = "") -> NoReturn:
        raise _Ended(SpfResult.PERMERROR, reason, domain, term)

    # --- mechanisms ---

    def _matches(self, mechanism: SpfMechanism, domain: str, depth: int) -> _Asking[bool]:
        match mechanism.kind:
            case SpfKind.ALL:
                return True
            case SpfKind.IP4 | SpfKind.IP6:
                assert mechanism.network is not None
                return mechanism.covers(self._client, mechanism.network)
        self._spend(domain, mechanism.text)
        expanded = (yield from self._expanded(mechanism.target, domain)) if mechanism.target else domain
        if expanded is None:
            return False  # SPF-16; RFC 8616 4
        target = name_of(expanded)
        if mechanism.kind is SpfKind.INCLUDE:
            return (yield from self._included(mechanism, target, domain, depth))
        if target is None:
            return False  # RFC 7208 4.8 leaves it open what a term with no name in the DNS means
        match mechanism.kind:
            case SpfKind.A:
                (answer,) = yield (self._address_question(target),)
                return self._is_among(mechanism, (answer,), target, domain)
            case SpfKind.MX:
                return (yield from self._exchanged(mechanism, target, domain))
            case SpfKind.EXISTS:
                (answer,) = yield (DnsQuestion(target, "A"),)  # SPF-12: for an IPv6 client, too (RFC 7208 5.7)
                self._trust(answer, f"the A records of {shown_text(target)}", domain, mechanism.text)
                if not answer.records:
                    self._void(domain, mechanism.text)
                return bool(answer.records)
            case _:
                return (yield from self._named(mechanism, target, domain))

    def _included(self, mechanism: SpfMechanism, target: str | None, domain: str, depth: int) -> _Asking[bool]:
        """SPF-07. What ends the evaluation of the included record ends this one, too (RFC 7208 5.2)."""
        found = (yield from self._check(target, depth + 1)) if target is not None else "it is no name in the DNS"
        if isinstance(found, str):
            self._fault(f"{shown_text(mechanism.text)} leads to no record: {found}", domain, mechanism.text)
        return found.result is SpfResult.PASS

    def _address_question(self, host: str) -> DnsQuestion:
        return DnsQuestion(host, "A" if self._client.version == 4 else "AAAA")

    def _is_among(self, mechanism: SpfMechanism, answers: tuple[LookupAnswer, ...], target: str, domain: str) -> bool:
        """Whether the client is in a network of an address. A host that has it outweighs another without an answer."""
        if any(mechanism.covers(self._client, address) for answer in answers for address in answer.addresses):
            return True
        for answer in answers:
            self._trust(answer, f"the addresses of {shown_text(target)}", domain, mechanism.text)
        if answers and not any(answer.records for answer in answers):
            self._void(domain, mechanism.text)
        return False

    def _exchanged(self, mechanism: SpfMechanism, target: str, domain: str) -> _Asking[bool]:
        (answer,) = yield (DnsQuestion(target, "MX"),)
        self._trust(answer, f"the MX records of {shown_text(target)}", domain, mechanism.text)
        if not answer.hosts:
            self._void(domain, mechanism.text)
            return False
        if len(answer.hosts) > HOST_LIMIT:  # SPF-03
            self._fault(f"{shown_text(target)} has more than {HOST_LIMIT} MX records", domain, mechanism.text)
        hosts = dict.fromkeys(host for _, host in answer.hosts if name_of(host) == host)
        if not hosts:
            return False  # a null MX (RFC 7505): no host, and no fault
        answers = yield tuple(map(self._address_question, hosts))
        return self._is_among(mechanism, answers, target, domain)

    def _named(self, mechanism: SpfMechanism, target: str, domain: str) -> _Asking[bool]:
        names = yield from self._names_of_client(domain, mechanism)
        return any(name == target or name.endswith(f".{target}") for name in names)

    def _names_of_client(self, domain: str, mechanism: SpfMechanism | None = None) -> _Asking[tuple[str, ...]]:
        """The names of the client's address that lead back to it. Trouble finds none (RFC 7208 5.5)."""
        if self._names is None:
            term = mechanism.text if mechanism is not None else ""
            (answer,) = yield (DnsQuestion(self._client.reverse_pointer, "PTR"),)
            self._in_time((answer,), domain, term)
            if mechanism is not None and answer.outcome in (DnsOutcome.NO_NAME, DnsOutcome.NO_DATA):
                self._void(domain, term)
            # SPF-03: of more names the first ten count, and nobody is to blame but the client's network.
            names = tuple(dict.fromkeys(name for name in answer.names[:HOST_LIMIT] if name_of(name) == name))
            answers = (yield tuple(map(self._address_question, names))) if names else ()
            self._in_time(answers, domain, term)
            self._names = tuple(
                name for name, each in zip(names, answers, strict=True) if self._client in each.addresses
            )
        return self._names

    # --- macros ---

    def _expanded(self, macro: MacroString, domain: str) -> _Asking[str | None]:
        values = yield from self._values(macro, domain)
        return expand(macro, values.__getitem__)

    def _values(self, macro: MacroString, domain: str) -> _Asking[dict[str, str]]:
        """The value of each macro letter (RFC 7208 7.2)."""
        letters = letters_of(macro)
        self._local_counted = self._local_counted or not letters.isdisjoint("sl")
        names = (yield from self._names_of_client(domain)) if "p" in letters else ()
        four = self._client.version == 4
        nibbles = ".".join(f"{int(self._client):032X}")
        return {
            "s": f"{self._local}@{self._domain}",
            "l": self._local,
            "o": self._domain,
            "d": domain,
            "i": str(self._client) if four else nibbles,
            "p": _best(names, domain),
            "v": "in-addr" if four else "ip6",
            "h": self._helo,
            "c": str(self._client),
            "r": self._receiver.name,
            "t": str(self._receiver.now),
        }

    def _explanation(self, exp: MacroString, domain: str) -> _Asking[str]:
        """Whatever goes wrong here, the fail stands (RFC 7208 6.2), and no limit counts it (SPF-15)."""
        try:
            expanded = yield from self._expanded(exp, domain)
            name = name_of(expanded) if expanded is not None else None
            if name is None:
                return ""
            (answer,) = yield (DnsQuestion(name, "TXT"),)
            macro = parse_explanation(answer.texts)
            if macro is None:
                return ""
            values = yield from self._values(macro, domain)
        except _Ended:
            return ""
        return explain(macro, values.__getitem__)


def _best(names: tuple[str, ...], domain: str) -> str:
    """Which name `%{p}` is: the domain itself, else one below it, else any (RFC 7208 7.3)."""
    below = (name for name in names if name.endswith(f".{domain}"))
    return domain if domain in names else next(below, names[0] if names else "unknown")
