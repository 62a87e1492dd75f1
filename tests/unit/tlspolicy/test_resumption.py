"""Which TLS session a connection may resume: what must be equal, for how long, and how many are kept."""

import gc
import weakref

import pytest

from mailrail.core.outbound.targets import ConnectionKey
from mailrail.core.revision.revision import TlsMode
from mailrail.core.smtp.client import ClientProtocol
from mailrail.core.tlspolicy.resumption import LONGEST, MOST_TRUSTS, SessionCache, SessionKey

CONNECTION = ConnectionKey(
    transport="digest",
    host="mx.example.org",
    port=25,
    protocol=ClientProtocol.SMTP,
    hello_name="mail.example.net",
    source="",
    identity="",
    tls=TlsMode.VERIFIED,
    implicit_tls=False,
    verified="mx.example.org",
)
TRUST = object()
KEY = SessionKey(CONNECTION, "192.0.2.1", "mx.example.org", TRUST)


def host(number: int) -> SessionKey:
    return KEY._replace(ip=f"192.0.2.{number}")


def kept(cache: SessionCache[str], key: SessionKey = KEY, *, now: float = 0.0, seconds: float = 7200.0) -> None:
    """Two full handshakes, the second of which gives the session."""
    cache.wanted(key, now)
    assert cache.wanted(key, now)
    cache.keep(key, f"session of {key.ip}", seconds, now)


def test_a_session_is_kept_from_the_second_full_handshake_on_TLS_10d() -> None:
    cache = SessionCache[str](10)
    assert not cache.wanted(KEY, 0.0)
    assert cache.wanted(KEY, 10.0)
    cache.keep(KEY, "session", 7200.0, 10.0)
    assert cache.find(KEY, 20.0) == "session"
    assert not cache.wanted(KEY, 20.0)  # others that shook hands meanwhile


def test_two_handshakes_more_than_an_hour_apart_are_each_the_first() -> None:
    cache = SessionCache[str](10)
    assert not cache.wanted(KEY, 0.0)
    assert not cache.wanted(KEY, LONGEST)
    assert cache.wanted(KEY, LONGEST + 1)


@pytest.mark.parametrize(
    "other",
    [
        KEY._replace(ip="192.0.2.2"),
        KEY._replace(server_name="mx2.example.org"),
        KEY._replace(trust=object()),
        KEY._replace(connection=CONNECTION._replace(transport="another digest")),
        KEY._replace(connection=CONNECTION._replace(host="mx2.example.org")),
        KEY._replace(connection=CONNECTION._replace(port=465)),
        KEY._replace(connection=CONNECTION._replace(source="192.0.2.9:1080")),
        KEY._replace(connection=CONNECTION._replace(identity="user")),
        KEY._replace(connection=CONNECTION._replace(tls=TlsMode.OPPORTUNISTIC)),
        KEY._replace(connection=CONNECTION._replace(implicit_tls=True)),
        KEY._replace(connection=CONNECTION._replace(verified="")),
    ],
)
def test_a_session_serves_only_what_it_was_made_under_TLS_10a(other: SessionKey) -> None:
    cache = SessionCache[str](10)
    kept(cache)
    assert cache.find(other, 0.0) is None
    assert cache.find(KEY, 0.0) is not None


@pytest.mark.parametrize(("seconds", "life"), [(7200.0, LONGEST), (600.0, 600.0)])
def test_a_session_lives_as_long_as_server_and_certificate_allow_and_an_hour_at_most_TLS_10b(
    seconds: float, life: float
) -> None:
    cache = SessionCache[str](10)
    kept(cache, seconds=seconds)
    assert cache.find(KEY, life - 1) is not None
    assert cache.find(KEY, life) is None
    assert len(cache) == 0


