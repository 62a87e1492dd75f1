"""The numbers that the rules promise, against the defaults that keep them.

Tests of a rule run with quick settings, so none of them notices when a default drifts. Each row has the words of the
rule that promise the number, which have to stand in its text, and the number that the code has.
"""

from pathlib import Path

import pytest

from mailrail.core import limits
from mailrail.core.arc.sets import SETS_LIMIT
from mailrail.core.delivery import shares
from mailrail.core.delivery.judge import INTERRUPTIONS_FORGIVEN
from mailrail.core.dkim.key import RSA_BITS
from mailrail.core.dkim.sign import RSA_SIGNING_BITS
from mailrail.core.dkim.verify import SIGNATURES_LIMIT
from mailrail.core.dmarc import authors, walk
from mailrail.core.dmarc.report import facts
from mailrail.core.message.content_reader import LONGEST_LINE
from mailrail.core.message.header import RECEIVED_LIMIT
from mailrail.core.mtasts import cache, policy
from mailrail.core.reports import addresses
from mailrail.core.resources.transport import LmtpSpec
from mailrail.core.revision.revision import GatewayLimits, RetrySchedule
from mailrail.core.route.site import SHARDS
from mailrail.core.sasl.server import LOGIN_LIMIT
from mailrail.core.sasl.verifiers import ITERATIONS
from mailrail.core.smtp import reply
from mailrail.core.smtp.server import AUTH_LINE_LIMIT
from mailrail.core.spf import evaluation as spf
from mailrail.core.uncommitted import ANNOUNCED_PART, NEAR, NEW_PART, QUICK, SLACK, SOONER_PART, TRUST
from mailrail.kit import config_client, server_watch
from mailrail.sendmail import flush as sendmail_flush
from mailrail.sendmail import folder as sendmail_folder
from mailrail.sendmail import settings as sendmail_settings
from mailrail_config import store as config_store
from mailrail_config.settings import ConfigSettings
from mailrail_ingress import queue_stream
from mailrail_ingress.settings import IngressSettings
from mailrail_operator.settings import OperatorSettings
from mailrail_outbound.settings import OutboundSettings
from mailrail_queue.accept import batches
from mailrail_queue.schedule import scheduler
from mailrail_queue.settings import QueueSettings

PAGES = Path(__file__).parents[2] / "docs" / "spec"
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
MINUTE, HOUR, DAY = 60, 3600, 86_400

INGRESS = IngressSettings()
QUEUE = QueueSettings()
OUTBOUND = OutboundSettings()


def rule(id: str) -> str:
    """The text of a rule or clause."""
    lines = [
        line
        for page in ("message-life.md", "standards.md", "sendmail.md")
        for line in (PAGES / page).read_text().splitlines()
    ]
    (text,) = (line for line in lines if line.lstrip(" -").startswith(f"{id} "))
    return text


