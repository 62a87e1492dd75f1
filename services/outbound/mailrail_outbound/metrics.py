"""Every series of outbound. Label values come from closed lists, each explained here."""

from itertools import product

from prometheus_client import Gauge

from mailrail.kit.metrics import Spread, Tally

DELIVERIES = Tally(
    "mailrail_outbound_recipients",
    "Recipients by result: delivered, relayed, deferred, failed, captured, not_attempted, cancelled; and by kind of "
    "next hop: direct, smtp, submission, submissions, socks, lmtp, fail",
    ["kind", "result"],
)
ANSWERS = Tally(
    "mailrail_outbound_answers",
    "Answers that decided about recipients, by stage of the session (dns, connect, proxy, greeting, hello, starttls, "
    "handshake, auth, plan, mail, rcpt, data, content, end) and by answer: 2yz, 4yz, 5yz, or the trouble (dns, "
    "no_address, unreachable, proxy, closed, timeout, protocol, tls, auth, too_large, needs_smtputf8, utf8_header, "
    "requiretls, tls_demand, tls_floor, tls_policy, needs_8bitmime, needs_binarymime, unconvertible, lease, cancelled, "
    "fault)",
    ["stage", "answer"],
)
CONNECTIONS = Tally(
    "mailrail_outbound_connections",
    "Connections dialled, by result: ready (for a transaction), unreachable, proxy (the proxy refused), refused "
    "(greeting or EHLO), tls (handshake or verification failed), auth (login refused), broken (closed, invalid reply, "
    "timeout), resumption (a resumed TLS session failed; another connection follows for a full handshake)",
    ["result"],
    known=product(("ready", "unreachable", "proxy", "refused", "tls", "auth", "broken", "resumption")),
)
GAVE_WAY = Tally(
    "mailrail_outbound_connections_gave_way",
    "Connections broken off because the server had not answered for long and others waited",
)
OPEN = Gauge("mailrail_outbound_connections_open", "Open connections to next hops")
REUSES = Tally("mailrail_outbound_connection_reuses", "Transactions on a connection that was used before")
TLS = Tally(
    "mailrail_outbound_tls",
    "Sessions that became ready, by TLS version (none, TLSv1.2, TLSv1.3) and by what proved the server (none, pkix: a "
    "trusted certificate for its name, dane: one that its TLSA records name, pkix+dane: both)",
    ["version", "proof"],
    known=product(("none",), ("none",)),
)
TLS_MESSAGES = Tally(
    "mailrail_outbound_tls_messages",
    "Messages that a host took (each host counts) by what proved it, what else could have, and REQUIRETLS. proof: "
    "clear (without TLS), none (TLS, and nothing proved the server), pkix (a certificate for its name, which an "
    "unproven MX record may have given), mta_sts (so, and a policy in mode enforce names the host), dane (its TLSA "
    "records). possible: nothing; what the destination has and this mail did not demand or passed over: dane, "
    "mta_sts, sts_testing (a policy in mode testing names the host), tlsa_unusable (records of which none can be "
    "used); starttls (offered, and the mail went in clear). requiretls: used, possible (offered by a server that is "
    "proven as REQUIRETLS asks, and not demanded), no",
    ["proof", "possible", "requiretls"],
    known=(
        *product(("clear", "none", "pkix", "mta_sts", "dane"), ("nothing",), ("no",)),
        *product(("none",), ("dane", "mta_sts", "sts_testing", "tlsa_unusable"), ("no",)),
        ("clear", "starttls", "no"),
        *product(("mta_sts", "dane"), ("nothing",), ("used", "possible")),
    ),
)
DANE = Tally(
    "mailrail_outbound_dane_comparisons",
    "Full handshakes after which the server's certificates were compared with its TLSA records, by result: matched, "
    "tlsa_mismatch (no record names them), certificate_expired, host_mismatch, or why else they do not count",
    ["result"],
    known=product(("matched", "tlsa_mismatch")),
)
HANDSHAKES = Tally(
    "mailrail_outbound_tls_handshakes",
    "TLS handshakes by kind: full and resumed, of SMTP sessions that became ready; refused (the server did not resume "
    "the TLS session, and a full handshake came of it), broken (it failed on it, and another connection follows)",
    ["kind"],
    known=product(("full", "resumed", "refused", "broken")),
)
RUNNING = Gauge("mailrail_outbound_deliveries_running", "Deliveries in progress")
WAITING = Gauge("mailrail_outbound_deliveries_waiting", "Deliveries that wait for a connection")
SECONDS = Spread(
    "mailrail_outbound_delivery_seconds",
    "Seconds from the start of a delivery to its last result",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1200),
)
OCTETS = Tally("mailrail_outbound_sent_bytes", "Octets of content sent to next hops")
REENCODED = Tally(
    "mailrail_outbound_reencoded",
    "Messages re-encoded for a next hop, by the form that it needed (8bit, 7bit)",
    ["form"],
    known=product(("8bit", "7bit")),
)
PASSED_OVER = Tally(
    "mailrail_outbound_tls_demands_passed_over",
    "Messages with TLS-Required: No, and reports on TLS, that went to a host though it does not meet what the "
    "destination demands, by the demand: sts_unanswered (the DNS does not say whether there is a policy), sts_mx (the "
    "policy does not list it), tlsa_unanswered (the DNS does not say which TLSA records it has), certificate, tlsa "
    "(they do not match), no_tls",
    ["demand"],
    known=product(("sts_unanswered", "sts_mx", "tlsa_unanswered", "certificate", "tlsa", "no_tls")),
)
REDACTED = Tally(
    "mailrail_outbound_redacted",
    "Notifications that were tried without what they return of a message with REQUIRETLS, because no host of the "
    "destination offers REQUIRETLS over TLS that verifies; each attempt counts",
)
DNS = Tally(
    "mailrail_outbound_dns_lookups",
    "DNS lookups by type (mx, address, cname, tlsa, txt, soa) and result: answer, none, nxdomain, failed; cached "
    "answers are not counted",
    ["type", "result"],
    known=product(("mx", "address", "cname", "tlsa", "txt", "soa"), ("answer", "none", "nxdomain", "failed")),
)
TRUSTED_RESOLVER = Gauge(
    "mailrail_outbound_resolver_trusted",
    "1 where a validating DNS resolver is declared trusted; 0: no answer counts as proven by DNSSEC, there is no DANE",
)
RESOLVER_VALIDATES = Gauge(
    "mailrail_outbound_resolver_validates",
    "1 while the trusted DNS resolver proves an answer that is signed (MAILRAIL_OUTBOUND_RESOLVER_PROBE), asked for "
    "every five minutes; 0: it does not, or none is trusted",
)
LEASES_LOW = Tally(
    "mailrail_outbound_leases_low", "Transactions stopped before the final dot because too little of the lease was left"
)
LEARNED = Tally(
    "mailrail_outbound_learned",
    "Sessions whose STARTTLS and REQUIRETLS were written for their domain and transport, or dropped because Postgres "
    "could not be written for long; not counted are those that showed nothing new within the hour",
    ["result"],
    known=product(("written", "dropped")),
)
TLSRPT_SESSIONS = Tally(
    "mailrail_outbound_tlsrpt_sessions",
    "Sessions counted for TLS reports, by what became of them: stored; no_room (in memory or in Postgres, or too many "
    "of one zone); too_old (stored, and nobody read them for days)",
    ["result"],
    known=product(("stored", "no_room", "too_old")),
)
TLSRPT_ROWS = Gauge(
    "mailrail_outbound_tlsrpt_rows",
    "Rows of the outbox of facts for TLS reports, of all processes, as this one counted them within the last minute",
)
TLSRPT_ROWS_ALLOWED = Gauge(
    "mailrail_outbound_tlsrpt_rows_allowed", "Rows of that outbox at most; past it facts that are new are dropped"
)
POLICY_READS = Tally(
    "mailrail_outbound_policy_reads",
    "Domains whose MTA-STS policy, or that there is none, was looked for, by where: memory, postgres; unread (it is in "
    "neither, as Postgres cannot be read, and the delivery goes back)",
    ["source"],
    known=product(("memory", "postgres", "unread")),
)
POLICY_FETCHES = Tally(
    "mailrail_outbound_policy_fetches",
    "Fetches of MTA-STS policies by result: fetched; failed (none is cached, and mail goes as if there were none); "
    "not_refreshed (it failed, and a cached one holds on until its end); left (it failed, and what is cached says that "
    "the domain has left MTA-STS)",
    ["result"],
    known=product(("fetched", "failed", "not_refreshed", "left")),
)
POLICIES_UNSAVED = Gauge(
    "mailrail_outbound_policies_unsaved",
    "MTA-STS policies that this process has in memory alone: Postgres is away or full",
)
POLICIES_NOT_KEPT = Tally(
    "mailrail_outbound_policies_not_kept",
    "Times that an MTA-STS policy found no room, by where: postgres (it stays in memory), memory (it may be fetched "
    "again when mail goes there next)",
    ["room"],
    known=product(("postgres", "memory")),
)
POSTGRES_UP = Gauge(
    "mailrail_outbound_postgres_up",
    "1 while Postgres answers and takes writes, else 0; deliveries then go on as far as memory knows",
)
QUEUES = Gauge("mailrail_outbound_queue_replicas", "Queue replicas that this process has a Lease stream to")
