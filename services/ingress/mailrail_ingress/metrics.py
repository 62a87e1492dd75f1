"""Every series of ingress. Label values come from closed lists, each explained here."""

from functools import cache

from prometheus_client import Counter, Gauge, Histogram

CONNECTIONS = Counter(
    "mailrail_ingress_connections",
    "Connections by protocol of the listener (mx, submission, submissions) and what became of them at the start: "
    "accepted, too-many (of the process or of one address), proxy (no valid PROXY header)",
    ["protocol", "result"],
)
OPEN = Gauge("mailrail_ingress_connections_open", "SMTP connections now, by protocol of the listener", ["protocol"])
ENDS = Counter(
    "mailrail_ingress_sessions",
    "Sessions that ended, by how: quit, lost (the client went away), timeout, errors, shutdown, refused (a bare line "
    "end, an endless line, guessing), tls (handshake failed)",
    ["end"],
)
MESSAGES = Counter(
    "mailrail_ingress_messages",
    "Messages that were sent whole, by origin (mx, submission) and result: accepted, refused (5yz), deferred (4yz), "
    "abandoned (begun, and not finished by the client)",
    ["origin", "result"],
)
OCTETS = Counter("mailrail_ingress_octets", "Octets of accepted messages, what we add included", ["origin"])
RECIPIENTS = Counter(
    "mailrail_ingress_recipients",
    "RCPT commands by origin (mx, submission) and result: accepted, refused (5yz), deferred (4yz)",
    ["origin", "result"],
)
SENDERS = Counter(
    "mailrail_ingress_senders",
    "MAIL commands by origin (mx, submission) and result: accepted, refused (5yz), deferred (4yz)",
    ["origin", "result"],
)
LOGINS = Counter(
    "mailrail_ingress_logins",
    "Authentications by mechanism and result: accepted, refused, malformed, throttled",
    ["mechanism", "result"],
)


@cache
def _child(counter: Counter, *labels: str) -> Counter:
    return counter.labels(*labels)


def count(counter: Counter, *labels: str, by: int = 1) -> None:
    """Add to a series. Finding it by its labels costs more than adding, so those found are kept: labels are few."""
    _child(counter, *labels).inc(by)


TLS = Counter(
    "mailrail_ingress_tls_handshakes", "TLS handshakes by version (TLSv1.2, TLSv1.3, none when it failed)", ["version"]
)
COMMIT_SECONDS = Histogram(
    "mailrail_ingress_commit_seconds",
    "From the end of a message to the queue's answer",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
)
QUEUE_STREAM = Gauge("mailrail_ingress_queue_stream_up", "1 while a stream to the queue is open, else 0")
QUEUE_PENDING = Gauge("mailrail_ingress_queue_pending", "Commits handed over and not answered yet")
