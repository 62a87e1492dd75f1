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
