"""Every series of ingress. Label values come from closed lists, each explained here."""

from itertools import product

from prometheus_client import Gauge

from mailrail.core.arc.chain import ArcOutcome
from mailrail.core.dkim.verify import DkimOutcome
from mailrail.core.dmarc.disposition import DmarcAction
from mailrail.core.dmarc.evaluate import DmarcResult
from mailrail.core.message_authentication.iprev import IprevResult
from mailrail.core.message_authentication.verdict import MessageVerdict
from mailrail.core.spf.result import SpfResult
from mailrail.kit.metrics import Level, SnapshotGauge, Spread, Tally

_PROTOCOLS = ("mx", "submission", "submissions")
_ORIGINS = ("mx", "submission")
_VERDICTS = ("accepted", "refused", "deferred")

CONNECTIONS = Tally(
    "mailrail_ingress_connections",
    "Connections by protocol of the listener (mx, submission, submissions) and result: accepted, too_many (open to "
    "the process, from one address, or under stress from one network), too_often (new ones from one address within a "
    "minute), proxy (the PROXY header is missing or invalid)",
    ["protocol", "result"],
    known=product(_PROTOCOLS, ("accepted", "too_many", "too_often", "proxy")),
)
OPEN = Level(
    "mailrail_ingress_connections_open",
    "Open SMTP connections, by protocol of the listener",
    ["protocol"],
    known=product(_PROTOCOLS),
)
LISTENERS = SnapshotGauge(
    "mailrail_ingress_listeners",
    "Listeners of the revision in force, by gateway (NAMESPACE/NAME), listener and state (open, failed): 1 for the "
    "state that it is in, else 0. failed: its port is not open, or not at every address",
    ["gateway", "listener", "state"],
)
HANDSHAKES = Level(
    "mailrail_ingress_tls_handshakes_open",
    "TLS handshakes now on listeners where TLS comes first: these connections are not among the open ones yet",
)
STARTTLS_HANDSHAKES = Level(
    "mailrail_ingress_starttls_handshakes_open",
    "TLS handshakes now after STARTTLS or a PROXY header: these connections are among the open ones",
)
HANDSHAKES_DISPLACED = Tally(
    "mailrail_ingress_tls_handshakes_displaced",
    "Unfinished TLS handshakes that were ended for newer ones, because MAILRAIL_INGRESS_HANDSHAKES were under way or "
    "the process was full",
)
ENDS = Tally(
    "mailrail_ingress_sessions",
    "Sessions that ended, by reason: quit, lost (the client disconnected), timeout, errors (too many bad commands), "
    "shutdown, refused (a bare line end, an endless line, too many failed logins), tls (the handshake failed), stress "
    "(a stranger was idle for ten seconds, or content dripped, while connections were scarce), displaced (it was idle, "
    "and another client needed its place)",
    ["end"],
    known=product(("quit", "lost", "timeout", "errors", "shutdown", "refused", "tls", "stress", "displaced")),
)
STRESS = Level(
    "mailrail_ingress_stress",
    "1 while connections are scarce: from seven tenths of the gateway's limits.connections on, until they fall below "
    "six",
)
SIGNATURES = Tally(
    "mailrail_ingress_dkim_signed",
    "Messages of accounts whose domain has DKIM keys that sign, by result: signed, failed (no key could be read, or "
    "the header has too many fields: the message goes unsigned)",
    ["result"],
    known=product(("signed", "failed")),
)
MESSAGES = Tally(
    "mailrail_ingress_messages",
    "Messages by origin (mx, submission) and result: accepted, refused (5yz), deferred (4yz), abandoned (the client "
    "did not finish it)",
    ["origin", "result"],
    known=product(_ORIGINS, (*_VERDICTS, "abandoned")),
)
OCTETS = Tally(
    "mailrail_ingress_accepted_bytes",
    "Octets of accepted messages, including the fields that we add",
    ["origin"],
    known=product(_ORIGINS),
)
RECIPIENTS = Tally(
    "mailrail_ingress_recipients",
    "RCPT commands by origin (mx, submission) and result: accepted, refused (5yz), deferred (4yz)",
    ["origin", "result"],
    known=product(_ORIGINS, _VERDICTS),
)
TLS_REQUIREMENTS = Tally(
    "mailrail_ingress_tls_requirements",
    "Accepted messages that demand something of TLS on their way, by origin (mx, submission) and requirement: required "
    "(MAIL said REQUIRETLS), no (the header says TLS-Required: No)",
    ["origin", "requirement"],
    known=product(_ORIGINS, ("required", "no")),
)
SENDERS = Tally(
    "mailrail_ingress_senders",
    "MAIL commands by origin (mx, submission) and result: accepted, refused (5yz), deferred (4yz)",
    ["origin", "result"],
    known=product(_ORIGINS, _VERDICTS),
)
LOGINS = Tally(
    "mailrail_ingress_logins",
    "Authentications by mechanism and result: accepted, refused, malformed, throttled (too many failed from the "
    "address, or with the login), unavailable (ingress has no secret for it)",
    ["mechanism", "result"],
    known=product(("PLAIN", "LOGIN"), ("accepted", "refused", "malformed", "throttled", "unavailable")),
)

