"""Series of the dmarc service. Label values come from closed lists, each explained here."""

from mailrail.kit.metrics import Level, Tally

POSTGRES_UP = Level("mailrail_dmarc_postgres_up", "1 while Postgres answers and has the schema, else 0")
EVALUATIONS = Tally(
    "mailrail_dmarc_evaluations",
    "Messages for reports that ingress told of, by result: stored, dropped (no room: MAILRAIL_DMARC_RECORDS, "
    "MAILRAIL_DMARC_ZONE_RECORDS), refused (not readable), off (MAILRAIL_DMARC_REPORTS)",
    ["result"],
    known=[("stored",), ("dropped",), ("refused",), ("off",)],
)
REPORTS = Tally(
    "mailrail_dmarc_reports",
    "Periods of policy domains, by what became of them: sent, optional (nothing makes a report necessary), nobody (no "
    "address is to get it), failed (it cannot be sent), expired (what it lacked did not come in time)",
    ["result"],
    known=[("sent",), ("optional",), ("nobody",), ("failed",), ("expired",)],
)
REPORT_MAILS = Tally(
    "mailrail_dmarc_report_mails",
    "Addresses of reports, by what became of them: queued, suppressed, too_large, refused (by the queue)",
    ["result"],
    known=[("queued",), ("suppressed",), ("too_large",), ("refused",)],
)
REPORT_TROUBLE = Tally(
    "mailrail_dmarc_report_put_off",
    "Times a report was put off, by reason: dns, queue, postgres, sender (From has no signing key and no SPF pass)",
    ["reason"],
    known=[("dns",), ("queue",), ("postgres",), ("sender",)],
)
REPORTS_OPEN = Level("mailrail_dmarc_reports_open", "Reports whose period is over and that are not done")
DNS = Tally(
    "mailrail_dmarc_dns_lookups",
    "Look-ups that were not answered from memory, by type of record (txt) and result: answer, none, nxdomain, failed",
    ["type", "result"],
    known=[("txt", "answer"), ("txt", "none"), ("txt", "nxdomain"), ("txt", "failed")],
)
RECEIVED = Tally(
    "mailrail_dmarc_received",
    "Mails at report addresses that were read, by kind of report (dmarc, tls, unknown) and result: counted, again (the "
    "report was counted before), refused (`mailrail dmarc refused` says why)",
    ["kind", "result"],
    known=[("dmarc", "counted"), ("tls", "counted"), ("dmarc", "again"), ("tls", "again"), ("unknown", "refused")],
)
