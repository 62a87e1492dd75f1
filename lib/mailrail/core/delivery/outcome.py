"""What a reply or a failure means for a recipient, and whose trouble it was (RFC 5321 4.2.1, 4.5.4; SOUT-10, -13).

A 4yz, a timeout or a refused connection is a value here, never an exception. Two questions are answered at once: what
becomes of the recipient (`Outcome`), and who else should be spared (`Scope`): a greeting of 421 says nothing about the
recipient and all about the site; 535 from our own smarthost says nothing about the destination, so it never bounces
anybody's mail (AUTH-09, reference H29): it is a temporary 4.3.5 of the transport.
"""

from dataclasses import dataclass
from enum import StrEnum

from mailrail.core.smtp.answer import AFTER_MAIL, OUR_OWN, SET_UP, Stage, Trouble
from mailrail.core.smtp.reply import EnhancedCode, Reply


class Outcome(StrEnum):
    """What an attempt did to a recipient."""

    DELIVERED = "delivered"  # final delivery (mailbox, LMTP), or a hop that took over our DSN parameters
    RELAYED = "relayed"  # taken by a next hop without DSN (RFC 3461 6.2)
    DEFERRED = "deferred"
    FAILED = "failed"


# Asked for each message: reading a member off its enum costs four times as much (CPython 3.11).
_DELIVERED, _RELAYED = Outcome.DELIVERED, Outcome.RELAYED


class Scope(StrEnum):
    """Whose trouble a failure is."""

    RECIPIENT = "recipient"
    SITE = "site"  # its window shrinks, then it backs off (SHD-04, SHD-05)
    TRANSPORT = "transport"  # the whole transport backs off, one probe at a time (design 4, Attempt)


_RECIPIENT = Scope.RECIPIENT


_END = Stage.END


class HopKind(StrEnum):
    """What kind of server answered."""

    FOREIGN = "foreign"  # an MX, dialled directly or through a proxy: its word on policy is the destination's
    OWN = "own"  # a smarthost or submission server that our configuration names
    FINAL = "final"  # LMTP: delivery there is final delivery


@dataclass(frozen=True, slots=True)
class _Meaning:
    status: EnhancedCode
    text: str
    scope: Scope = Scope.RECIPIENT


def _means(status: str, text: str, scope: Scope = Scope.RECIPIENT) -> _Meaning:
    return _Meaning(EnhancedCode.parse(status), text, scope)


_CANNOT_CONVERT = "the content cannot be converted for the next hop"
_MEANINGS: dict[Trouble, _Meaning] = {
    Trouble.DNS: _means("4.4.3", "the DNS did not answer for the destination", Scope.SITE),
    Trouble.NO_SUCH_DOMAIN: _means("5.1.2", "the destination domain does not exist"),
    Trouble.NULL_MX: _means("5.1.10", "the destination domain does not accept mail (null MX)"),
    Trouble.NO_ADDRESS: _means("5.4.4", "none of the destination's MX hosts can be used"),
    # SOUT-05 is about what is wrong with the destination; here our own configuration keeps us from it.
    Trouble.NO_FAMILY: _means("4.3.5", "our transport may not dial the addresses that the destination has", Scope.SITE),
    Trouble.PRIVATE_ADDRESS: _means("4.3.5", "direct delivery may not dial the private addresses of the destination"),
    Trouble.LOOP: _means("5.4.6", "the destination's MX is this system: mail would loop"),
    Trouble.UNREACHABLE: _means("4.4.1", "no connection to the next hop", Scope.SITE),
    Trouble.TIMEOUT: _means("4.4.2", "the next hop did not answer in time", Scope.SITE),
    Trouble.CLOSED: _means("4.4.2", "the next hop closed the connection", Scope.SITE),
    Trouble.PROTOCOL: _means("4.4.2", "the next hop does not speak SMTP", Scope.SITE),
    Trouble.TLS: _means("4.7.5", "TLS with the next hop could not be established or verified", Scope.SITE),
    Trouble.REQUIRETLS: _means("5.7.30", "no server of the destination supports REQUIRETLS"),
    Trouble.TLS_DEMAND: _means("5.7.10", "the TLS that this message requires is not available"),
    Trouble.TLS_FLOOR: _means("5.7.5", "the next hop lacks the security that is demanded here"),
    # Of this message, or this sender: the site may be well for all others.
    Trouble.TLS_POLICY: _means("4.7.5", "the TLS that is demanded for the destination is not available"),
    Trouble.AUTH: _means("4.3.5", "we cannot log in to our next hop", Scope.TRANSPORT),
    Trouble.PROXY: _means("4.3.5", "the proxy of the transport did not connect", Scope.TRANSPORT),
    Trouble.TOO_LARGE: _means("5.3.4", "the message exceeds the size limit of the next hop"),
    Trouble.NEEDS_SMTPUTF8: _means("5.6.7", "the next hop does not support internationalized mail (SMTPUTF8)"),
    Trouble.UTF8_HEADER: _means("5.6.9", "the next hop does not accept a header with UTF-8 (SMTPUTF8)"),
    Trouble.NEEDS_8BITMIME: _means("5.6.3", _CANNOT_CONVERT),
    Trouble.NEEDS_BINARYMIME: _means("5.6.3", _CANNOT_CONVERT),
    Trouble.UNCONVERTIBLE: _means("5.6.3", _CANNOT_CONVERT),
    Trouble.MISSING: _means("4.3.5", "the transport that should deliver this is missing or cannot be used"),
    Trouble.LEASE: _means("4.4.5", "the time of the attempt ran out"),
    Trouble.CANCELLED: _means("4.4.5", "cancelled by an administrator"),
    Trouble.FAULT: _means("4.3.0", "an internal error"),
}