@pytest.mark.parametrize("seconds", [0.0, -5.0])
def test_a_session_whose_time_is_over_is_not_kept_and_not_asked_for_again_soon_TLS_10b(seconds: float) -> None:
    cache = SessionCache[str](10)
    kept(cache, seconds=seconds)
    assert cache.find(KEY, 0.0) is None
    assert not cache.wanted(KEY, 1.0)


def test_a_server_that_gives_no_session_is_not_asked_for_one_each_time() -> None:
    cache = SessionCache[str](10)
    cache.wanted(KEY, 0.0)
    assert cache.wanted(KEY, 1.0)
    cache.keep(KEY, None, 0.0, 1.0)
    assert not cache.wanted(KEY, 2.0)
    assert not cache.wanted(KEY, 3.0)


def test_a_server_that_does_not_resume_is_left_alone_for_an_hour_TLS_10c() -> None:
    cache = SessionCache[str](10)
    kept(cache)
    cache.rest(KEY, 5.0)
    assert cache.find(KEY, 5.0) is None
    assert not cache.wanted(KEY, 6.0)
    assert not cache.wanted(KEY, 5.0 + LONGEST - 1)
    assert not cache.wanted(KEY, 5.0 + LONGEST)  # the first one again
    assert cache.wanted(KEY, 5.0 + LONGEST + 1)


def test_no_more_than_so_many_are_kept_and_those_in_use_stay_longest_TLS_10d() -> None:
    cache = SessionCache[str](3)
    for number in (1, 2, 3):
        kept(cache, host(number))
    assert cache.find(host(1), 1.0) is not None
    kept(cache, host(4))
    assert len(cache) == 3
    assert cache.find(host(1), 2.0) is not None
    assert cache.find(host(2), 2.0) is None


def test_hosts_that_are_met_once_take_no_bounded_place_from_sessions_TLS_10d() -> None:
    cache = SessionCache[str](3)
    kept(cache, host(1))
    for number in range(2, 250):
        assert not cache.wanted(host(number), 1.0)
    assert cache.find(host(1), 2.0) is not None
    assert not cache.wanted(host(2), 2.0)  # forgotten among so many
    assert cache.wanted(host(249), 2.0)


class Roots:
    """Trust roots, which are to be freed."""


def test_sessions_keep_few_sets_of_trust_roots_alive_TLS_10d() -> None:
    cache = SessionCache[str](100)
    sets = [Roots() for _ in range(MOST_TRUSTS + 3)]
    living = weakref.WeakSet(sets)
    for roots in sets:
        kept(cache, KEY._replace(trust=roots))
        kept(cache, host(2)._replace(trust=roots))
    del sets, roots
    gc.collect()
    assert len(living) == MOST_TRUSTS
    assert len(cache) == 2 * MOST_TRUSTS


def test_what_was_noted_of_a_host_keeps_no_trust_roots_alive_TLS_10d() -> None:
    cache = SessionCache[str](100)
    roots = Roots()
    living = weakref.WeakSet([roots])
    key = KEY._replace(trust=roots)
    cache.wanted(key, 0.0)
    cache.rest(key, 0.0)
    del roots, key
    gc.collect()
    assert not living


def test_sessions_whose_time_is_over_go_when_another_comes_TLS_10d() -> None:
    cache = SessionCache[str](100)
    for number in range(1, 10):
        kept(cache, host(number), seconds=60.0)
    kept(cache, host(20), now=100.0)
    assert len(cache) == 1


def test_none_is_kept_where_there_is_room_for_none() -> None:
    cache = SessionCache[str](0)
    assert not cache.wanted(KEY, 0.0)
    assert not cache.wanted(KEY, 1.0)


def test_where_each_one_costs_memory_for_good_there_is_an_end_to_it_TLS_10d() -> None:
    cache = SessionCache[str](10, reads=2)
    for number in (1, 2):
        kept(cache, host(number))
    cache.wanted(host(3), 0.0)
    assert not cache.wanted(host(3), 0.0)
    assert cache.find(host(1), 0.0) is not None