TLS = Tally(
    "mailrail_ingress_tls_handshakes",
    "TLS handshakes by version (TLSv1.2, TLSv1.3, none for a failed handshake)",
    ["version"],
    known=product(("TLSv1.2", "TLSv1.3", "none")),
)
COMMIT_SECONDS = Spread(
    "mailrail_ingress_commit_seconds",
    "Seconds from the end of a message to the queue's answer",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
)
UNKNOWN = Tally(
    "mailrail_ingress_commits_unknown",
    "Messages answered 451 although they may be stored, because no queue told what became of them (LSE-08 c); the log "
    "has the id of each",
)
PAUSES = Tally(
    "mailrail_ingress_pauses",
    "Times reading from a client was paused, by reason: credit (the queue grants none), memory (ingress holds more "
    "mail than MAILRAIL_INGRESS_HELD_OCTETS), storage (as much is stored of large messages as may be before they are "
    "whole, and one of them will be soon)",
    ["reason"],
    known=product(("credit", "memory", "storage")),
)
UPLOADS_REFUSED = Tally(
    "mailrail_ingress_uploads_refused",
    "Large messages refused with 452 because too many octets are uploaded and not committed, by the limit: client "
    "(MAILRAIL_INGRESS_CLIENT_UPLOAD_OCTETS), all (MAILRAIL_INGRESS_UPLOAD_OCTETS)",
    ["limit"],
    known=product(("client", "all")),
)
UPLOADING = Gauge(
    "mailrail_ingress_upload_bytes",
    "Octets of large messages uploaded to the queue and not committed; an upload that was given up counts for one "
    "more minute",
)
EVALUATIONS_DROPPED = Tally(
    "mailrail_ingress_dmarc_evaluations_dropped",
    "Messages that no DMARC report will tell of: MAILRAIL_INGRESS_DMARC_OCTETS were full while dmarc was away",
)
HELD = Gauge("mailrail_ingress_held_bytes", "Octets of mail held for the queue, over all connections")
QUEUE_STREAM = Gauge("mailrail_ingress_queue_stream_up", "1 while a stream to the queue is open, else 0")
QUEUE_PENDING = Gauge("mailrail_ingress_queue_pending", "Commits sent to the queue and not answered yet")
AUTHENTICATION = Tally(
    "mailrail_ingress_authentication_results",
    "Results of the checks who sent a stranger's message, by method and result, in the words of RFC 8601: iprev, spf ("
    "of MAIL FROM), dkim (each signature; none without any), arc and dmarc (of the message)",
    ["method", "result"],
    known=[
        *product(("iprev",), (each.value for each in IprevResult)),
        *product(("spf",), (each.value for each in SpfResult)),
        *product(("dkim",), ("none", *(each.value for each in DkimOutcome if each != "none"))),
        *product(("arc",), (each.value for each in ArcOutcome)),
        *product(("dmarc",), (each.value for each in DmarcResult)),
    ],
)
AUTHENTICATED = Tally(
    "mailrail_ingress_authenticated_messages",
    "Messages for which it was asked who sent them, by what followed: accept, quarantine (into Junk), reject (5yz), "
    "defer (4yz), busy (too many were being checked), error (a fault of ours; the log has it)",
    ["action"],
    known=product((*(each.value for each in DmarcAction), "busy", "error")),
)
AUTHENTICATION_SECONDS = Spread(
    "mailrail_ingress_authentication_seconds",
    "Seconds from the end of a message until the DNS had said who sent it",
    buckets=(0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 40),
)
AUTHENTICATING = Gauge(
    "mailrail_ingress_authentications_open",
    "Messages for which the DNS is being asked who sent them; MAILRAIL_INGRESS_AUTHENTICATIONS is the limit",
)


def count_verdict(verdict: MessageVerdict, seconds: float) -> None:
    """Count what was found about who sent a message."""
    dmarc = verdict.dmarc.result
    AUTHENTICATION.inc("iprev", verdict.iprev.result.value)
    AUTHENTICATION.inc("spf", verdict.spf.result.value)
    for each in verdict.evaluated_dkim:
        AUTHENTICATION.inc("dkim", each.outcome.value)
    if not verdict.dkim:
        AUTHENTICATION.inc("dkim", "none")
    AUTHENTICATION.inc("arc", verdict.arc.outcome.value)
    AUTHENTICATION.inc("dmarc", dmarc.value if dmarc is not None else "none")
    AUTHENTICATED.inc(verdict.action.value)
    AUTHENTICATION_SECONDS.observe(seconds)


class Mail:
    """The numbers that each message of an origin adds to, looked up once."""

    __slots__ = ("messages", "octets", "recipients", "senders")

    def __init__(self, origin: str) -> None:
        self.senders = SENDERS.of(origin, "accepted")
        self.recipients = RECIPIENTS.of(origin, "accepted")
        self.messages = MESSAGES.of(origin, "accepted")
        self.octets = OCTETS.of(origin)


class Connections:
    """The numbers that each connection of a listener adds to."""

    __slots__ = ("accepted", "open")

    def __init__(self, protocol: str) -> None:
        self.accepted = CONNECTIONS.of(protocol, "accepted")
        self.open = OPEN.of(protocol)
