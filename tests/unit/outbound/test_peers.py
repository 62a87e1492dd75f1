"""Connections counted by address: the share of each standing, and whose turn it is."""

from mailrail.core.delivery.shares import QUICK, SLOW, UNPROVEN
from mailrail.core.outbound.targets import ConnectionKey
from mailrail.core.revision.revision import TlsMode
from mailrail.core.smtp.client import ClientProtocol, ClientSession
from mailrail_outbound.peers import Peer, Peers
from mailrail_outbound.smtp import Dial


def key(host: str) -> ConnectionKey:
    return ConnectionKey("", host, 25, ClientProtocol.SMTP, "me.test", "", "", TlsMode.NONE, False, "")


def dial(host: str) -> Dial:
    return Dial(key(host), "direct", host, 25, ("192.0.2.1",), lambda: ClientSession("me.test"), None)


def entered(peers: Peers, address: str, connections: int) -> Peer:
    peer = peers.peer(dial("mx.test"), address)
    for _ in range(connections):
        peers.enter(peer)
    return peer


def test_names_that_lead_to_one_address_share_its_count() -> None:
    peers = Peers(10)
    one, other = peers.peer(dial("a.test"), "192.0.2.1"), peers.peer(dial("b.test"), "192.0.2.1")
    assert one is other
    assert peers.peer(dial("a.test"), "192.0.2.2") is not one


def test_addresses_that_never_answered_hold_half_and_with_slow_ones_seven_tenths() -> None:
    peers = Peers(10)
    unproven, slow, quick = (entered(peers, f"192.0.2.{i}", n) for i, n in ((1, 5), (2, 0), (3, 0)))
    peers.rate(slow, SLOW)
    peers.rate(quick, QUICK)
    assert not peers.room(unproven)
    peers.enter(slow)
    assert peers.room(slow)
    peers.enter(slow)
    assert not peers.room(slow)
    for _ in range(3):
        assert peers.room(quick)
        peers.enter(quick)
    assert not peers.room(quick)
    assert peers.open == 10


def test_an_address_takes_its_connections_along_to_another_standing() -> None:
    peers = Peers(10)
    peer, other = entered(peers, "192.0.2.1", 5), entered(peers, "192.0.2.2", 0)
    assert not peers.room(other)
    peers.rate(peer, QUICK)
    assert peers.room(other)


def test_quick_addresses_come_first_but_for_a_tenth_of_the_others() -> None:
    peers = Peers(10)
    quick = peers.peer(dial("quick.test"), "192.0.2.1")
    peers.rate(quick, QUICK)
    peers.stand(quick, key("quick.test"))
    new = peers.peer(dial("new.test"), "192.0.2.2")
    peers.stand(new, key("new.test"))
    line = peers.next()
    assert line is not None
    assert line.take() == key("new.test")
    peers.enter(new)
    peers.stand(new, key("newer.test"))
    line = peers.next()
    assert line is not None
    assert line.take() == key("quick.test")


def test_what_is_not_in_use_keeps_its_standing_and_no_room_where_it_has_none() -> None:
    peers = Peers(10)
    never, quick = entered(peers, "192.0.2.1", 1), entered(peers, "192.0.2.2", 1)
    peers.rate(quick, QUICK)
    peers.leave(never)
    peers.leave(quick)
    assert peers.peer(dial("mx.test"), "192.0.2.2") is quick
    assert len(peers._peers) == 1
    for i in range(20_001):
        other = entered(peers, f"198.51.{i // 256}.{i % 256}", 1)
        peers.rate(other, QUICK)
        peers.leave(other)
    assert len(peers._peers) == 20_000
    assert peers.peer(dial("mx.test"), "192.0.2.2").standing is UNPROVEN
