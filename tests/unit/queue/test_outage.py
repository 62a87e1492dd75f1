"""What the log says while Postgres is away, however many loops meet it."""

import psycopg
from structlog.testing import capture_logs

from mailrail.kit import log
from mailrail_queue.store.outage import Outage

GONE = psycopg.OperationalError("connection refused\n")


def test_an_outage_is_logged_when_it_begins_twice_a_minute_and_when_it_ends_with_what_waits() -> None:
    now, waiting = [100.0], [3]
    with capture_logs() as lines:
        outage = Outage(lambda: now[0])
        outage.count("results_waiting", lambda: waiting[0])
        logger = log.get_logger()
        outage.step(logger, "cannot sweep; trying again", GONE)
        for second in range(131):  # ten tries a second, by all that try
            now[0] = 100.0 + second
            waiting[0] = 3 + second
            for _ in range(10):
                outage.begin(GONE)
                outage.step(logger, "cannot sweep; trying again", GONE)
        outage.end()
        outage.end()
        outage.step(logger, "cannot sweep; trying again", GONE)
    said = [(line["event"], line.get("seconds"), line.get("results_waiting")) for line in lines]
    assert said == [
        ("cannot sweep; trying again", None, None),
        ("Postgres is unreachable", None, 3),
        *(("Postgres is still unreachable", after, 3 + after) for after in (30, 60, 90, 120)),
        ("Postgres is reachable again", 130, 133),
        ("cannot sweep; trying again", None, None),
    ]
