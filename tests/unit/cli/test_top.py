"""The picture of `mailrail top`, from what the queue answered."""

import datetime
from collections.abc import Sequence
from typing import Any

import pytest

from mailrail.cli.top_view import Emphasis, QueueLook, Rates, SiteRound, TopView, bars_of, can_show_bars, rates_of
from mailrail.pb.queue.v1 import admin_pb2, types_pb2

NOW = datetime.datetime(2026, 11, 30, 12, 0, tzinfo=datetime.UTC)
DELIVERED, FAILED = types_pb2.RECIPIENT_STATE_DELIVERED, types_pb2.RECIPIENT_STATE_FAILED
CANCELLED = types_pb2.RECIPIENT_STATE_CANCELLED


def finished(number: int, ago: float, state: int = DELIVERED, reply: str = "ok") -> admin_pb2.Recipient:
    """A recipient that finished so many seconds ago."""
    found = admin_pb2.Recipient(id=number, address=f"r{number}@example.org")
    found.state = state  # type: ignore[assignment]
    found.finished.FromDatetime((NOW - datetime.timedelta(seconds=ago)).replace(tzinfo=None))
    found.last.reply.code = 550
    found.last.reply.lines.append(reply)
    return found


def site(name: str, queued: int, **facts: Any) -> admin_pb2.Site:
    return admin_pb2.Site(name=name, queued=queued, **facts)


def look(
    sites: Sequence[admin_pb2.Site] = (),
    done: Sequence[admin_pb2.Recipient] = (),
    *,
    last_sites: bool = True,
    queued: int = 7,
) -> QueueLook:
    stats = admin_pb2.GetStatsResponse(queued=queued, due=3, leased=2, on_hold=1)
    stats.oldest.FromDatetime((NOW - datetime.timedelta(hours=3)).replace(tzinfo=None))
    return QueueLook(stats, sites, last_sites, done, True)


def text(view: TopView, height: int | None = None) -> str:
    return "\n".join(line for line, _ in view.lines(NOW, height))


def test_where_few_finish_the_last_minute_counts() -> None:
    done = [finished(1, 1), finished(2, 30), finished(3, 40, FAILED), finished(4, 45, CANCELLED), finished(5, 90)]
    assert rates_of(done, all_finished=False, now=NOW) == Rates(2 / 60, 1 / 60)
    assert rates_of(done[:2], all_finished=True, now=NOW) == Rates(2 / 60, 0)
    assert rates_of([], all_finished=True, now=NOW) == Rates()


def test_where_many_finish_the_time_counts_in_which_the_known_ones_did() -> None:
    done = [finished(n, n / 50, FAILED if n % 4 == 0 else DELIVERED) for n in range(1, 201)]
    assert rates_of(done, all_finished=False, now=NOW) == Rates(150 / 4, 50 / 4)


def test_very_many_at_one_moment_and_a_queue_whose_clock_is_ahead_divide_by_no_zero() -> None:
    ahead = [finished(n, -3) for n in range(200)]
    assert rates_of(ahead, all_finished=False, now=NOW) == Rates(400, 0)


def test_the_busiest_sites_come_first_and_an_idle_one_not_at_all() -> None:
    sites = SiteRound()
    sites.take([site("a.example", 1), site("b.example", 9), site("c.example", 1, in_flight=1)], last=False)
    assert not sites.complete
    sites.take([site("d.example", 5), site("idle.example", 0, window=5)], last=True)
    assert [each.name for each in sites.busiest(9)] == ["b.example", "d.example", "c.example", "a.example"]
    assert [each.name for each in sites.busiest(1)] == ["b.example"]
    assert sites.complete


def test_a_site_that_is_gone_goes_at_the_end_of_the_next_round() -> None:
    sites = SiteRound()
    sites.take([site("a.example", 1), site("b.example", 2)], last=True)
    sites.take([site("a.example", 1)], last=False)
    assert len(sites.busiest(9)) == 2
    sites.take([site("c.example", 1)], last=True)
    assert [each.name for each in sites.busiest(9)] == ["a.example", "c.example"]


def test_of_very_many_sites_the_busiest_are_kept() -> None:
    sites = SiteRound()
    for page in range(8):
        sites.take([site(f"s{page}-{n}.example", page * 1000 + n) for n in range(1, 1001)], last=page == 7)
    assert len(sites.known) == 5000
    assert sites.busiest(1)[0].name == "s7-1000.example"


def test_the_picture_has_counts_the_oldest_mail_rates_sites_and_what_failed() -> None:
    view = TopView("queue at somewhere")
    view.take(look([site("b.example", 9)], [finished(1, 2), finished(2, 3, FAILED, "no such user")]), NOW)
    shown = text(view)
    for words in ("queue at somewhere", "7 recipients", "3h ago", "b.example", "0.02/s", "r2@example.org"):
        assert words in shown
    assert "550 no such user" in shown
    assert "r1@example.org" not in shown


@pytest.mark.parametrize("height", [1, 2, 10, 24, 50])
def test_the_picture_fits_the_screen_and_keeps_what_is_above(height: int) -> None:
    view = TopView("queue at somewhere")
    done = [finished(n, n, FAILED) for n in range(1, 100)]
    view.take(look([site(f"s{n}.example", n) for n in range(1, 200)], done), NOW)
    view.fail("it is away", NOW)
    lines = view.lines(NOW, height)
    assert len(lines) == min(height, len(view.lines(NOW, 50)))
    assert lines[0][0].startswith("queue at somewhere")
    if height >= 24:
        assert any("r5@example.org" in line for line, _ in lines)


def test_a_queue_that_is_away_is_told_with_since_when_and_its_last_figures_stay() -> None:
    view = TopView("queue at somewhere")
    view.fail("queue does not answer", NOW)
    assert view.lines(NOW)[1][1] is Emphasis.TROUBLE
    assert "older" not in text(view)
    view.take(look(queued=41), NOW)
    assert "does not answer" not in text(view)
    view.fail("queue does not answer", NOW)
    view.fail("queue does not answer", NOW + datetime.timedelta(seconds=30))
    since = f"{NOW.astimezone():%H:%M:%S}"
    assert f"queue does not answer (since {since}); what stands below is older" in text(view)
    assert "41 recipients" in text(view)


def test_what_strangers_say_repaints_no_screen() -> None:
    view = TopView("queue at somewhere")
    hostile = "\x1b[2Jgone\nsecond line"
    bad = site("a.example", 1)
    bad.last_error = hostile
    view.take(look([bad], [finished(1, 1, FAILED, hostile)]), NOW)
    assert all(line.isprintable() for line, _ in view.lines(NOW))
    assert text(view).count("\\x1b[2Jgone") == 2


def test_failures_stay_after_others_finished_and_the_newest_is_first() -> None:
    view = TopView("queue at somewhere")
    view.take(look(done=[finished(1, 9, FAILED)]), NOW)
    view.take(look(done=[finished(2, 5, FAILED)]), NOW)
    view.take(look(done=[finished(3, 1)]), NOW)
    shown = text(view)
    assert shown.index("r2@example.org") < shown.index("r1@example.org")


def test_rates_are_drawn_where_the_terminal_can() -> None:
    assert bars_of([0.0, 7.0, 3.5]) == "▁█▅"
    assert can_show_bars("utf-8")
    assert not can_show_bars("ascii")
    assert not can_show_bars("nonsense")
    view = TopView("queue at somewhere")
    view.take(look(done=[finished(1, 1)]), NOW)
    assert any("█" in line for line, _ in view.lines(NOW, bars=True))
