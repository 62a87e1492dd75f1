"""Rows of the TLS decision table as one Mailrail shows them on a network: domains, and what becomes of mail to each.

    with delivering(ROWS) as network:
        for row in ROWS:
            network.check(row)

All messages are sent at once, and each is tried once, so that metrics can be compared with the rows.
"""

import contextlib
import email
import email.message
import smtplib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mailrail.core.tlsrpt import facts

from testkit.ca import Authority, trusting_anybody
from testkit.conditions import wait_until
from testkit.rail import LOGIN, PASSWORD, Document, Rail, basics, gateway, route, rule, transport
from testkit.smtp_peer import SmtpPeer
from testkit.tls_world import Mx, TlsWorld, policy

REQUIRED: Final = "required"
NO: Final = "no"
Publishes = Callable[[Authority, str], Mapping[str, Any]]
"""Makes what a domain publishes of MTA-STS, as TlsWorld.domain takes it."""


@dataclass(frozen=True)
class Goes:
    """The message arrives."""

    proof: str
    """As the metric has it: clear, none, pkix, mta_sts, dane."""
    host: int = 0
    over: str = ""
    """What is passed over, as its metric has it."""
    words: str = ""
    """In the timeline."""


@dataclass(frozen=True)
class Waits:
    """It stays in the queue."""

    cause: str
    words: str
    dialled: bool = False
    status: str = "4.7.5"
    """Or what it begins with."""


@dataclass(frozen=True)
class Fails:
    """The sender gets it back at once."""

    status: str
    reason: str
    """As the metric has it; empty: it is not counted there."""
    dialled: bool = False
    words: str = ""
    """In the timeline."""


@dataclass(frozen=True)
class Row:
    """A domain, and what becomes of a message to it."""

    name: str
    then: Goes | Waits | Fails
    hosts: tuple[Mx, ...] = (Mx(),)
    signed: bool = False
    mode: str = ""
    """Of its policy; empty: it has none. `unanswered`: the DNS does not say whether it has."""
    lists: tuple[str, ...] = ()
    """What its policy lists; default: all its hosts."""
    says: str = "default"
    floor: tuple[tuple[str, Any], ...] = ()
    """Of a rule for it: `require.tls`."""
    by: tuple[tuple[str, Any], ...] = ()
    """Its mail goes to its first host by a transport: the member's name and, as it is written, what it says."""

    publishes: Publishes | None = None
    """In place of `mode` and `lists`."""
    reported: str = ""
    """The failure that reports on TLS tell of it (RFC 8460 4.3); empty: not asked."""
    ours: bool = True
    """False: the signed world has the domain already, and nobody listens there."""

    @property
    def domain(self) -> str:
        return f"{self.name.replace(' ', '-')}.test"


@dataclass
class Network:
    """All rows, and a Mailrail before them."""

    rail: Rail
    world: TlsWorld

    def peers(self, row: Row) -> list[SmtpPeer]:
        """The servers of a row, in order."""
        return self.world.peers.get(row.domain, [])

    def heard(self, row: Row) -> str:
        """What the servers of a row heard and said."""
        return "\n".join(peer.transcript for peer in self.peers(row)) or "nobody was dialled"

    def reported(self) -> dict[str, set[str]]:
        """By domain the failures that its report is to tell, of it and of its hosts."""
        found: dict[str, set[str]] = {}
        for (octets,) in self.rail.sql("SELECT facts FROM outbound.tlsrpt"):
            session = facts.decode(bytes(octets))
            if session.failure is not None:
                found.setdefault(session.report or session.policy.domain, set()).add(session.failure.result.value)
        return found

    def check(self, row: Row) -> None:
        """The message of a row goes, waits or comes back as it says."""
        match row.then:
            case Goes():
                _goes(self, row, row.then)
            case Waits():
                _waits(self, row, row.then)
            case Fails():
                _fails(self, row, row.then)


@contextlib.contextmanager
def delivering(rows: Sequence[Row], more: Callable[[TlsWorld], None] = lambda _: None) -> Iterator[Network]:
    """A Mailrail that was given a message for each row, and a world with their domains and those that `more` adds."""
    with TlsWorld() as world:
        for row in rows:
            if row.ours:
                world.domain(row.domain, *row.hosts, signed=row.signed, **_published(world, row))
        more(world)
        rail = world.deliver(_documents(world, rows))
        with logged_in(rail) as client:
            for row in rows:
                send(client, row.domain, row.says)
        yield Network(rail, world)


def _published(world: TlsWorld, row: Row) -> Mapping[str, Any]:
    if row.publishes is not None:
        return row.publishes(world.world.authority, row.domain)
    if row.mode in ("", "unanswered"):
        return {"broken_record": bool(row.mode)}
    listed = row.lists or [f"mx{n}.{{}}" for n in range(1, len(row.hosts) + 1)]
    return {"policy": policy(row.mode, *(one.format(row.domain) for one in listed))}


