"""Between what is stored or said of a recipient and what the core judges: each way, without deciding anything."""

from collections.abc import Iterable
from dataclasses import dataclass

from mailrail.core.delivery.outcome import BackoffReason, Outcome, Scope, Verdict, backoff_reason
from mailrail.core.dsn.due import Asked
from mailrail.core.smtp.reply import EnhancedCode
from mailrail.pb.queue.v1 import lease_pb2, types_pb2
from mailrail_queue.delivery.ports import AttemptRecipient
from mailrail_queue.routing.router import RecipientFacts, domain_of
from mailrail_queue.store.rows import dialled_of, recipient_of
from mailrail_queue.store.waiting import Waiting

_MOST_HOSTS = 16
"""Hosts whose dialled addresses are kept with a recipient."""
_MOST_IPS = 16
"""Addresses kept of such a host."""
MOST_OCTETS = 512
"""Of a line of a reply (types.proto, Reply)."""
NOT_ATTEMPTED = (types_pb2.OUTCOME_NOT_ATTEMPTED, types_pb2.OUTCOME_CANCELLED)


def facts_of(waiting: Waiting) -> RecipientFacts:
    """What routing may look at, of a stored recipient."""
    return RecipientFacts(
        domain_of(waiting.address),
        waiting.from_domain,
        waiting.account,
        waiting.origin in (types_pb2.ORIGIN_SUBMISSION, types_pb2.ORIGIN_SYSTEM),
        waiting.is_local,
        waiting.gateway,
        waiting.override_transport,
        waiting.lacking,
        recipient_of(waiting.envelope_recipient, waiting.address).reports,
    )


def asked_of(keywords: Iterable[str]) -> int:
    """NOTIFY as a number. Unknown words are ignored: ingress refuses them."""
    asked = Asked.UNSET
    for word in keywords:
        asked |= Asked.__members__.get(word.upper(), Asked.UNSET)
    return int(asked)


def attempt_recipient_of(waiting: Waiting, *, attempts: int | None = None) -> AttemptRecipient:
    """A stored recipient as an attempt carries it; `attempts` counts the attempt that is meant."""
    rcpt = recipient_of(waiting.envelope_recipient, waiting.address)
    return AttemptRecipient(
        id=waiting.id,
        message_id=waiting.message_id,
        shard=waiting.shard,
        version=waiting.version,
        attempts=waiting.attempts if attempts is None else attempts,
        interruptions=waiting.interruptions,
        accepted=waiting.queued,
        uncounted_seconds=waiting.uncounted_seconds,
        null_sender=waiting.from_domain == "",
        sender_authentication=waiting.sender_authentication,
        delayed_dsn_decided=waiting.delayed_dsn_decided,
        tls_requirement=waiting.tls_requirement,
        address=waiting.address,
        facts=facts_of(waiting),
        notify=asked_of(rcpt.notify),
        envelope_recipient=rcpt.SerializeToString(),
        dialled_hosts=waiting.dialled_hosts,
        request=waiting.request,
        request_reason=waiting.request_reason,
    )


def status_of(attempt: types_pb2.Attempt, fallback: str) -> EnhancedCode:
    """What we judge: the status of an attempt, or the code of our own words in it, or one that fits.

    It is what the sender is told: of a host that TLS refused, what was lacking (RTLS-17b).
    """
    try:
        return EnhancedCode.parse(attempt.status or attempt.reply.enhanced)
    except ValueError:
        return EnhancedCode.parse(fallback)


def as_said(attempt: types_pb2.Attempt) -> str:
    """The reply of an attempt on one line, as it was said: code, enhanced code where there is one, text."""
    reply = attempt.reply
    words = (str(reply.code) if reply.code else "", reply.enhanced if reply.remote else "", *reply.lines)
    return " ".join(word for word in words if word)


def backoff_reason_of(last_error: types_pb2.Attempt) -> BackoffReason:
    """Why a site or transport is in backoff, by the attempt that is to blame."""
    reply = last_error.reply
    return backoff_reason(reply.code if reply.remote else 0, last_error.status or reply.enhanced)


def not_dialled(last: types_pb2.Attempt) -> types_pb2.Attempt:
    """An attempt that counts and dialled nothing, because `last` put its site into backoff. What was said then is
    quoted in our own words: nobody has said it again, and not of this recipient."""
    attempt = types_pb2.Attempt(status=str(status_of(last, "4.4.1")))
    said = as_said(last)
    if last.reply.remote and last.reply.code:
        said = f"{last.mx_host or 'the server'} said {said}"
    attempt.reply.enhanced = attempt.status
    attempt.reply.lines.append(f"not dialled while the site is in backoff: {said}"[:MOST_OCTETS])
    return attempt


def verdict_of(result: lease_pb2.RecipientResult) -> Verdict:
    """What outbound found, as the core judges it."""
    attempt = result.attempt
    match attempt.outcome:
        case types_pb2.OUTCOME_DELIVERED | types_pb2.OUTCOME_CAPTURED:
            outcome, fallback = Outcome.DELIVERED, "2.0.0"
        case types_pb2.OUTCOME_RELAYED:
            outcome, fallback = Outcome.RELAYED, "2.0.0"
        case types_pb2.OUTCOME_FAILED:
            outcome, fallback = Outcome.FAILED, "5.0.0"
        case _:
            outcome, fallback = Outcome.DEFERRED, "4.0.0"
    scope = Scope.SITE if result.site_failure else Scope.TRANSPORT if result.transport_failure else Scope.RECIPIENT
    text = " ".join(attempt.reply.lines)
    return Verdict(outcome, status_of(attempt, fallback), text, None, scope, result.dsn_passed_on)


def dialled_before(before: bytes | None, result: lease_pb2.DeliveryResult) -> bytes | None:
    """What was dialled until now, host by host, oldest first, for the order of addresses (reference F2)."""
    if not result.dialled_hosts:
        return None
    hosts = dialled_of(before)
    for found in result.dialled_hosts:
        ips = [*hosts.pop(found.host, ()), *found.ips]  # to the end: hosts that are dialled no more fall off
        hosts[found.host] = ips[-_MOST_IPS:]
    kept = lease_pb2.DeliveryResult()
    for name in list(hosts)[-_MOST_HOSTS:]:
        kept.dialled_hosts.add(host=name, ips=hosts[name])
    return kept.SerializeToString()


@dataclass(slots=True)
class SiteVerdict:
    """What the results of one delivery say of its site and its transport."""

    dialled: bool = False
    blamed: types_pb2.Attempt | None = None
    """The newest attempt that failed for the site's or the transport's trouble."""
    transport_failed: bool = False
    """The trouble was the transport's own."""

    @property
    def error(self) -> str:
        """What went wrong, in words."""
        return (as_said(self.blamed)[:500] or self.blamed.reason) if self.blamed is not None else ""

    @property
    def last_error(self) -> bytes:
        """The attempt that is blamed, as a site keeps it."""
        return self.blamed.SerializeToString() if self.blamed is not None else b""


def site_verdict_of(result: lease_pb2.DeliveryResult) -> SiteVerdict:
    """Whether anything was dialled, and which attempt the site or its transport is to blame for."""
    verdict = SiteVerdict()
    for found in result.recipients:
        if found.attempt.outcome not in NOT_ATTEMPTED:
            verdict.dialled = True
        if found.transport_failure or found.site_failure:
            verdict.blamed = found.attempt
            verdict.transport_failed |= found.transport_failure
    return verdict
