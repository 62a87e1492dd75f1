"""Connections counted by address: the share of each standing, and whose turn it is."""

from collections.abc import Callable

from mailrail.core.delivery.shares import QUICK, SLOW, UNPROVEN
from mailrail.core.line import DatedLine
from mailrail.core.outbound.targets import ConnectionKey
from mailrail.core.revision.revision import TlsMode
from mailrail.core.smtp.client import ClientProtocol, ClientSession
from mailrail_outbound.server_addresses import ServerAddress, ServerAddresses
from mailrail_outbound.smtp import Dial

from testkit.simulated import SimulatedTime


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
    servers.stand(quick, key("quick.test"), 0.0)
    new = servers.server(dial("new.test"), "192.0.2.2")
    servers.stand(new, key("new.test"), 0.0)
    line = servers.next()
    assert line is not None
    assert line.take() == key("new.test")
    servers.enter(new)
    servers.stand(new, key("newer.test"), 0.0)
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


class SilentServers(SimulatedTime):
    """An outbound process that is handed a backlog at addresses of silent servers, as the queue does: in turns of the
    oldest and the newest, each as soon as another has ended."""

    LOOK = 0.25
    HANDED_ON = 0.1
    """Seconds until the queue has handed another on, and its address is known."""
    CROWD, BACK = 9_000, 12
    """Of those that wait so many, those that wait longest go back: so many each look."""

    def __init__(self, waiting: int, backlog: int) -> None:
        super().__init__()
        self._servers = ServerAddresses(500)  # without those that are let wait for what the RFC gives them
        self._count_addresses = 0
        self._answers: dict[ConnectionKey, tuple[ServerAddress, Callable[[], None] | None]] = {}  # that wait, by age
        self._open: list[tuple[float, ServerAddress]] = []
        self._backlog = list(range(backlog))
        for i in range(waiting):
            self.at(min(i, 250) * 0.004 + i * 0.0005, self._handed_on)  # those dialled first end at different looks
        self.at(self.LOOK, self._look)

    def connect(self, mail_began: float, answered: Callable[[], None] | None = None) -> None:
        """Dial an address of which nothing is known, which is silent unless it is said what to do once it answers."""
        self._count_addresses += 1
        name = f"d{self._count_addresses}.test"
        server = self._servers.server(dial(name), name)
        self._answers[key(name)] = server, answered
        self._servers.stand(server, key(name), mail_began)
        self._feed()

    def _handed_on(self) -> None:
        if self._backlog:
            number = self._backlog.pop(0 if len(self._backlog) % 2 else -1)
            self.connect(-1.0 - 1.0 / (1 + number))

    def _feed(self) -> None:
        while (line := self._servers.next()) is not None:
            server, answered = self._answers.pop(line.take())
            self._servers.enter(server)
            if answered is None:
                self._open.append((self.now, server))
            else:
                self.at(self.now + 0.02, lambda server=server, answered=answered: self._end(server, answered))  # type: ignore[misc]

    def _end(self, server: ServerAddress, then: Callable[[], None]) -> None:
        self._servers.leave(server)
        then()
        self._feed()

    def _look(self) -> None:
        self.at(self.now + self.LOOK, self._look)
        late = [server for since, server in self._open if since <= self.now - 1.0]
        self._open = [each for each in self._open if each[0] > self.now - 1.0]
        for server in late:
            self._end(server, lambda: self.at(self.now + self.HANDED_ON, self._handed_on))
        for back in list(self._answers)[: max(0, min(self.BACK, len(self._answers) - self.CROWD))]:
            server, _ = self._answers.pop(back)
            self._line(server).discard(back)
            self.at(self.now + self.HANDED_ON, self._handed_on)

    def _line(self, server: ServerAddress) -> DatedLine[ConnectionKey]:
        return self._servers._lines[server.standing]


def test_the_first_mail_to_a_new_site_is_dialled_at_once_whenever_it_comes_beside_20_000_silent_addresses() -> None:
    world = SilentServers(waiting=10_000, backlog=20_000)
    took: list[float] = []

    def mail() -> None:
        began = world.now
        world.connect(began, lambda: took.append(world.now - began))

    moments = [8.0 + i * 0.37 for i in range(100)]  # at any phase of the looks
    for moment in moments:
        world.at(moment, mail)
    world.run(until=60.0)
    assert len(took) == len(moments)
    assert max(took) < 1.0