_OUR_FAULT = EnhancedCode(4, 3, 5)
_AUTHENTICATION_CODES = frozenset({530, 534, 535, 538})
_TLS_OR_AUTH = frozenset({Stage.STARTTLS, Stage.HANDSHAKE, Stage.AUTH})


class BackoffReason(StrEnum):
    """Why a transport is in backoff, for metrics and the condition `Healthy`."""

    LOGIN_REFUSED = "login_refused"
    REFUSED = "refused"
    SETUP_FAILED = "setup_failed"  # TLS, the proxy, or no login that both sides support
    NO_ANSWER = "no_answer"


def backoff_reason(code: int, status: str) -> BackoffReason:
    """The reason of a failure with this reply (0: there was none), which we judged with this enhanced code."""
    if code in _AUTHENTICATION_CODES:
        return BackoffReason.LOGIN_REFUSED
    if code:
        return BackoffReason.REFUSED
    return BackoffReason.SETUP_FAILED if status == str(_OUR_FAULT) else BackoffReason.NO_ANSWER


GENERAL_REFUSALS = frozenset({521, 554})
"""Codes of a greeting that speak for the whole destination when every host says one of them (RFC 7504)."""


@dataclass(slots=True)
class Verdict:
    """What an attempt means for one recipient. Not frozen, though it never changes: that would cost five times as
    much, for each message."""

    outcome: Outcome
    status: EnhancedCode
    text: str
    """In words, for people; not sanitised where it quotes a server."""
    reply: Reply | None = None
    """What the remote server said, if one did; the DSN's Diagnostic-Code."""
    scope: Scope = Scope.RECIPIENT
    dsn_passed_on: bool = False
    """The hop announced DSN and took our parameters: success notifications are its business (DSN-04)."""

    @property
    def final(self) -> bool:
        """Nothing more is tried."""
        return self.outcome is not Outcome.DEFERRED


def of_trouble(
    trouble: Trouble, *, stage: Stage = Stage.CONNECT, hop: HopKind = HopKind.FOREIGN, detail: str = ""
) -> Verdict:
    """The verdict on a failure that no server put into a reply."""
    meaning = _MEANINGS[trouble]
    status, scope = meaning.status, meaning.scope
    if hop is not HopKind.FOREIGN and trouble in (Trouble.TLS, Trouble.AUTH):
        status, scope = _OUR_FAULT, Scope.TRANSPORT  # design 4: bad TLS of our own smarthost is never a bounce
    elif scope is Scope.SITE and stage in AFTER_MAIL:
        # Lost while this message was under way: perhaps the message did it, and the site is well for all others.
        scope = Scope.RECIPIENT
    outcome = Outcome.FAILED if status.category == 5 else Outcome.DEFERRED
    if trouble in OUR_OWN:
        text = detail or meaning.text
    else:
        text = f"{meaning.text}: {detail}" if detail else meaning.text
    return Verdict(outcome, status, text, scope=scope)


def of_reply(
    reply: Reply,
    *,
    stage: Stage,
    hop: HopKind = HopKind.FOREIGN,
    passes_dsn: bool = False,
    every_host: bool = False,
) -> Verdict:
    """The verdict on the reply that decided about a recipient.

    `passes_dsn`: the hop announced DSN. `every_host`: before MAIL, all hosts of the destination answered 521 or 554,
    the only greetings that are final (SOUT-13). Of all positive replies only a 2yz to the final dot is delivery
    (RFC 5321 4.2.5); any other that comes here decides nothing and is a server that does not speak SMTP.
    """
    if reply.code < 400:
        if stage is not _END or reply.code >= 300:
            return of_trouble(Trouble.PROTOCOL, stage=stage, hop=hop, detail=f"it answered {reply}")
        outcome = _DELIVERED if passes_dsn or hop is HopKind.FINAL else _RELAYED
        return Verdict(outcome, reply.status, reply.text, reply, _RECIPIENT, passes_dsn)
    if hop is not HopKind.FOREIGN and (stage in _TLS_OR_AUTH or reply.code in _AUTHENTICATION_CODES):
        return Verdict(Outcome.DEFERRED, _OUR_FAULT, f"our next hop refuses us: {reply}", reply, Scope.TRANSPORT)
    if reply.code == 421:
        return _deferred(reply, Scope.SITE)
    if stage in SET_UP:
        if every_host and reply.code in GENERAL_REFUSALS and hop is HopKind.FOREIGN:
            return Verdict(Outcome.FAILED, reply.status, reply.text, reply)
        return _deferred(reply, Scope.SITE)
    if reply.transient or (stage is Stage.RCPT and reply.code == 552):  # 552: too many recipients, by history
        return _deferred(reply, Scope.RECIPIENT)
    # Also 530 of a server that insists on TLS, which could not be made and which the message does not demand (RTLS-23).
    return Verdict(Outcome.FAILED, reply.status, reply.text, reply)


def _deferred(reply: Reply, scope: Scope) -> Verdict:
    status = reply.status
    if status.category == 5:  # temporary by our rules: class and permanence agree (reference H42)
        status = EnhancedCode(4, status.subject, status.detail)
    return Verdict(Outcome.DEFERRED, status, reply.text, reply, scope)
