"""Connections counted by address: the share of each standing, and whose turn it is."""

from mailrail.core.delivery.shares import QUICK, SLOW, UNPROVEN
from mailrail.core.outbound.targets import ConnectionKey
from mailrail.core.revision.revision import TlsMode
from mailrail.core.smtp.client import ClientProtocol, ClientSession
from mailrail_outbound.server_addresses import ServerAddress, ServerAddresses
from mailrail_outbound.smtp import Dial


def key(host: str) -> ConnectionKey:
    return ConnectionKey("", host, 25, ClientProtocol.SMTP, "me.test", "", "", TlsMode.NONE, False, "")


def dial(host: str) -> Dial:
    return Dial(key(host), "direct", host, 25, ("192.0.2.1",), lambda: ClientSession("me.test"), None)


def entered(servers: ServerAddresses, address: str, connections: int) -> ServerAddress:
    server = servers.server(dial("mx.test"), address)
    for _ in range(connections):
        servers.enter(server)
    return server


def test_names_that_lead_to_one_address_share_its_count() -> None:
    servers = ServerAddresses(10)
    one, other = servers.server(dial("a.test"), "192.0.2.1"), servers.server(dial("b.test"), "192.0.2.1")
    assert one is other
    assert servers.server(dial("a.test"), "192.0.2.2") is not one


def test_addresses_that_never_answered_hold_half_and_with_slow_ones_seven_tenths() -> None:
    servers = ServerAddresses(10)
    unproven, slow, quick = (entered(servers, f"192.0.2.{i}", n) for i, n in ((1, 5), (2, 0), (3, 0)))
    servers.rate(slow, SLOW)
    servers.rate(quick, QUICK)
    assert not servers.room(unproven)
    servers.enter(slow)
    assert servers.room(slow)
    servers.enter(slow)
    assert not servers.room(slow)
    for _ in range(3):
        assert servers.room(quick)
        servers.enter(quick)
    assert not servers.room(quick)
    assert servers.open == 10


def test_an_address_takes_its_connections_along_to_another_standing() -> None:
    servers = ServerAddresses(10)
    server, other = entered(servers, "192.0.2.1", 5), entered(servers, "192.0.2.2", 0)
    assert not servers.room(other)
    servers.rate(server, QUICK)
    assert servers.room(other)


def test_quick_addresses_come_first_but_for_a_tenth_of_the_others() -> None:
    servers = ServerAddresses(10)
    quick = servers.server(dial("quick.test"), "192.0.2.1")
    servers.rate(quick, QUICK)
    servers.stand(quick, key("quick.test"))
    new = servers.server(dial("new.test"), "192.0.2.2")
    servers.stand(new, key("new.test"))
    line = servers.next()
    assert line is not None
    assert line.take() == key("new.test")
    servers.enter(new)
    servers.stand(new, key("newer.test"))
    line = servers.next()
    assert line is not None
    assert line.take() == key("quick.test")


def test_what_is_not_in_use_keeps_its_standing_and_no_room_where_it_has_none() -> None:
    servers = ServerAddresses(10)
    never, quick = entered(servers, "192.0.2.1", 1), entered(servers, "192.0.2.2", 1)
    servers.rate(quick, QUICK)
    servers.leave(never)
    servers.leave(quick)
    assert servers.server(dial("mx.test"), "192.0.2.2") is quick
    assert len(servers._servers) == 1
    for i in range(20_001):
        other = entered(servers, f"198.51.{i // 256}.{i % 256}", 1)
        servers.rate(other, QUICK)
        servers.leave(other)
    assert len(servers._servers) == 20_000
    assert servers.server(dial("mx.test"), "192.0.2.2").standing is UNPROVEN
