"""The dashboard `Mailrail / Ingress`."""

from grafana.panels import LESS_IS_BAD, Dashboard, Panel, Query, Row, Unit, each, latency, processes, rate, split
from grafana.shared import COMMIT

DASHBOARD = Dashboard(
    "mailrail-ingress",
    "Mailrail / Ingress",
    "SMTP in: connections, logins, replies to clients, and how long the queue takes to answer.",
    (
        Row(
            "Connections",
            (
                split(
                    "Connections, by protocol and result",
                    "too_many: a limit of the process or of one address, under stress of one network; proxy: the PROXY "
                    "header is missing or invalid.",
                    "mailrail_ingress_connections_total",
                    "protocol",
                    "result",
                ),
                Panel(
                    "Open connections",
                    "By protocol of the listener; handshake: connections whose TLS handshake is not done yet.",
                    (
                        Query("sum by (protocol) (mailrail_ingress_connections_open)", "{{protocol}}"),
                        Query("sum(mailrail_ingress_tls_handshakes_open)", "handshake"),
                    ),
                    stacked=True,
                ),
                Panel(
                    "Listeners that are not open",
                    "By gateway and listener: 1 while at least one ingress process cannot open the port.",
                    (
                        Query(
                            'max by (gateway, listener) (mailrail_ingress_listeners{state="failed"})',
                            "{{gateway}} {{listener}}",
                        ),
                    ),
                ),
                split(
                    "Sessions, by end",
                    "lost: the client disconnected; errors: too many bad commands; refused: a bare line end, an "
                    "endless line "
                    "or too many failed logins; tls: the handshake failed; stress, displaced: idle strangers that were "
                    "ended because connections were scarce, or for another client.",
                    "mailrail_ingress_sessions_total",
                    "end",
                ),
                split(
                    "TLS handshakes, by version",
                    "none: the handshake failed.",
                    "mailrail_ingress_tls_handshakes_total",
                    "version",
                ),
                Panel(
                    "Connections are scarce",
                    "1 while a process has seven tenths of its connections or more: idle strangers are ended after ten "
                    "seconds.",
                    (Query("max(mailrail_ingress_stress)", "stress"),),
                ),
                Panel(
                    "Unfinished TLS handshakes",
                    "after STARTTLS: now under way; displaced: ended for newer ones, because there were too many.",
                    (
                        Query("sum(mailrail_ingress_starttls_handshakes_open)", "after STARTTLS"),
                        Query(f"sum({rate('mailrail_ingress_tls_handshakes_displaced_total')})", "displaced a second"),
                    ),
                ),
            ),
        ),
        Row(
            "Mail",
            (
                split(
                    "Messages, by origin and result",
                    "abandoned: the client did not finish the message.",
                    "mailrail_ingress_messages_total",
                    "origin",
                    "result",
                ),
                split(
                    "Signed with DKIM, by result",
                    "Mail of accounts whose domain has keys. failed: no key could be read, or the header has too many "
                    "fields; the message goes unsigned.",
                    "mailrail_ingress_dkim_signed_total",
                    "result",
                ),
                Panel(
                    "Size of accepted messages",
                    "Including the fields that we add.",
                    (Query(f"sum by (origin) ({rate('mailrail_ingress_accepted_bytes_total')})", "{{origin}}"),),
                    Unit.BYTE_RATE,
                    stacked=True,
                ),
                split(
                    "Mail that says what it demands of TLS",
                    "Accepted. required: it came with REQUIRETLS; no: its header says TLS-Required: No.",
                    "mailrail_ingress_tls_requirements_total",
                    "origin",
                    "requirement",
                ),
                split(
                    "Who sent it: what followed, and what was found",
                    "Of mail of strangers. busy: MAILRAIL_INGRESS_AUTHENTICATIONS messages were being checked.",
                    "mailrail_ingress_authenticated_messages_total",
                    "action",
                ),
                split(
                    "Who sent it: results",
                    "By method, in the words of RFC 8601.",
                    "mailrail_ingress_authentication_results_total",
                    "method",
                    "result",
                ),
                latency(
                    "Time to find out who sent a message",
                    "From its end until the DNS had answered; 40 s at most.",
                    "mailrail_ingress_authentication_seconds",
                ),
                each(
                    "Messages whose sender is being asked about",
                    "The limit of a process is MAILRAIL_INGRESS_AUTHENTICATIONS.",
                    "mailrail_ingress_authentications_open",
                ),
                split(
                    "Recipients (RCPT), by result",
                    "refused: unknown recipient, or relaying denied.",
                    "mailrail_ingress_recipients_total",
                    "origin",
                    "result",
                ),
                split(
                    "Senders (MAIL), by result",
                    "refused: not allowed, too large, or not logged in; deferred: a limit, or a fault on our side.",
                    "mailrail_ingress_senders_total",
                    "origin",
                    "result",
                ),
                split(
                    "Logins, by mechanism and result",
                    "refused: wrong name or password; throttled: too many failed logins from the address or for the "
                    "login.",
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
                    "1 while a stream is open. Without one, mail is answered 451.",
                    "mailrail_ingress_queue_stream_up",
                    Unit.BOOLEAN,
                    LESS_IS_BAD,
                ),
                each(
                    "Commits without an answer yet",
                    "If it keeps rising, the queue or Postgres does not keep up.",
                    "mailrail_ingress_queue_pending",
                ),
                Panel(
                    "Outcome unknown",
                    "Messages answered 451 that may be stored all the same: no queue told what became of them.",
                    (Query("sum(mailrail_ingress_commits_unknown_total)", "messages"),),
                ),
                each(
                    "Mail held for the queue",
                    "Above MAILRAIL_INGRESS_HELD_OCTETS (64 MiB) reading from clients with more than their share is "
                    "paused.",
                    "mailrail_ingress_held_bytes",
                    Unit.BYTES,
                ),
                each(
                    "Large messages being uploaded",
                    "Uploaded and not committed. The limit of a process is MAILRAIL_INGRESS_UPLOAD_OCTETS (2 GiB).",
                    "mailrail_ingress_upload_bytes",
                    Unit.BYTES,
                ),
                split(
                    "Large messages answered 452",
                    "Too much is uploaded and not committed. client: the limit of one client is reached; all: the "
                    "limit of the process.",
                    "mailrail_ingress_uploads_refused_total",
                    "limit",
                ),
                split(
                    "Reading from a client was paused",
                    "credit: the queue grants none. memory: ingress holds too much mail.",
                    "mailrail_ingress_pauses_total",
                    "reason",
                ),
            ),
        ),
        processes("ingress"),
    ),
)