def _documents(world: TlsWorld, rows: Iterable[Row]) -> list[Document]:
    """No second attempt within the test: what is counted is the first one of each row."""
    rules, transports = [], []
    for row in rows:
        name = row.domain.removesuffix(".test")
        if row.by:
            ((member, mode),) = row.by
            where = {"host": f"mx1.{row.domain}", "port": world.world.port, "tls": {"mode": mode}}
            transports.append(transport(name, **{member: where}))
        if row.by or row.floor:
            rules.append(rule(name, name if row.by else None, to=[row.domain]))
        if row.floor:
            rules[-1]["require"] = {"tls": dict(row.floor)}
    return [
        *(one for one in basics() if one["kind"] != "MailGateway"),
        gateway(retry={"delaysSeconds": [3600], "lifetimeSeconds": 86400, "maxAttempts": 100}),
        *transports,
        route("rows", ("MailGateway", "local"), *rules),
    ]


@contextlib.contextmanager
def logged_in(rail: Rail) -> Iterator[smtplib.SMTP]:
    """alice, at submission."""
    with smtplib.SMTP(*rail.submission) as client:
        client.starttls(context=trusting_anybody())
        client.login(LOGIN, PASSWORD)
        yield client


def send(client: smtplib.SMTP, domain: str, says: str = "default") -> None:
    """Send a message to `friend` at a domain, whose Message-ID is `mail` there."""
    field = "TLS-Required: No\r\n" if says == NO else ""
    text = f"From: <{LOGIN}>\r\nMessage-ID: <mail@{domain}>\r\n{field}Subject: hello\r\n\r\nmind the gap\r\n"
    options = ["REQUIRETLS"] if says == REQUIRED else []
    assert not client.sendmail(LOGIN, [f"friend@{domain}"], text, mail_options=options)


def ended(rail: Rail, domain: str) -> dict[str, Any]:
    """The last attempt for a domain's recipient that has ended."""
    wait_until(lambda: rail.history(f"friend@{domain}"), 60, f"the end of the mail to {domain}")
    last: dict[str, Any] = rail.history(f"friend@{domain}")[0]["last"]
    return last


def proof_in(attempt: dict[str, Any]) -> str:
    """What an attempt was proven by, in the words of the metric."""
    tls = attempt.get("tls", {})
    if not tls.get("version"):
        return "clear"
    word = str(tls["proof"]).removeprefix("TLS_PROOF_").lower()
    return "none" if word == "unspecified" else word


def _goes(network: Network, row: Row, then: Goes) -> None:
    taker = network.peers(row)[then.host]
    wait_until(lambda: taker.messages, 120, lambda: f"the message at host {then.host}\n{network.heard(row)}")
    assert [len(peer.messages) for peer in network.peers(row)] == [int(peer is taker) for peer in network.peers(row)], (
        network.heard(row)
    )
    (message,) = taker.messages
    assert bool(message.session.tls) == (then.proof != "clear"), network.heard(row)
    required = row.says == REQUIRED and not row.hosts[then.host].lmtp  # RTLS-27: final delivery is no hop
    assert ("REQUIRETLS" in message.mail) == required, network.heard(row)
    last = ended(network.rail, row.domain)
    assert proof_in(last) == then.proof, last
    assert then.words in last["tls"]["verdict"], last


def _waits(network: Network, row: Row, then: Waits) -> None:
    found = network.rail.wait_for_recipient(f"friend@{row.domain}", lambda one: "last" in one, within=120)
    last = found["last"]
    kept = last["tls_cause"].removeprefix("TLS_CAUSE_").lower().replace("_", "-")
    told = f"{last}\n{network.heard(row)}"
    if then.cause:
        assert kept == then.cause, told
        assert last["status"].startswith(then.status), told
    assert then.words in " ".join(last["reply"]["lines"]), told
    _untouched(network, row, dialled=then.dialled)


def _fails(network: Network, row: Row, then: Fails) -> None:
    found = network.rail.wait_for_mail(LOGIN, lambda one: one["in_reply_to"] == f"<mail@{row.domain}>", within=120)
    assert status_in(network.rail.read(found)) == then.status, network.heard(row)
    assert b"mind the gap" not in network.rail.read(found) or row.says != REQUIRED
    assert then.words in " ".join(ended(network.rail, row.domain)["reply"]["lines"])
    _untouched(network, row, dialled=then.dialled)


def status_in(notification: bytes) -> str:
    """The status of the first recipient of a DSN."""
    parts = email.message_from_bytes(notification).walk()
    payload = next(part for part in parts if part.get_content_type() == "message/delivery-status").get_payload()
    assert isinstance(payload, list)
    fields = payload[1]
    assert isinstance(fields, email.message.Message)
    return str(fields["Status"]).split()[0]


def _untouched(network: Network, row: Row, *, dialled: bool) -> None:
    """No server got anything of the message; without `dialled` none was asked."""
    for peer in network.peers(row):
        assert not peer.messages, network.heard(row)
        assert not any(line.startswith("DATA") for line in peer.commands), network.heard(row)
        assert dialled or not peer.sessions, network.heard(row)
