"""Find out who sent a message, and decide what follows (RFC 8601 with 7208, 6376, 8617 and 9989).

A decision that asks the DNS (`core.lookups`). It asks in two parts. First what hangs on the author domains alone: their
DMARC records, where their organizations begin and whether they exist. Then SPF of both identities, the keys of DKIM and
ARC and the names of the client, side by side. Of the first part the second one leaves nothing to ask but about
identifiers inside of an author's organization. So a sender whose SPF record is slow uses up the time of that, and not
of the policy of the domain that he pretends to be. Where all time is used up nevertheless and DMARC has no result for
it, the message is deferred and not accepted: a stranger can do that on purpose.
"""

from collections.abc import Sequence
from typing import Final, TypeVar

from mailrail.core.arc.chain import ArcOutcome, ArcResult, verify_chain
from mailrail.core.arc.sets import SETS_LIMIT, ArcSet
from mailrail.core.authres.results import ResultsField
from mailrail.core.authres.write import results_field
from mailrail.core.dkim.verify import SIGNATURES_LIMIT, DkimOutcome, DkimResult, verify
from mailrail.core.dmarc.authors import AUTHORS_LIMIT, AuthorDomains, author_domains
from mailrail.core.dmarc.discovery import Discoverer
from mailrail.core.dmarc.disposition import dispose, trusted_forwarder
from mailrail.core.dmarc.evaluate import evaluate
from mailrail.core.dmarc.facts import (
    NO_ARC,
    PASS,
    ArcFact,
    DkimFact,
    SealFact,
    SpfFact,
    ascii_domain,
    sealed_dmarc,
)
from mailrail.core.dmarc.sender import sender_authenticated
from mailrail.core.dmarc.walk import QUERIES_LIMIT
from mailrail.core.lookups import Asking, beside, remembering, together
from mailrail.core.message.header import AUTHOR_FIELDS_LIMIT
from mailrail.core.message_authentication import iprev
from mailrail.core.message_authentication.content import HashedContent
from mailrail.core.message_authentication.iprev import check_names
from mailrail.core.message_authentication.refusal import refusal
from mailrail.core.message_authentication.results import method_results
from mailrail.core.message_authentication.verdict import AuthenticationRules, ClientIdentity, MessageVerdict
from mailrail.core.spf import evaluation
from mailrail.core.spf.evaluation import SpfReceiver, check_host, in_dns
from mailrail.core.spf.identity import helo_identity, mail_from_identity
from mailrail.core.spf.result import SpfIdentity, SpfResult, SpfVerdict

_T = TypeVar("_T")

TIME_LIMIT: Final = 40.0
"""Seconds that whoever drives it gives at least: the 20 of SPF (SPF-05), and as much for what is asked before it and
beside it. A resolver that gives up a question after five seconds leaves SPF its share."""
QUESTION_LIMIT: Final = (
    AUTHORS_LIMIT * (QUERIES_LIMIT + 1)
    + 2 * evaluation.QUESTION_LIMIT
    + SIGNATURES_LIMIT
    + 2 * SETS_LIMIT
    + iprev.QUESTION_LIMIT
    + (1 + SIGNATURES_LIMIT) * QUERIES_LIMIT
)
"""Questions about one message: walks and existence of authors, SPF twice, keys, names, and the walks of identifiers."""


def authenticate(client: ClientIdentity, content: HashedContent, rules: AuthenticationRules) -> Asking[MessageVerdict]:
    """The verdict about a message. Never raises, whatever the message or the DNS says; asks no question twice, and
    QUESTION_LIMIT questions at most."""
    time = _Time()
    return (yield from remembering(time.watching(_authenticated(client, content, rules, time))))


class _Time:
    """Whether all of it is used up."""

    def __init__(self) -> None:
        self.is_over = False

    def watching(self, asking: Asking[_T]) -> Asking[_T]:
        """The same decision, whose answers are looked at."""
        try:
            questions = next(asking)
            while True:
                answers = yield questions
                self.is_over = self.is_over or any(answer.late for answer in answers)
                questions = asking.send(answers)
        except StopIteration as done:
            result: _T = done.value
            return result