@pytest.mark.parametrize(
    ("id", "words", "promised", "default"),
    [
        ("ACC-02", "Bodies ≤ 1 MiB, and 32 KiB for their header, go inline", 33 * MIB // 32, limits.INLINE_LIMIT),
        ("ACC-02", "chunk rows of 256 KiB", 256 * KIB, limits.CHUNK_SIZE),
        ("ACC-02", "forgotten after 1 h", HOUR, QUEUE.keep_upload_seconds),
        ("ACC-03", "by count and by 4 MiB", 4 * MIB, QUEUE.batch_bytes),
        ("ACC-04", "Ingress waits 240 s", 240, INGRESS.answer_timeout),
        ("ACC-04", "5 s after that time", 5, queue_stream.SETTLING),
        ("ACC-07", "32 MiB a stream", 32 * MIB, QUEUE.stream_credit),
        ("ACC-07", "1 MiB a message", MIB, queue_stream.MESSAGE_CREDIT),
        ("ACC-07", "frames ≤ 256 KiB", 256 * KIB, limits.CHUNK_SIZE),
        ("ACC-07", "an eighth of the credit is for small mail alone", 1 - 1 / 8, queue_stream.LARGE_CREDIT),
        ("ACC-07", "half of it is not for large bodies", 1 - 1 / 2, queue_stream.BODIES_CREDIT),
        ("ACC-07", "Commits of small mail (≤ 64 KiB)", 64 * KIB, limits.SMALL_LIMIT),
        ("ACC-07", "past 60 s 452 4.3.1", 60, INGRESS.credit_timeout),
        ("ACC-07", "for a client (512 MiB)", 512 * MIB, INGRESS.client_upload_octets),
        ("ACC-07", "an ingress process (2 GiB)", 2 * GIB, INGRESS.upload_octets),
        ("ACC-07", "the queue (4 GiB over all its processes)", 4 * GIB, QUEUE.upload_octets),
        ("ACC-07", "from three quarters on", 3 / 4, NEW_PART),
        ("ACC-07", "a sixty-fourth more", 1 / 64, 1 / SLACK),
        ("ACC-07", "together at most half of the bound", 1 / 2, SOONER_PART),
        ("ACC-07", "announced within 3 s", 3, TRUST),
        ("ACC-07", "counts up to a quarter", 1 / 4, ANNOUNCED_PART),
        ("ACC-07", "not be whole within 180 s", 180, QUICK),
        ("ACC-07", "will be whole within 30 s", 30, NEAR),
        ("ACC-07", "waits for it, 5 s at most", 5, queue_stream.PATIENCE),
        ("ACC-09", "ask every 2 s", 2, server_watch.EVERY),
        ("ACC-09", "8 s without an answer", 8, server_watch.SILENT_AFTER),
        ("DAGG-05", "at most 100 a row", 100, facts.SIGNATURES_LIMIT),
        ("DAGG-11", "up to our limit (CHOICE 10)", 10, addresses.DESTINATIONS_LIMIT),
        ("ACC-09", "refused 451 after 10 s", 10, batches._REFUSE_AFTER),
        ("SHD-01", "256 shards", 256, SHARDS),
        ("SHD-02", "looks for due work every second", 1, QUEUE.look_seconds),
        ("SHD-03", "≤ 200 recipients a site", 200, scheduler._FETCH),
        ("LSE-01", "A lease lasts 2 min", 2 * MINUTE, QUEUE.lease_seconds),
        ("LSE-01", "none is handed on with under 60 s left", 60, QUEUE.handout_seconds),
        ("LSE-02", "only with ≥ 30 s left", 30, OUTBOUND.lease_margin),
        ("LSE-04", "the first 10 of a recipient", 10, INTERRUPTIONS_FORGIVEN),
        ("SHD-03", "an answer after more than 10 s", 10, shares.QUICK_SECONDS),
        ("SHD-03", "hold at most half of it", 1 / 2, shares.UNPROVEN_PART),
        ("SHD-03", "both together at most 70 %", 0.7, shares.OTHERS_PART),
        ("SHD-03", "for a tenth", 0.1, shares.FIRST_PART),
        ("LSE-06", "past 20,000 deliveries", 20_000, QUEUE.pending_deliveries),
        ("LSE-06", "what its site sends in 20 s", 20, shares.SITE_AHEAD_SECONDS),
        ("LSE-06", "in the next 2 s", 2, shares.AHEAD_SECONDS),
        ("LSE-06", "a budget of 64 MiB a queue process", 64 * MIB, QUEUE.born_leased_bytes),
        ("LSE-07", "waits up to 5 s", 5, OUTBOUND.revision_wait),
        ("LSE-08", "ACC-04: 240 s and 5 s", 245, INGRESS.answer_timeout + queue_stream.SETTLING),
        ("FIN-02", "≥ 10 min after", 10 * MINUTE, QUEUE.keep_content_seconds),
        ("CFG-05", "a 2 s heartbeat", 2, config_client._REPORT_EVERY),
        ("CFG-05", "live = seen within 10 s", 10, config_store.LIVE_SECONDS),
        ("CFG-06", "debounce ≤ 200 ms", 0.2, OperatorSettings().debounce_seconds),
        ("CFG-06", "head polled each second", 1, ConfigSettings().poll_seconds),
        ("DSN-09", "after the failed 5th attempt", 5, RetrySchedule().delayed_dsn_after),
        ("SIN-15", "100 Received fields", 100, RECEIVED_LIMIT),
        ("SIN-17", "idle timeout ≥5 min", 5 * MINUTE, GatewayLimits().idle_timeout),
        ("SOUT-06", "banner 5 min", 5 * MINUTE, OUTBOUND.timeouts.greeting),
        ("SOUT-06", "MAIL/RCPT 5", 5 * MINUTE, OUTBOUND.timeouts.mail),
        ("SOUT-06", "MAIL/RCPT 5", 5 * MINUTE, OUTBOUND.timeouts.rcpt),
        ("SOUT-06", "DATA 2", 2 * MINUTE, OUTBOUND.timeouts.data),
        ("SOUT-06", "block 3", 3 * MINUTE, OUTBOUND.timeouts.block),
        ("SOUT-06", "final dot 10", 10 * MINUTE, OUTBOUND.timeouts.end),
        ("SOUT-07", "give up after 5 days by default", 5 * DAY, RetrySchedule().lifetime),
        ("SOUT-07", "null-path mail after 1 day", DAY, RetrySchedule().null_sender_lifetime),
        ("SOUT-12c", "up to 64 KiB a line", 65_536, LONGEST_LINE),
        ("SOUT-15", "2,048 octets a line", 2048, reply.MAX_LINE),
        ("SOUT-15", "256 lines", 256, reply.MAX_LINES),
        ("SOUT-15", "what is read of one (1 MiB", MIB, reply.MAX_READ),
        ("LMTP-04", "never 25 by default", 24, LmtpSpec.model_fields["port"].default),
        ("AUTH-03", "line >12288", 12_288, AUTH_LINE_LIMIT),
        ("AUTH-05c", "a login over 320 octets", 320, LOGIN_LIMIT),
        ("SCR-03", "iterations ≥4096", 4096, ITERATIONS),
        ("PRX-01", "late (5 s)", 5, INGRESS.proxy_timeout),
        ("SPF-02", "at most 10 of include", 10, spf.TERM_LIMIT),
        ("SPF-03", ">10 address lookups", 10, spf.HOST_LIMIT),
        ("SPF-03", "first 10 names", 10, spf.HOST_LIMIT),
        ("SPF-04", "more than 2 void terms", 2, spf.SpfReceiver().void_limit),
        ("SPF-05", "limit ≥20 s", 20, spf.TIME_LIMIT),
        ("SML-06", "a heartbeat of the last hour", HOUR, sendmail_folder.HEARTBEAT_SECONDS),
        ("SML-08", "5 minutes, then twice as long", 5 * MINUTE, sendmail_flush.FIRST_DELAY),
        ("SML-08", "at most 4 hours", 4 * HOUR, sendmail_flush.LONGEST_DELAY),
        ("SML-08", "After 5 days", 5 * DAY, sendmail_flush.LIFETIME),
        ("SML-12", "at most 100 MiB", 100 * MIB, sendmail_settings.INPUT_LIMIT),
        ("SML-12", "within 4 minutes", 4 * MINUTE, sendmail_settings.TOTAL_SECONDS),
        ("DMRC-01", "at most 10", 10, authors.AUTHORS_LIMIT),
        ("DMRC-05", "≤8 queries", 8, walk.QUERIES_LIMIT),
        ("STS-05", "timeout 60 s", 60, OUTBOUND.fetch_timeout),
        ("STS-05", "body limit 64 KiB", 64 * KIB, policy.BODY_LIMIT),
        ("STS-06", "max_age (≤31557600", 31_557_600, policy.MAX_AGE_LIMIT),
        ("STS-18", "wait ≥5 min", 5 * MINUTE, cache.FETCH_AGAIN),
        ("STS-19", "about daily", DAY, cache.REFRESH),
        ("STS-19a", "after a failed one hourly", HOUR, cache.REFRESH_AGAIN),
        ("STS-24a", "bounded by 4 hours", 4 * HOUR, cache.DEFER_LIMIT),
        ("STS-26", "port 443 only", 443, OUTBOUND.fetch_port),
        ("DKIM-01", "CHOICE 20", 20, SIGNATURES_LIMIT),
        ("DKIM-03", "RSA 1024–4096 bits", 1024, RSA_BITS[0]),
        ("DKIM-03", "1024–4096 bits accepted", 4096, RSA_BITS[1]),
        ("DKIM-08b", "RSA ≥2048", 2048, RSA_SIGNING_BITS),
        ("ARC-01a", "i=1..n (≤50)", 50, SETS_LIMIT),
    ],
)
def test_a_default_is_the_number_that_its_rule_promises(id: str, words: str, promised: float, default: float) -> None:
    assert words in rule(id), f"{id} promises another number now: change this row with it"
    assert default == promised


def test_history_is_kept_for_14_days_FIN_03() -> None:
    assert "kept 14 days (setting)" in rule("FIN-03")
    assert QUEUE.history_days == 14


def test_a_lease_that_ran_out_is_looked_for_well_within_30_seconds_LSE_04() -> None:
    """The look comes after the end of the lease, and may find a pool that is busy: three looks have to fit."""
    assert "due again within 30 s" in rule("LSE-04")
    assert QUEUE.sweep_seconds * 3 <= 30


def test_outbound_says_what_is_alive_often_enough_to_be_renewed_LSE_01() -> None:
    assert OUTBOUND.alive_seconds < (QUEUE.lease_seconds - QUEUE.handout_seconds) / 2
