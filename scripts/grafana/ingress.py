"""The dashboard `Mailrail / Ingress`."""

from grafana.panels import LESS_IS_BAD, Dashboard, Panel, Query, Row, Unit, each, processes, rate, split
from grafana.shared import COMMIT

DASHBOARD = Dashboard(
    "mailrail-ingress",
    "Mailrail / Ingress",
    "SMTP in: connections, logins, what was said to whom, and how long the queue takes to answer.",
    (
        Row(
            "Connections",
            (
                split(
                    "Connections, by protocol and result",
                    "too-many: a limit of the process or of one address; proxy: no valid PROXY header.",
                    "mailrail_ingress_connections_total",
                    "protocol",
                    "result",
                ),
                Panel(
                    "Open connections",
                    "By protocol of the listener.",
                    (Query("sum by (protocol) (mailrail_ingress_connections_open)", "{{protocol}}"),),
                    stacked=True,
                ),
                split(
                    "Sessions, by end",
                    "lost: the client went away; errors: too many of them; refused: a bare line end or an endless "
                    "line; tls: the handshake failed.",
                    "mailrail_ingress_sessions_total",
                    "end",
                ),
                split(
                    "TLS handshakes, by version",
                    "none: it failed.",
                    "mailrail_ingress_tls_handshakes_total",
                    "version",
                ),
            ),
        ),
        Row(
            "Mail",
            (
                split(
                    "Messages, by origin and result",
                    "Sent whole; abandoned: begun, and not finished by the client.",
                    "mailrail_ingress_messages_total",
                    "origin",
                    "result",
                ),
                Panel(
                    "Octets of accepted messages",
                    "What we add included.",
                    (Query(f"sum by (origin) ({rate('mailrail_ingress_octets_total')})", "{{origin}}"),),
                    Unit.BYTE_RATE,
                    stacked=True,
                ),
                split(
                    "Recipients (RCPT), by result",
                    "refused: no such user, or no relaying.",
                    "mailrail_ingress_recipients_total",
                    "origin",
                    "result",
                ),
                split(
                    "Senders (MAIL), by result",
                    "refused: not allowed, too large, or not logged in; deferred: a limit, or our trouble.",
                    "mailrail_ingress_senders_total",
                    "origin",
                    "result",
                ),
                split(
                    "Logins, by mechanism and result",
                    "refused: wrong name or password; throttled: an address that guessed too often.",
                    "mailrail_ingress_logins_total",
                    "mechanism",
                    "result",
                ),
                COMMIT,
            ),
        ),
        Row(
            "To the queue",
            (
                each(
                    "Stream to the queue",
                    "1 while a stream is open. Without one mail is answered 451.",
                    "mailrail_ingress_queue_stream_up",
                    Unit.BOOLEAN,
                    LESS_IS_BAD,
                ),
                each(
                    "Commits without an answer yet",
                    "A steady rise: the queue, or Postgres, does not keep up.",
                    "mailrail_ingress_queue_pending",
                ),
                each(
                    "Mail that is kept until the queue takes it",
                    "Past MAILRAIL_INGRESS_HELD_OCTETS (64 MiB) clients with more than their share have to wait.",
                    "mailrail_ingress_held_octets",
                    Unit.BYTES,
                ),
                each(
                    "Large messages on their way",
                    "Uploaded and not committed, of MAILRAIL_INGRESS_UPLOAD_OCTETS (2 GiB) a process.",
                    "mailrail_ingress_upload_octets",
                    Unit.BYTES,
                ),
                split(
                    "Large messages put off for too much on its way",
                    "client: one client's bound is reached, all: that of the process. Answered 452.",
                    "mailrail_ingress_uploads_refused_total",
                    "bound",
                ),
                split(
                    "Clients that had to wait for room",
                    "credit: the queue takes no more of a message. memory: too much is kept.",
                    "mailrail_ingress_pauses_total",
                    "reason",
                ),
            ),
        ),
        processes("ingress"),
    ),
)
