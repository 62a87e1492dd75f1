"""Who gets a connection when there is not room for all, and who goes for whom (SIN-17)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.admission import (
    AT_WORK_IDLE,
    LEAST_IDLE,
    STRESS_IDLE,
    STRESS_PACE,
    Admission,
    Idle,
    Pace,
    Survey,
    Worth,
    judge,
    room,
    under_stress,
)

STRANGER, SUBMITTER, ACQUAINTANCE = Worth.STRANGER, Worth.SUBMITTER, Worth.ACQUAINTANCE


def judged(worth: Worth, total: int, *, of_client: int = 0, of_network: int = 0, stress: bool = False) -> Admission:
    return judge(
        worth,
        limit=1000,
        client_limit=100,
        total=total,
        of_client=of_client,
        of_network=of_network,
        stress=stress,
    )


@pytest.mark.parametrize(("worth", "most"), [(STRANGER, 800), (SUBMITTER, 900), (ACQUAINTANCE, 1000)])
def test_parts_are_kept_for_submission_and_for_addresses_that_delivered_before_SIN_17(worth: Worth, most: int) -> None:
    assert judged(worth, most - 1) is Admission.GRANTED
    assert judged(worth, most) is Admission.IN_PLACE_OF_ANOTHER


def test_a_limit_of_a_few_has_no_parts_SIN_17() -> None:
    assert [room(9, worth) for worth in (STRANGER, SUBMITTER, ACQUAINTANCE)] == [9, 9, 9]


def test_one_client_has_its_limit_however_well_it_is_known_SIN_17() -> None:
    assert {judged(worth, 500, of_client=100) for worth in Worth} == {Admission.REFUSED}


def test_neighbours_count_as_one_client_while_connections_are_scarce_SIN_17() -> None:
    assert judged(STRANGER, 750, of_network=100) is Admission.GRANTED
    assert judged(STRANGER, 750, of_network=100, stress=True) is Admission.REFUSED
    assert judged(STRANGER, 750, of_network=99, stress=True) is Admission.GRANTED
    assert judged(ACQUAINTANCE, 750, of_network=100, stress=True) is Admission.GRANTED


def test_stress_begins_before_strangers_have_all_their_room_and_ends_a_little_lower_SIN_17() -> None:
    at = {total: [under_stress(before, limit=1000, total=total) for before in (False, True)] for total in (599, 600)}
    assert at == {599: [False, False], 600: [False, True]}
    assert [under_stress(False, limit=1000, total=total) for total in (699, 700)] == [False, True]
    assert room(1000, STRANGER) > 700


NOW = 1000.0


def idle(name: str, silent: float, worth: Worth = STRANGER, *, in_transaction: bool = False) -> Idle[str]:
    return Idle(worth, NOW - silent, in_transaction, name)


def displaced(newcomer: Worth, *found: Idle[str]) -> list[str]:
    survey = Survey(found, NOW, stress=True)
    named = []
    while (one := survey.next_for(newcomer)) is not None:
        named.append(one.connection)
    return named


def test_the_longest_idle_stranger_goes_first_and_one_at_work_last_SIN_17() -> None:
    busy = [idle("new", LEAST_IDLE / 2), idle("at work", AT_WORK_IDLE - 0.1, in_transaction=True)]
    mail = idle("mail", 9, in_transaction=True)
    assert displaced(STRANGER, idle("b", 5), mail, idle("c", 3), idle("a", 8), *busy) == ["a", "b", "c", "mail"]


def test_strangers_displace_no_acquaintance_and_an_acquaintance_displaces_strangers_first_SIN_17() -> None:
    found = [idle("known", STRESS_IDLE - 1, ACQUAINTANCE), idle("stranger", 2), idle("submitter", 4, SUBMITTER)]
    assert displaced(STRANGER, *found) == ["submitter", "stranger"]
    assert displaced(SUBMITTER, *found) == ["submitter", "stranger"]
    assert displaced(ACQUAINTANCE, *found) == ["submitter", "stranger", "known"]


def test_silence_of_ten_seconds_keeps_nobody_its_place_when_nobody_else_can_go_SIN_17() -> None:
    """Else whoever had delivered one message, or logged in, could hold every place for five minutes at a time."""
    found = [
        idle("known", 20, ACQUAINTANCE),
        idle("mail", 40, ACQUAINTANCE, in_transaction=True),
        idle("account", 30, Worth.ACCOUNT),
        idle("busy account", STRESS_IDLE - 1, Worth.ACCOUNT),
        idle("stranger", 2),
    ]
    for newcomer in (STRANGER, SUBMITTER, ACQUAINTANCE):
        assert displaced(newcomer, *found) == ["stranger", "mail", "account", "known"]


@pytest.mark.parametrize("step", [1.0, 3.0])
def test_content_that_drips_is_found_slow_and_other_content_is_not_SIN_17(step: float) -> None:
    pace: Pace[str] = Pace()
    slow: list[str] = []
    now = 0.0
    while now <= 4 * STRESS_IDLE:
        messages = int(now * 2000 % 15_000)  # one after the other, each smaller than what came of the one before
        octets = {"drips": int(now), "flows": int(now * STRESS_PACE) + 1, "messages": messages}
        slow += pace.slow(octets.items(), now)
        now += step
    assert set(slow) == {"drips"}
    assert pace.slow([("drips", 40)], now + 100) == ["drips"]
    pace.slow([], now + 101)
    assert pace.slow([("drips", 50)], now + 200) == [], "it is not known any more"


@pytest.mark.parametrize(("stress", "expired"), [(True, ["idle", "mail"]), (False, [])])
def test_silence_of_strangers_is_short_under_stress_also_within_a_transaction_SIN_17(
    stress: bool, expired: list[str]
) -> None:
    found = [
        idle("idle", STRESS_IDLE),
        idle("mail", STRESS_IDLE, SUBMITTER, in_transaction=True),
        idle("short", STRESS_IDLE - 0.1),
        idle("known", 250, ACQUAINTANCE),
        idle("account", 250, Worth.ACCOUNT),
    ]
    assert Survey(found, NOW, stress=stress).expired == expired


@given(st.lists(st.tuples(st.sampled_from(Worth), st.floats(0, 400), st.booleans()), max_size=40), st.booleans())
def test_nobody_is_ended_twice_and_the_busy_stay(clients: list[tuple[Worth, float, bool]], stress: bool) -> None:
    found = [Idle(s, NOW - silent, busy, n) for n, (s, silent, busy) in enumerate(clients)]
    survey = Survey(found, NOW, stress=stress)
    ended = list(survey.expired)
    while (one := survey.next_for(ACQUAINTANCE)) is not None:
        ended.append(one.connection)
    assert len(ended) == len(set(ended))
    assert all(clients[n][1] >= LEAST_IDLE * 0.999 for n in ended)