def _authenticated(
    client: ClientIdentity, content: HashedContent, rules: AuthenticationRules, time: _Time
) -> Asking[MessageVerdict]:
    client = ClientIdentity(in_dns(client.address), client.helo, client.sender)
    authors = author_domains(content.header.named(b"from", AUTHOR_FIELDS_LIMIT))
    yield from _discovered(authors, rules)
    (spf_helo, spf), ((dkim, arc), names) = yield from beside(
        _spf(client, content, rules), beside(beside(_dkim(content), _arc(content)), check_names(client.address))
    )
    spf_fact = SpfFact(spf.result, spf.domain, spf.reason)
    dkim_facts = [DkimFact(each.outcome, each.domain, each.selector, each.reason) for each in dkim[:SIGNATURES_LIMIT]]
    dmarc = yield from evaluate(authors, spf_fact, dkim_facts, suffixes=rules.suffixes)
    forwarder = trusted_forwarder(rules.trusted_forwarders, client.address, _proven(spf_helo, spf, dkim))
    exceptions = (forwarder,) if forwarder is not None else ()
    disposition = dispose(
        dmarc, rules.enforcement, arc=_arc_fact(arc, content.chain.sets, authors), exceptions=exceptions
    )
    sender_domain = client.sender.domain if client.sender is not None else ""
    of_domain = sender_authenticated(spf.domain, spf_fact, dkim_facts, dmarc.verdicts)
    found = method_results(names, spf_helo, spf, client.sender, dkim, arc, dmarc, disposition)
    return MessageVerdict(
        client=client,
        iprev=names,
        spf_helo=spf_helo,
        spf=spf,
        dkim=dkim,
        arc=arc,
        dmarc=dmarc,
        disposition=disposition,
        exceptions=exceptions,
        sender=sender_authenticated(sender_domain, spf_fact, dkim_facts, dmarc.verdicts),
        reply=refusal(rules, dmarc, disposition, spf, of_domain, excepted=bool(exceptions), late=time.is_over),
        results=results_field(rules.hostname, list(found)),
    )


def _discovered(authors: AuthorDomains, rules: AuthenticationRules) -> Asking[None]:
    """Ask for what DMARC needs to know of the authors, whatever else is found; the memory keeps it."""
    discoverer = Discoverer(rules.suffixes)
    yield from beside(
        evaluate(authors, suffixes=rules.suffixes),
        together([discoverer.organization(each) for each in authors.domains]),
    )


def _spf(
    client: ClientIdentity, content: HashedContent, rules: AuthenticationRules
) -> Asking[tuple[SpfVerdict | None, SpfVerdict]]:
    """SPF-11b: HELO beside MAIL FROM, each with a result of its own."""
    receiver = SpfReceiver(ascii_domain(rules.hostname) or "unknown", int(content.received_at), rules.spf_void_limit)

    def checked(identity: SpfIdentity) -> Asking[SpfVerdict]:
        return check_host(identity, client.address, client.helo, receiver)

    of_sender = checked(mail_from_identity(client.sender, client.helo))
    helo = helo_identity(client.helo) if client.sender is not None else None
    if helo is None:
        return None, (yield from of_sender)
    return (yield from beside(checked(helo), of_sender))


def _dkim(content: HashedContent) -> Asking[tuple[DkimResult, ...]]:
    return verify(content.header, content.signatures, content.hashes)


def _arc(content: HashedContent) -> Asking[ArcResult]:
    return verify_chain(content.header, content.chain, content.hashes)


def _proven(spf_helo: SpfVerdict | None, spf: SpfVerdict, dkim: Sequence[DkimResult]) -> list[str]:
    """The domains that took part in sending the message, for certain."""
    proven = [each.domain for each in (spf_helo, spf) if each is not None and each.result is SpfResult.PASS]
    return proven + [each.domain for each in dkim if each.outcome is DkimOutcome.PASS]


def _arc_fact(arc: ArcResult, sets: Sequence[ArcSet], authors: AuthorDomains) -> ArcFact:
    """What the chain says of DMARC, newest set first. A chain that does not hold says nothing (ARC-01a)."""
    if arc.outcome is not ArcOutcome.PASS:
        return NO_ARC
    selectors = {each.instance: each.seal.signature.key.selector for each in sets}
    return ArcFact(
        arc.outcome,
        tuple(
            SealFact(
                each.instance, each.sealer, selectors.get(each.instance, ""), _sealed_dmarc(each.findings, authors)
            )
            for each in reversed(arc.sealed)
        ),
    )


def _sealed_dmarc(findings: ResultsField | None, authors: AuthorDomains) -> str:
    """What a sealer had found of DMARC: pass only if it says so of every author that the message has now."""
    said = [sealed_dmarc(findings, author) for author in authors.domains]
    return next((each for each in said if each != PASS), PASS if said and not authors.more else "")
