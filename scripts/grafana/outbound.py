"""The dashboard `Mailrail / Outbound`."""

from grafana.panels import LESS_IS_BAD, Dashboard, Panel, Query, Row, Unit, each, processes, rate, split
from grafana.shared import CONNECTIONS_READY, DELIVERY

_TAKEN = "mailrail_outbound_tls_messages_total"
_PROVEN = f"""(sum({rate(f'{_TAKEN}{{proof=~"dane|mta_sts"}}')}) or vector(0))"""
_POSSIBLE = f"""(sum({rate(f'{_TAKEN}{{possible=~"dane|mta_sts|sts_testing"}}')}) or vector(0))"""
_ALL_TAKEN = f"clamp_min(sum({rate(_TAKEN)}), 0.001)"

DASHBOARD = Dashboard(
    "mailrail-outbound",
    "Mailrail / Outbound",
    "SMTP out: connections, TLS, DNS, the answers of next hops, and durations.",
    (
        Row(
            "Results",
            (
                split(
                    "Recipients, by result",
                    "As outbound reports them to the queue.",
                    "mailrail_outbound_recipients_total",
                    "result",
                ),
                split(
                    "What decided",
                    "By stage of the session, and by class of the reply or kind of trouble.",
                    "mailrail_outbound_answers_total",
                    "stage",
                    "answer",
                ),
                DELIVERY,
                Panel(
                    "Bytes sent",
                    "Content sent to next hops.",
                    (Query(f"sum({rate('mailrail_outbound_sent_bytes_total')})", "bytes"),),
                    Unit.BYTE_RATE,
                ),
            ),
        ),
        Row(
            "Connections",
            (
                split(
                    "Connections dialled, by result",
                    "ready: a transaction can begin. auth: our login was refused. tls: the handshake or the "
                    "verification failed.",
                    "mailrail_outbound_connections_total",
                    "result",
                ),
                Panel(
                    "Reuse",
                    "Share of transactions on a connection that was used before.",
                    (
                        Query(
                            f"sum({rate('mailrail_outbound_connection_reuses_total')}) / clamp_min("
                            f"sum({rate('mailrail_outbound_connection_reuses_total')})"
                            f" + sum({CONNECTIONS_READY}), 0.001)",
                            "reused",
                        ),
                    ),
                    Unit.SHARE,
                    top=1,
                ),
                split(
                    "Sessions, by TLS",
                    "Version, and what proved the server.",
                    "mailrail_outbound_tls_total",
                    "version",
                    "proof",
                ),
                split(
                    "TLS handshakes",
                    "full and resumed, of sessions that became ready. refused: a server did not resume a session. "
                    "broken: it failed on one, and a full handshake followed.",
                    "mailrail_outbound_tls_handshakes_total",
                    "kind",
                ),
                split(
                    "Demands of destinations that were passed over",
                    "By mail with TLS-Required: No, and by reports on TLS.",
                    "mailrail_outbound_tls_demands_passed_over_total",
                    "demand",
                ),
                Panel(
                    "Redacted notifications",
                    "Of mail with REQUIRETLS, tried without what they return of it because no host of the sender's "
                    "domain offers REQUIRETLS over TLS that verifies.",
                    (Query(f"sum({rate('mailrail_outbound_redacted_total')})", "notifications"),),
                    Unit.RATE,
                ),
                split(
                    "Certificates compared with TLSA records",
                    "DANE: matched, or why none of the records names them.",
                    "mailrail_outbound_dane_comparisons_total",
                    "result",
                ),
                each("Open connections", "To next hops.", "mailrail_outbound_connections_open"),
                Panel(
                    "Connections that gave way",
                    "Broken off because the server had not answered for long and other deliveries waited.",
                    (Query(f"sum({rate('mailrail_outbound_connections_gave_way_total')})", "connections"),),
                    Unit.RATE,
                ),
            ),
        ),
        Row(
            "How mail is proven",
            (
                split(
                    "Messages taken, by proof",
                    "clear: without TLS. none: over TLS, and nothing proved the server. pkix: a certificate for its "
                    "name. mta_sts: so, and a policy names the host. dane: its TLSA records.",
                    "mailrail_outbound_tls_messages_total",
                    "proof",
                ),
                split(
                    "Messages that could have gone with more proof",
                    "What the destination has, and this mail did not demand or passed over. sts_testing: a policy in "
                    "mode testing. tlsa_unusable: TLSA records, none of which can be used. starttls: offered, and the "
                    "mail went in clear.",
                    'mailrail_outbound_tls_messages_total{possible!="nothing"}',
                    "possible",
                ),
                split(
                    "REQUIRETLS, used and possible",
                    "possible: the server offers it and is proven as it asks, and the message did not demand it.",
                    'mailrail_outbound_tls_messages_total{requiretls!="no"}',
                    "requiretls",
                ),
                Panel(
                    "Share of mail that went proven",
                    "By DANE or MTA-STS, which prove whose server it is; and with that what could have gone so.",
                    (
                        Query(f"{_PROVEN} / {_ALL_TAKEN}", "proven"),
                        Query(f"({_PROVEN} + {_POSSIBLE}) / {_ALL_TAKEN}", "proven or possible"),
                    ),
                    Unit.SHARE,
                    top=1,
                ),
            ),
        ),
        Row(
            "Under way",
            (
                each("Deliveries in progress", "By process.", "mailrail_outbound_deliveries_running"),
                each(
                    "Deliveries that wait for a connection",
                    "If it keeps rising, connections to a next hop are limited or slow to open.",
                    "mailrail_outbound_deliveries_waiting",
                ),
                each(
                    "Queue replicas",
                    "Queue replicas that each process has a Lease stream to. A process with none is idle.",
                    "mailrail_outbound_queue_replicas",
                    steps=LESS_IS_BAD,
                ),
                each(
                    "Postgres",
                    "1 while Postgres answers and takes writes. Without it deliveries go on as far as memory knows the "
                    "TLS policies of domains.",
                    "mailrail_outbound_postgres_up",
                    Unit.BOOLEAN,
                    LESS_IS_BAD,
                ),
                split(
                    "MTA-STS policies looked for",
                    "By where they were found. unread: in neither, as Postgres cannot be read; the delivery goes back.",
                    "mailrail_outbound_policy_reads_total",
                    "source",
                ),
                split(
                    "MTA-STS policies fetched",
                    "failed: none is cached. not_refreshed: a cached one holds on. left: the cached mode is none.",
                    "mailrail_outbound_policy_fetches_total",
                    "result",
                ),
                Panel(
                    "MTA-STS policies in memory alone",
                    "Postgres is away, or takes no further domain. No room: how often that was so, by where.",
                    (
                        Query("sum(mailrail_outbound_policies_unsaved)", "policies"),
                        Query(
                            f"sum by (room) ({rate('mailrail_outbound_policies_not_kept_total')})", "no room: {{room}}"
                        ),
                    ),
                ),
                split(
                    "Learned of domains",
                    "Sessions whose STARTTLS and REQUIRETLS were written, or dropped while Postgres was away.",
                    "mailrail_outbound_learned_total",
                    "result",
                ),
                split(
                    "Sessions for TLS reports",
                    "stored, or dropped: there was no room, or nobody read them for days.",
                    "mailrail_outbound_tlsrpt_sessions_total",
                    "result",
                ),
                Panel(
                    "Stopped because the lease ran low",
                    "Transactions stopped before the final dot because too little of the lease was left: next hops are "
                    "slow, or the queue does not renew leases.",
                    (Query(f"sum({rate('mailrail_outbound_leases_low_total')})", "transactions"),),
                    Unit.RATE,
                ),
                split(
                    "DNS lookups, by type and result",
                    "Cached answers are not counted.",
                    "mailrail_outbound_dns_lookups_total",
                    "type",
                    "result",
                ),
                each(
                    "Trusted resolver",
                    "1 where a validating DNS resolver is declared trusted. With 0 no answer counts as proven by "
                    "DNSSEC, and there is no DANE.",
                    "mailrail_outbound_resolver_trusted",
                ),
                each(
                    "Trusted resolver validates",
                    "1 while it proves an answer that is signed. With 0 nothing is proven, as if none were trusted.",
                    "mailrail_outbound_resolver_validates",
                    Unit.BOOLEAN,
                    LESS_IS_BAD,
                ),
                split(
                    "Re-encoded",
                    "Messages that a next hop could not take unchanged, by the form that it needed.",
                    "mailrail_outbound_reencoded_total",
                    "form",
                ),
            ),
        ),
        processes("outbound"),
    ),
)
