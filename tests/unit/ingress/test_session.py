"""What a session decides, with a queue, a DNS and a next hop whose answers the test gives: late, or never."""

import asyncio
import email
import re
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from mailrail.core.message.header import Header
from mailrail.core.revision.revision import (
    Alias,
    Domain,
    DomainDelivery,
    Match,
    ObjectRef,
    Recipients,
    RouteLevel,
    Rule,
    Transport,
    TransportKind,
)
from mailrail.core.sasl import server as sasl_server
from mailrail.core.sasl.verifiers import ITERATIONS, ScramVerifier
from mailrail.core.smtp.events import Closing, TlsRequested
from mailrail.core.smtp.line_facts import PLAIN, UNKNOWN, WHOLE, LineFacts
from mailrail.core.smtp.parameters import BodyType
from mailrail.core.smtp.reply import Reply
from mailrail.core.smtp.server import ServerSession
from mailrail.core.smtp.stuffing import has_bare_line_ends
from mailrail.core.smtp.tls import TlsFacts
from mailrail.core.tlspolicy.decision import Requirement
from mailrail.core.uncommitted import SETTLING, Uncommitted
from mailrail_ingress.active_config import ActiveConfig, ListenerKey
from mailrail_ingress.checks.content import Check, CheckLists, Moment, Whose
from mailrail_ingress.checks.verdicts import Edit, Pending, Refuse
from mailrail_ingress.content import PARTS_LIMIT
from mailrail_ingress.held_octets import HeldOctets
from mailrail_ingress.ports import NO_CREDIT, CommitAnswer, DomainFacts, ReceivedMessage
from mailrail_ingress.session import HANDLERS, SmtpSession
from mailrail_ingress.settings import IngressSettings
from mailrail_ingress.throttle import FAILURES, LOGIN_FAILURES

from testkit.ingress import GATEWAY, PASSWORD, HeldQueue, code, no_probes, setup

NOW = 1_795_370_400.0
TRANSPORT = ObjectRef("MailTransport", "mail", "next")


class Held:
    """A lookup whose answers the test gives."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.done: Callable[[DomainFacts], None] = lambda _: None
        self.verified: Callable[[Reply | None], None] = lambda _: None

    def look_up(self, domain: str, done: Callable[[DomainFacts], None]) -> None:
        self.asked.append(domain)
        self.done = done

    def verify(self, address: str, transport: ObjectRef, done: Callable[[Reply | None], None]) -> None:
        assert transport == TRANSPORT
        self.asked.append(address)
        self.verified = done


class Client:
    """A protocol and its session, with the shell reduced to what the session sees of it."""

    def __init__(self, active_config: ActiveConfig, listener: str = "mx") -> None:
        config = active_config.listeners[ListenerKey(GATEWAY, listener)]
        self.protocol = ServerSession(config.options)
        self.session = SmtpSession(active_config, config, self.protocol, self, ip_address("192.0.2.1"))
        self.said = b""
        self.paused = False
        self.pumping = False
        self.pump()

    def pump(self) -> None:
        if self.pumping:
            return
        self.pumping = True
        while (event := self.protocol.next_event()) is not None:
            if not isinstance(event, Closing | TlsRequested):
                HANDLERS[type(event)](self.session, event)
        self.pumping = False
        self.said += self.protocol.data_to_send()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def send(self, data: bytes) -> list[str]:
        before = len(self.said)
        self.protocol.receive(data, NOW)
        self.pump()
        return [code(line) for line in self.said[before:].decode().splitlines()]

    def leave(self) -> None:
        self.protocol.hang_up()
        self.session.hang_up()


def active_config(queue: HeldQueue, held: Held | None = None) -> ActiveConfig:
    made = setup()
    domain = Domain(
        ObjectRef("MailDomain", "mail", "behind"),
        "behind.example",
        DomainDelivery.TRANSPORT,
        TRANSPORT,
        recipients=Recipients.VERIFY,
    )
    smarthost = Transport(TRANSPORT, TransportKind.SMTP, host="smart.example")
    rule = Rule(ObjectRef("MailRoute", "mail", "all"), 0, "smart", (Match(to_domains=("smart.example",)),), TRANSPORT)
    revision = replace(
        made.revision,
        domains=(*made.revision.domains, domain),
        transports=(smarthost,),
        global_routes=(RouteLevel(GATEWAY, (rule,)),),
    )
    settings = IngressSettings(log_messages=False)
    config = ActiveConfig(
        settings, queue, fake_key=b"f" * 32, probes=no_probes, domains=held, verification=held, clock=lambda: NOW
    )
    config.configure(revision, 7, made.secrets)
    return config


TLS = TlsFacts("TLSv1.3", "TLS_AES_128_GCM_SHA256")
OPEN = b"EHLO c\r\nMAIL FROM:<x@far.example>\r\nRCPT TO:<ada@home.example>\r\nDATA\r\n"
BIG = b"Subject: x\r\n\r\n" + (b"x" * 998 + b"\r\n") * 1200


def test_the_answer_waits_for_the_commit_and_comes_from_it_SIN_01() -> None:
    queue = HeldQueue()
    client = Client(active_config(queue))
    assert client.send(OPEN)[-1] == "354"
    assert client.send(b"Subject: x\r\n\r\nbody\r\n.\r\nNOOP\r\n") == []
    message, done = queue.commits[0]
    assert (message.body, message.provenance.revision, message.received) == (b"Subject: x\r\n\r\nbody\r\n", 7, NOW)
    done(CommitAnswer(True))
    assert client.said.decode().splitlines()[-2:] == [f"250 2.6.0 accepted as {message.id.hex()}", "250 2.0.0 ok"]


@pytest.mark.parametrize(
    ("parameter", "header", "requirement"),
    [
        ("", b"", Requirement.DEFAULT),
        ("", b"TLS-Required: No\r\n", Requirement.NO),
        ("", b"TLS-Required: No\r\nTLS-Required: bogus\r\n", Requirement.DEFAULT),
        (" REQUIRETLS", b"", Requirement.REQUIRED),
        (" REQUIRETLS", b"TLS-Required: No\r\n", Requirement.REQUIRED),
        (" REQUIRETLS", b"TLS-Required: No\r\nTLS-Required: bogus\r\n", Requirement.REQUIRED),
    ],
)
def test_what_a_message_demands_of_tls_is_committed_with_it_before_250_RTLS_07_RTLS_08(
    parameter: str, header: bytes, requirement: Requirement
) -> None:
    queue = HeldQueue()
    client = Client(active_config(queue))
    client.protocol.tls = TLS
    content = b"Subject: x\r\n" + header + b"\r\nbody\r\n"
    client.send(OPEN.replace(b"far.example>", b"far.example>" + parameter.encode()) + content + b".\r\n")
    message, done = queue.commits[0]
    assert message.requirement is requirement
    assert message.body == content  # the field may stay (RTLS-08)
    assert (b" with ESMTPS (requiretls)\r\n\tid " in message.prefix) is (requirement is Requirement.REQUIRED)
    assert client.said.endswith(b"354 end data with <CRLF>.<CRLF>\r\n")
    done(CommitAnswer(True))
    assert client.said.endswith(b" accepted as " + message.id.hex().encode() + b"\r\n")


def test_the_messages_of_a_session_have_each_their_own_requirement() -> None:
    queue = HeldQueue()
    client = Client(active_config(queue))
    client.protocol.tls = TLS
    client.send(b"EHLO c\r\n")
    for parameter in ("", " REQUIRETLS", "", " REQUIRETLS"):
        client.send(f"MAIL FROM:<x@far.example>{parameter}\r\nRCPT TO:<ada@home.example>\r\nDATA\r\n".encode())
        client.send(b"Subject: x\r\n\r\n.\r\n")
        queue.commits[-1][1](CommitAnswer(True))
    assert [message.requirement.value for message, _ in queue.commits] == ["default", "required"] * 2
    assert [b"(requiretls)" in message.prefix for message, _ in queue.commits] == [False, True] * 2


def test_a_commit_that_is_answered_after_its_client_has_left_is_only_counted_SIN_18() -> None:
    queue = HeldQueue()
    config = active_config(queue)
    client = Client(config)
    client.send(OPEN + b"Subject: x\r\n\r\n.\r\n")
    before = client.said
    client.leave()
    queue.commits[0][1](CommitAnswer(True))
    assert client.said == before
    assert config.transactions.number == 0


def test_open_transactions_are_counted_whatever_becomes_of_them() -> None:
    queue = HeldQueue()
    config = active_config(queue)
    for end in (b"RSET\r\n", b"EHLO again\r\n", b"QUIT\r\n", b"MAIL FROM:<>\r\nNOOP\n"):
        client = Client(config)
        client.send(b"EHLO c\r\nMAIL FROM:<x@far.example>\r\n")
        assert config.transactions.number == 1
        client.send(end)
        assert config.transactions.number == 0
    client = Client(config)
    client.send(OPEN)
    client.leave()
    assert config.transactions.number == 0


def test_a_stalled_upload_stops_the_client_and_goes_on_with_credit_ACC_07() -> None:
    queue = HeldQueue()
    queue.more = False
    client = Client(active_config(queue))
    client.send(OPEN)
    client.send(BIG)
    assert client.paused
    assert client.paused
    queue.uploads[0].resume()
    assert not client.paused
    queue.uploads[0].more = True
    client.send(b".\r\n")
    assert queue.commits[0][0].body is None
    assert b"".join(queue.uploads[0].frames) == BIG
    assert {len(frame) for frame in queue.uploads[0].frames[:-1]} == {256 * 1024}


def test_one_clients_large_mail_is_bounded_and_small_mail_passes_ACC_07() -> None:
    now = [0.0]
    queue, config = HeldQueue(), active_config(HeldQueue())
    config.queue, config.monotonic = queue, lambda: now[0]
    config.uncommitted = Uncommitted(100_000_000, 4_000_000)
    clients = [Client(config) for _ in range(4)]
    for client in clients:
        client.send(OPEN)
        client.send(BIG)  # 1,200,000 octets each: three are too much to begin a fourth
    assert [upload.aborted for upload in queue.uploads] == [False] * 3
    assert clients[3].send(b".\r\n") == ["452 4.3.1"]
    small = Client(config)
    small.send(OPEN + b"Subject: small\r\n\r\nbody\r\n.\r\n")
    assert queue.commits.pop()[0].body is not None

    clients[0].send(BIG)  # over the whole bound: nothing of it is stored any longer
    clients[0].send(BIG)
    assert queue.uploads[0].aborted
    assert clients[0].send(b".\r\n") == ["452 4.3.1"]
    clients[1].send(b".\r\n")
    queue.commits.pop()[1](CommitAnswer(True))  # its room is free
    clients[2].leave()  # its room is free a minute later
    assert "452 4.3.1" in Client(config).send(OPEN.replace(b"far.example>", b"far.example> SIZE=2000000"))
    now[0] += SETTLING
    assert config.uncommitted.octets(now[0]) == 0
    client = Client(config)
    client.send(OPEN.replace(b"far.example>", b"far.example> SIZE=1200000") + BIG + b".\r\n")
    queue.commits.pop()[1](CommitAnswer(True))
    assert config.uncommitted.octets(now[0]) == 0


MAIL = b"EHLO c\r\nMAIL FROM:<x@far.example> SIZE=%d\r\n"
TO_DATA = b"RCPT TO:<ada@home.example>\r\nDATA\r\n"


def test_a_client_hears_at_mail_that_its_messages_under_way_will_fill_its_room_ACC_07() -> None:
    queue = HeldQueue()
    config = active_config(queue)
    config.uncommitted = Uncommitted(100_000_000, 4_000_000)
    first, second, third = (Client(config) for _ in range(3))
    said = [client.send(MAIL % 1_500_000)[-1] for client in (first, second, third)]
    assert said == ["250 2.1.0", "250 2.1.0", "452 4.3.1"]
    for client in (first, second):
        client.send(TO_DATA)
        client.send(BIG)
    assert third.send(MAIL % 1_500_000)[-1] == "452 4.3.1"
    assert all(upload.size >= 1_500_000 for upload in queue.uploads), "the queue keeps room for them as well"
    for client in (first, second):
        client.send(b".\r\n")
        queue.commits.pop()[1](CommitAnswer(True))
    assert client.said.count(b"250 2.6.0") == 1
    assert third.send(MAIL % 1_500_000)[-1] == "250 2.1.0"


@pytest.mark.parametrize(
    "end",
    [
        b"RSET\r\n",
        b"EHLO again\r\n",
        b"QUIT\r\n",
        b"MAIL FROM:<>\r\nNOOP\n",
        TO_DATA + b"Subject: much smaller\r\n\r\nbody\r\n.\r\n",
        TO_DATA + b"Received: a loop\r\n" * 101 + b"\r\n.\r\n",
        TO_DATA,
        b"",
    ],
)
def test_what_was_only_declared_is_free_at_once_whatever_becomes_of_it_ACC_07(end: bytes) -> None:
    queue = HeldQueue()
    config = active_config(queue)
    config.uncommitted = Uncommitted(100_000_000, 4_000_000)
    client, other = Client(config), Client(config)
    assert client.send(MAIL % 3_900_000)[-1] == "250 2.1.0"
    assert other.send(MAIL % 3_900_000)[-1] == "452 4.3.1"
    client.send(end)
    for _, done in queue.commits:
        done(CommitAnswer(True))
    if end in (b"", TO_DATA):
        assert other.send(MAIL % 3_900_000)[-1] == "452 4.3.1"
        client.leave()
    assert other.send(MAIL % 3_900_000)[-1] == "250 2.1.0"
    assert config.uncommitted.octets(0.0) == 0


def test_a_sender_that_is_refused_after_its_declaration_keeps_no_room_ACC_07() -> None:
    held = Held()
    queue = HeldQueue()
    config = active_config(queue, held)
    config.uncommitted = Uncommitted(100_000_000, 4_000_000)
    for answer, said in ((DomainFacts.DOES_NOT_EXIST, b"550 5.1.8"), (DomainFacts.RESOLVES, b"250 2.1.0")):
        client = Client(config)
        client.send(MAIL % 3_900_000)
        held.done(answer)
        assert said in client.said
    queue.available = False
    assert client.send(TO_DATA)[-1].startswith("451")
    queue.available = True
    client.leave()
    last = Client(config)
    last.send(MAIL % 3_900_000)
    held.done(DomainFacts.RESOLVES)
    assert b"250 2.1.0" in last.said


def test_large_mail_of_all_clients_is_bounded_ACC_07() -> None:
    queue = HeldQueue()
    config = active_config(queue)
    config.uncommitted = Uncommitted(2_000_000)
    first, second = Client(config), Client(config)
    first.send(OPEN + BIG)
    first.send(BIG[:400_000])
    assert second.send(OPEN + BIG + b".\r\n")[-1:] == ["452 4.3.1"]
    assert len(queue.uploads) == 1


def test_a_client_hears_before_it_sends_that_the_large_messages_of_others_take_all_room_ACC_07() -> None:
    queue = HeldQueue()
    config = active_config(queue)
    config.monotonic = lambda: 0.0
    config.uncommitted = Uncommitted(8_000_000)
    first, second, third = (Client(config) for _ in range(3))
    for client in (first, second):
        assert client.send(MAIL % 1_500_000)[-1] == "250 2.1.0"
    assert first.send(TO_DATA)[-1] == "354"
    assert third.send(MAIL % 1_500_000)[-1] == "452 4.3.1", "at MAIL, if it is known by then"
    assert second.send(TO_DATA)[-1] == "452 4.3.1", "else at DATA"
    assert second.send(b"MAIL FROM:<x@far.example>\r\n" + TO_DATA)[-1] == "354"
    second.send(b"Subject: small\r\n\r\nbody\r\n.\r\n")
    assert queue.commits.pop()[0].body is not None
    first.send(BIG + b".\r\n")
    queue.commits.pop()[1](CommitAnswer(True))
    assert third.send(MAIL % 1_500_000 + TO_DATA)[-1] == "354"
    assert config.transactions.number == 2


def test_a_chunk_of_a_client_that_may_not_start_is_read_to_its_end_and_refused_EXT_05_ACC_07() -> None:
    config = active_config(HeldQueue())
    config.monotonic = lambda: 0.0
    config.uncommitted = Uncommitted(8_000_000)
    first, second = Client(config), Client(config)
    for client in (first, second):
        client.send(MAIL % 1_500_000 + b"RCPT TO:<ada@home.example>\r\n")
    assert first.send(b"BDAT 1200014\r\n") == []
    assert second.send(b"BDAT 5\r\nhelloNOOP\r\n") == ["452 4.3.1", "250 2.0.0"]


def test_who_has_delivered_in_its_session_or_logged_in_is_no_stranger_ACC_07() -> None:
    queue = HeldQueue()
    config = active_config(queue)
    config.monotonic = lambda: 0.0
    config.uncommitted = Uncommitted(8_000_000)
    friend, first = Client(config), Client(config)
    friend.send(OPEN + b"Subject: x\r\n\r\nbody\r\n.\r\n")
    queue.commits.pop()[1](CommitAnswer(True))
    first.send(MAIL % 1_500_000 + TO_DATA)
    assert friend.send(MAIL % 1_500_000 + TO_DATA)[-1] == "354"


def waiting(config: ActiveConfig) -> tuple[Client, Client]:
    """A client whose large message is nearly whole, and one that did not say how large its message is: it waits."""
    config.monotonic = lambda: 0.0
    config.uncommitted = Uncommitted(2_400_000)
    near, without = Client(config), Client(config)
    assert near.send(MAIL % 1_300_000 + TO_DATA)[-1] == "354"
    near.send(BIG)
    without.send(OPEN + BIG)
    assert not without.paused
    without.send(BIG[:300_000])
    assert without.paused
    return near, without


def test_where_room_is_near_a_client_is_not_read_until_it_is_there_ACC_07() -> None:
    queue = HeldQueue()
    config = active_config(queue)
    near, without = waiting(config)
    near.send(b".\r\n")
    assert without.paused, "it is not whole before it is stored"
    queue.commits.pop()[1](CommitAnswer(True))
    assert not without.paused
    without.send(b"\r\n.\r\n")
    message, done = queue.commits.pop()
    assert b"".join(queue.uploads[1].frames) == BIG + BIG[:300_000] + b"\r\n"
    assert message.size == len(message.prefix) + len(BIG) + 300_002
    done(CommitAnswer(True))
    assert (config.uncommitted.octets(0.0), config.budget.held) == (0, 0)


def test_a_client_that_waits_for_room_is_refused_when_it_does_not_come_ACC_07() -> None:
    queue = HeldQueue()
    near, without = waiting(active_config(queue))
    near.leave()
    assert not without.paused, "nothing else will be whole soon"
    assert without.send(b"\r\n.\r\n") == ["452 4.3.1"]


@pytest.mark.parametrize("end", ["time", "leaves", "lost"])
def test_a_client_that_waits_for_room_and_ends_meanwhile_is_forgotten_ACC_07(end: str) -> None:
    queue = HeldQueue()
    config = active_config(queue)
    near, without = waiting(config)
    if end == "time":
        without.session.time_out_credit()
    elif end == "leaves":
        without.leave()
    else:
        queue.uploads[1].lost()
    near.send(b".\r\n")
    queue.commits.pop()[1](CommitAnswer(True))
    if end != "leaves":
        assert not without.paused
        assert without.send(b"\r\n.\r\n")[-1][:3] in ("451", "452")
    assert config.budget.held == 0


def test_content_that_comes_in_crumbs_is_kept_in_few_pieces_ACC_07() -> None:
    queue = HeldQueue()
    client = Client(active_config(queue))
    client.send(OPEN + b"\r\n")
    for _ in range(3 * PARTS_LIMIT):
        client.send(b"xy")
        content = client.session._transaction.content  # type: ignore[union-attr]
        assert len(content._parts) <= PARTS_LIMIT  # type: ignore[union-attr]
    client.send(b"\r\n.\r\n")
    assert queue.commits[0][0].body == b"\r\n" + b"xy" * 3 * PARTS_LIMIT + b"\r\n"


def test_without_credit_for_too_long_the_message_is_refused_at_its_end_ACC_07() -> None:
    queue = HeldQueue()
    queue.more = False
    client = Client(active_config(queue))
    client.send(OPEN)
    client.send(BIG)
    client.session.time_out_credit()
    assert not client.paused
    assert queue.uploads[0].aborted
    assert client.send(BIG + b".\r\n") == ["452 4.3.1"]
    assert queue.commits == []


def test_clients_that_hold_endless_headers_wait_while_too_much_is_kept_and_small_mail_passes_ACC_07() -> None:
    queue = HeldQueue()
    config = active_config(queue)
    config.budget = HeldOctets(1_000_000)
    header = b"X: " + b"y" * 990 + b"\r\n"
    slow = [Client(config) for _ in range(100)]
    for client in slow:
        client.send(OPEN)
    for _ in range(200):
        for client in slow:
            if not client.paused:
                client.send(header)
    assert config.budget.held < 1_200_000
    assert any(client.paused for client in slow)
    prompt = Client(config)
    prompt.send(OPEN + b"Subject: x\r\n\r\nbody\r\n.\r\n")
    assert not prompt.paused
    assert len(queue.commits) == 1
    queue.commits[0][1](CommitAnswer(True))
    waiting = [client for client in slow if client.paused]
    for client in waiting:
        client.session.time_out_credit()
        assert not client.paused
    assert not config.budget.waiting
    assert waiting[0].send(b"\r\n.\r\n") == ["452 4.3.1"]
    for client in slow:
        client.leave()
    assert (config.budget.held, config.budget.holders, config.budget.waiting) == (0, 0, 0)


def test_clients_that_wait_for_room_go_on_when_others_are_done_ACC_07() -> None:
    config = active_config(HeldQueue())
    config.budget = HeldOctets(100_000)
    one, other = Client(config), Client(config)
    for client in (one, other):
        client.send(OPEN)
        client.send(b"X: y\r\n" * 10_000)
    assert (one.paused, other.paused) == (False, True)
    one.leave()
    assert not other.paused


def test_a_budget_that_is_spent_makes_frames_short_and_stops_nobody_whom_the_queue_has_room_for_ACC_07() -> None:
    queue = HeldQueue()
    config = active_config(queue)
    config.budget = HeldOctets(100_000)
    holder, client = Client(config), Client(config)
    holder.send(OPEN)
    holder.send(b"X: y\r\n" * 16_000)
    client.send(OPEN)
    client.send(b"Subject: x\r\n\r\n")
    for _ in range(100):
        client.send(b"x" * 998 + b"\r\n")
        assert not client.paused
    assert len(queue.uploads) == 1


def test_a_message_that_is_whole_waits_for_the_queue_alone_even_if_it_was_stalled_ACC_07() -> None:
    queue = HeldQueue()
    queue.more = False
    client = Client(active_config(queue))
    client.send(OPEN)
    assert client.send(BIG + b".\r\n") == []
    assert not client.paused
    client.session.time_out_credit()
    assert not queue.uploads[0].aborted
    queue.commits[0][1](CommitAnswer(False, NO_CREDIT))
    assert code(client.said.decode().splitlines()[-1]) == "452 4.3.1"


def test_a_lost_body_is_451_at_the_end_and_nothing_is_committed_ACC_05() -> None:
    queue = HeldQueue()
    client = Client(active_config(queue))
    client.send(OPEN)
    client.send(BIG)
    queue.uploads[0].lost()
    assert client.send(b"more\r\n.\r\n") == ["451 4.3.0"]
    assert queue.commits == []
    assert client.send(b"MAIL FROM:<x@far.example>\r\n") == ["250 2.1.0"]


def test_an_upload_is_aborted_when_the_client_leaves_or_the_message_grows_too_large() -> None:
    queue = HeldQueue()
    client = Client(active_config(queue))
    client.send(OPEN)
    client.send(BIG)
    client.leave()
    assert queue.uploads[0].aborted
    config = active_config(queue)
    client = Client(config)
    client.protocol.options = replace(client.protocol.options, size_limit=1_400_000)
    client.send(OPEN)
    client.send(BIG)
    client.send(BIG)
    assert queue.uploads[1].aborted
    assert client.send(b".\r\n") == ["552 5.3.4"]


def test_a_queue_that_went_away_refuses_new_mail_at_once_ACC_05() -> None:
    queue = HeldQueue()
    client = Client(active_config(queue))
    client.send(b"EHLO c\r\nMAIL FROM:<x@far.example>\r\nRCPT TO:<ada@home.example>\r\n")
    queue.available = False
    assert client.send(b"DATA\r\n") == ["451 4.3.0"]
    assert client.send(b"MAIL FROM:<x@far.example>\r\n") == ["451 4.3.0"]


def test_a_late_answer_about_a_sender_is_given_in_its_place_SIN_23a() -> None:
    held = Held()
    client = Client(active_config(HeldQueue(), held))
    assert client.send(b"EHLO c\r\nMAIL FROM:<x@far.example>\r\nRCPT TO:<ada@home.example>\r\n")[-1] == "250"
    assert held.asked == ["far.example"]
    held.done(DomainFacts.RESOLVES)
    assert client.said.endswith(b"250 2.1.0 sender ok\r\n250 2.1.5 recipient ok\r\n")
    client.send(b"RSET\r\nMAIL FROM:<x@null.example>\r\nRCPT TO:<ada@home.example>\r\n")
    held.done(DomainFacts.NULL_MX)
    assert [code(line) for line in client.said.decode().splitlines()[-2:]] == ["550 5.7.27", "503 5.5.1"]
    client.send(b"MAIL FROM:<x@slow.example>\r\n")
    client.leave()
    held.done(DomainFacts.RESOLVES)  # nobody is there to hear it


def test_a_recipient_that_the_next_hop_knows_is_asked_for() -> None:
    held = Held()
    client = Client(active_config(HeldQueue(), held))
    client.send(b"EHLO c\r\nMAIL FROM:<>\r\n")
    for verdict, expected in ((None, "250 2.1.5"), (Reply.of(550, "5.1.1", "no"), "550 5.1.1")):
        assert client.send(b"RCPT TO:<who@behind.example>\r\n") == []
        held.verified(verdict)
        assert code(client.said.decode().splitlines()[-1]) == expected
    assert held.asked == ["who@behind.example"] * 2
    without = Client(active_config(HeldQueue()))
    assert without.send(b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<who@behind.example>\r\n")[-1] == "451 4.3.0"


def with_aliases(config: ActiveConfig, *aliases: Alias) -> None:
    made = setup()
    domains = [replace(d, aliases=aliases) if d.name == "home.example" else d for d in made.revision.domains]
    config.configure(replace(made.revision, domains=tuple(domains)), 8, made.secrets)


def test_an_alias_that_stands_for_too_many_is_451_at_RCPT() -> None:
    config = active_config(HeldQueue())
    with_aliases(config, Alias("all", tuple(f"u{n}@far.example" for n in range(10_001))))
    client = Client(config)
    assert client.send(b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<all@home.example>\r\n")[-1] == "451 4.3.5"


def test_an_ascii_message_to_an_address_with_an_accent_stays_ascii_EXT_11() -> None:
    """Its alias leads to an ASCII address, at a host without SMTPUTF8: what we write must not keep it from there."""
    queue = HeldQueue()
    config = active_config(queue)
    with_aliases(config, Alias("josé", ("x@far.example",)))
    client = Client(config)
    client.send("EHLO c\r\nMAIL FROM:<a@far.example> SMTPUTF8\r\nRCPT TO:<josé@home.example>\r\nDATA\r\n".encode())
    client.send(b"Subject: x\r\n\r\nbody\r\n.\r\n")
    message = queue.commits[0][0]
    assert message.recipients[0].address == "x@far.example"
    assert message.prefix.startswith(b"Received: ")
    assert message.prefix.isascii()


def test_the_log_names_addresses_of_an_alias_that_do_not_exist_once_a_revision() -> None:
    with capture_logs() as told:
        config = active_config(HeldQueue())
        for _ in range(2):
            with_aliases(config, Alias("team", ("ghost@home.example", "ada@home.example")))
            client = Client(config)
            for _ in range(3):
                assert client.send(b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<team@home.example>\r\n")[-1] == "250 2.1.5"
    warnings = [event for event in told if "addresses that do not exist" in event["event"]]
    assert [(w["recipient"], w["missing"]) for w in warnings] == [("team@home.example", ["ghost@home.example"])] * 2


def test_a_new_revision_is_told_to_an_open_session_from_its_next_command_CFG_06() -> None:
    queue = HeldQueue()
    config = active_config(queue)
    client = Client(config)
    assert client.send(b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<new@behind.example>\r\n")[-1] == "451 4.3.0"
    made = setup()
    config.configure(replace(made.revision, domains=()), 8, made.secrets)
    client.session.rebase(config.listeners[ListenerKey(GATEWAY, "mx")])
    assert client.send(b"RCPT TO:<ada@home.example>\r\n") == ["550 5.7.1"]


def test_an_account_that_is_gone_sends_no_more_not_even_in_a_session_that_is_open_SUB_03() -> None:
    queue = HeldQueue()
    client = logged_in(queue)
    made = setup()
    config = client.session._active_config
    kept = tuple(one for one in made.revision.accounts if one.login != "ada@home.example")
    client.send(b"MAIL FROM:<>" + TO_BOB)
    config.configure(replace(made.revision, accounts=kept), 8, made.secrets)
    client.session.rebase(config.listeners[ListenerKey(GATEWAY, "submission")])
    assert client.send(bdat(b"From: ada@home.example\r\n\r\n"))[-1] == "550 5.7.1"
    assert client.send(b"MAIL FROM:<>" + TO_BOB) == ["525 5.7.13", "503 5.5.1"]


# --- what is judged is what others read ---


def logged_in(queue: HeldQueue, held: Held | None = None, *, config: ActiveConfig | None = None) -> Client:
    client = Client(config or active_config(queue, held), "submission")
    client.session._facts.account = client.session.config.accounts.find("ada@home.example")
    client.protocol.login = "ada@home.example"
    client.send(b"EHLO c\r\n")
    return client


def bdat(content: bytes) -> bytes:
    return b"BDAT %d LAST\r\n" % len(content) + content


FROM_ADA = b"MAIL FROM:<ada@home.example>"
TO_BOB = b"\r\nRCPT TO:<bob@far.example>\r\n"


def test_a_header_is_judged_without_a_look_at_each_of_its_fields_SUB_03(monkeypatch: pytest.MonkeyPatch) -> None:

    async def main() -> None:
        queue = HeldQueue()
        client = in_tls(active_config(queue))
        monkeypatch.setattr(Header, "fields", property(lambda _: pytest.fail("all fields were looked at")))
        client.protocol.receive(b"AUTH PLAIN " + b64encode(b"\0ada@home.example\0" + PASSWORD.encode()) + b"\r\n", NOW)
        client.pump()
        while b"235" not in client.said:
            await asyncio.sleep(0.001)
        client.send(b"MAIL FROM:<ada@home.example>\r\nRCPT TO:<bob@far.example>\r\nDATA\r\n")
        header = b"From: ada@home.example\r\nBcc : x@far.example\r\nbcc: y@far.example\r\nResent-Bcc: z@far.example\r\n"
        client.send(header + b"a:\r\n" * 900 + b"\r\nbody\r\n.\r\n")
        body = queue.commits[0][0].body
        assert body is not None
        assert not [name for name in (b"x@", b"y@", b"z@") if name in body]

    asyncio.run(main())


def test_an_author_below_a_line_that_is_no_field_is_body_for_everybody_SUB_03() -> None:
    queue = HeldQueue()
    client = logged_in(queue)
    client.send(FROM_ADA + TO_BOB + bdat(b"no field\r\nFrom: ceo@home.example\r\n\r\nbody\r\n"))
    body = queue.commits[0][0].body
    assert body is not None
    head, _, rest = body.partition(b"\r\n\r\n")
    assert b"ceo" not in head
    assert rest == b"no field\r\nFrom: ceo@home.example\r\n\r\nbody\r\n"


def test_a_return_path_that_a_client_wrote_is_taken_out_RFC_5321_4_4() -> None:
    queue = HeldQueue()
    client = logged_in(queue)
    client.send(FROM_ADA + TO_BOB + bdat(b"Return-Path: <ceo@home.example>\r\nFrom: ada@home.example\r\n\r\n"))
    assert (queue.commits[0][0].body or b"").startswith(b"From: ada@home.example\r\nDate: ")


@pytest.mark.parametrize(("recipient", "kept"), [(b"ada@home.example", False), (b"away@home.example", True)])
def test_a_message_for_a_mailbox_here_brings_no_return_path_along_SIN_24a(recipient: bytes, kept: bool) -> None:
    queue = HeldQueue()
    client = Client(active_config(queue))
    client.send(b"EHLO c\r\nMAIL FROM:<x@far.example>\r\nRCPT TO:<" + recipient + b">\r\n")
    client.send(bdat(b"Return-Path: <y@far.example>\r\nSubject: x\r\n\r\n"))
    assert ((queue.commits[0][0].body or b"").startswith(b"Return-Path")) is kept


def test_fields_are_added_below_a_header_that_ends_inside_a_line_SUB_04() -> None:
    queue = HeldQueue()
    client = logged_in(queue)
    client.send(FROM_ADA + TO_BOB + bdat(b"From: ada@home.example\r\nSubject: x"))
    assert (queue.commits[0][0].body or b"").startswith(b"From: ada@home.example\r\nSubject: x\r\nDate: ")


@pytest.mark.parametrize(
    "header", [b"Subject: x\rFrom: ceo@home.example\r\n", b"Subject: x\n\nFrom: ceo@home.example\r\n"]
)
def test_a_binary_message_has_a_header_of_lines_all_the_same_RFC_3030_3(header: bytes) -> None:
    queue = HeldQueue()
    client = logged_in(queue)
    binary = FROM_ADA + b" BODY=BINARYMIME" + TO_BOB
    assert client.send(binary + bdat(b"From: ada@home.example\r\n" + header + b"\r\n\x00\n\r"))[-1] == "550 5.6.0"
    assert queue.commits == []
    client.send(binary + bdat(b"From: ada@home.example\r\n\r\n\x00\n\r"))
    assert (queue.commits[0][0].body or b"").endswith(b"\r\n\r\n\x00\n\r")


# --- strangers and users who say anything ---


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (
            ["ada@home.example> NOTIFY=SUCCESS", "bob@far.example>"],
            [
                ("ada@home.example", "team@home.example", "SUCCESS", True),
                ("bob@far.example", "bob@far.example", "", False),
            ],
        ),
        (
            ["ada@home.example> ORCPT=rfc822;a@x.example", "bob@far.example> NOTIFY=NEVER"],
            [
                ("ada@home.example", "ada@home.example", "", False),
                ("bob@far.example", "team@home.example", "NEVER", True),
            ],
        ),
        (
            ["team@home.example>"],
            [("ada@home.example", "team@home.example", "", True), ("bob@far.example", "team@home.example", "", False)],
        ),
    ],
)
def test_an_alias_whose_members_were_all_given_before_is_told_of_as_expanded_DSN_23(
    before: list[str], expected: list[tuple[str, str, str, bool]]
) -> None:
    queue = HeldQueue()
    client = logged_in(queue)
    client.send(FROM_ADA + b"\r\n")
    for recipient in [*before, "team@home.example> NOTIFY=SUCCESS,FAILURE"]:
        assert client.send(f"RCPT TO:<{recipient}\r\n".encode()) == ["250 2.1.5"]
    client.send(b"DATA\r\nFrom: ada@home.example\r\n\r\n.\r\n")
    found = queue.commits[0][0].recipients
    assert [(r.address, r.rcpt_to, ",".join(word.value for word in r.notify), r.expanded) for r in found] == expected


def in_tls(config: ActiveConfig) -> Client:
    client = Client(config, "submission")
    client.protocol.tls = TlsFacts("TLSv1.3", "x")
    client.send(b"EHLO c\r\n")
    return client


@pytest.mark.parametrize(
    "said",
    [
        b"AUTH PLAIN " + b64encode(b"\0ADA@home.example\0" + PASSWORD.encode()) + b"\r\n",
        b"AUTH SCRAM-SHA-256 " + b64encode(b"n,,n=ada@home.example,r=abc") + b"\r\n",
        b"AUTH CRAM-MD5\r\n" + b64encode(b"ada@home.example " + b"0" * 32) + b"\r\n",
    ],
)
def test_a_login_that_is_guessed_at_answers_strangers_nothing_and_its_users_as_ever_AUTH_05c(said: bytes) -> None:
    async def main() -> None:
        config = active_config(HeldQueue())
        now = asyncio.get_running_loop().time()
        for number in range(LOGIN_FAILURES):
            config.throttle.record_failure("ada@home.example", str(number), now)
        assert in_tls(config).send(said)[-1] == "454 4.7.0"
        config.throttle.record_success("ada@home.example", "192.0.2.1", now)
        assert in_tls(config).send(said)[-1:] != ["454 4.7.0"]

    asyncio.run(main())


FIRST = b"AUTH SCRAM-SHA-256 " + b64encode("n,,n=жора,r=abc".encode()) + b"\r\n"


@pytest.mark.parametrize("how", ["*", "bad base64", "too long", "disconnect"])
def test_a_scram_exchange_that_is_begun_and_not_finished_counts_as_a_failed_login_AUTH_05c(how: str) -> None:
    """It costs us what a wrong proof costs, and told the client salt and nonce: any number of them was free."""

    async def main() -> None:
        config = active_config(HeldQueue())
        tries = 0
        while tries < 200:
            client = in_tls(config)
            for _ in range(20):
                if client.protocol.closed:
                    break
                answer = client.send(FIRST)[-1]
                if answer != "334":
                    break
                tries += 1
                if how == "disconnect":
                    client.leave()
                else:
                    ending = {"*": b"*", "bad base64": b"!", "too long": b"A" * 13_000}[how]
                    assert client.send(ending + b"\r\n")[0][:1] == "5"
            if answer == "454 4.7.0":
                break
            assert client.protocol.closed
        assert tries == FAILURES

    asyncio.run(main())


def test_a_client_that_gives_up_after_its_proof_or_before_a_login_is_no_guesser_AUTH_05c() -> None:
    async def main() -> None:
        config = active_config(HeldQueue())
        for opening in (b"AUTH PLAIN\r\n", b"AUTH LOGIN\r\n", b"AUTH CRAM-MD5\r\n", b"AUTH SCRAM-SHA-256\r\n"):
            client = in_tls(config)
            assert client.send(opening)[-1][:3] == "334"
            assert client.send(b"*\r\n") == ["501 5.7.0"]
            client.leave()
        assert len(config.throttle._by_client) == 0

    asyncio.run(main())


@pytest.mark.parametrize("said", ["PLAIN", "SCRAM-SHA-256"])
def test_a_failed_login_is_prepared_once_whatever_is_done_with_it_AUTH_05c(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []

    def counted(text: str) -> str:
        texts.append(text)
        return text

    monkeypatch.setattr(sasl_server, "saslprep", counted)

    async def main() -> None:
        client = in_tls(active_config(HeldQueue()))
        if said == "PLAIN":
            client.send(b"AUTH PLAIN " + b64encode("\0жора\0x".encode()) + b"\r\n")
            while b"535" not in client.said:
                await asyncio.sleep(0.001)
        else:
            client.send(FIRST)
            client.send(b64encode(b"c=biws,r=x,p=AAAA") + b"\r\n")
            assert b"535" in client.said

    asyncio.run(main())
    assert texts == ["жора"]


@pytest.mark.parametrize("login", ["ada@home.example", "nobody@home.example", "жора"])
def test_a_wrong_password_costs_one_verification_whether_its_login_exists_or_not_AUTH_05a(
    login: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs: list[int] = []
    checks = ScramVerifier.admits

    def counted(verifier: ScramVerifier, password: str) -> bool:
        costs.append(verifier.iterations)
        return checks(verifier, password)

    monkeypatch.setattr(ScramVerifier, "admits", counted)

    async def main() -> None:
        client = in_tls(active_config(HeldQueue()))
        client.send(b"AUTH PLAIN " + b64encode(f"\0{login}\0wrong".encode()) + b"\r\n")
        while b"535" not in client.said:
            await asyncio.sleep(0.001)

    asyncio.run(main())
    assert costs == [ITERATIONS]


def test_no_two_challenges_of_cram_md5_are_the_same_CRAM_01() -> None:
    """A reply to one that came before would else log in again."""

    def challenge(config: ActiveConfig) -> bytes:
        client = in_tls(config)
        assert client.send(b"AUTH CRAM-MD5\r\n") == ["334"]
        return b64decode(client.said.rpartition(b"334 ")[2])

    async def main() -> list[bytes]:
        config = active_config(HeldQueue())
        return [challenge(config) for _ in range(50)]

    said = asyncio.run(main())
    assert len(set(said)) == 50
    assert all(re.fullmatch(rb"<\d+\.[\d.]+@mx\.home\.example>", one) for one in said)


@pytest.mark.parametrize("mechanism", ["PLAIN", "CRAM-MD5", "SCRAM-SHA-256", "SCRAM-SHA-1"])
@pytest.mark.parametrize("secret", [None, b"broken"])
def test_an_account_whose_secret_was_not_delivered_is_told_to_come_later_AUTH_05a(
    mechanism: str, secret: bytes | None
) -> None:
    made = setup()
    secrets = {path: b for path, b in made.secrets.items() if "ada" not in path}
    if secret is not None and mechanism != "CRAM-MD5":
        secrets |= dict.fromkeys((path for path in made.secrets if "ada" in path), secret)

    def said(login: str, client: Client) -> list[str]:
        if mechanism == "PLAIN":
            client.protocol.receive(b"AUTH PLAIN " + b64encode(f"\0{login}\0x".encode()) + b"\r\n", NOW)
            client.pump()
        elif mechanism == "CRAM-MD5":
            return client.send(b"AUTH CRAM-MD5\r\n" + b64encode(f"{login} {'0' * 32}".encode()) + b"\r\n")[1:]
        else:
            client.send(f"AUTH {mechanism} ".encode() + b64encode(f"n,,n={login},r=abc".encode()) + b"\r\n")
            nonce = b64decode(client.said.split(b"334 ")[1]).decode().split(",")[0]
            return client.send(b64encode(f"c=biws,{nonce},p={'A' * 43}=".encode()) + b"\r\n")
        return []

    async def main() -> None:
        config = active_config(HeldQueue())
        config.configure(made.revision, 8, secrets)
        for login, expected in (("ada@home.example", "454 4.7.0"), ("nobody@home.example", "535 5.7.8")):
            client = in_tls(config)
            answer = said(login, client)
            while not answer:
                await asyncio.sleep(0.001)
                answer = [code(line) for line in client.said.decode().splitlines() if line[:3] in ("454", "535")]
            assert answer == [expected]
        assert len(config.throttle._by_client) == 1  # of the two, nobody's was a wrong guess

    asyncio.run(main())


_commands = st.sampled_from(
    [
        b"EHLO c\r\n",
        b"HELO c\r\n",
        b"RSET\r\n",
        b"NOOP\r\n",
        b"VRFY x\r\n",
        b"MAIL FROM:<ada@home.example>\r\n",
        b"MAIL FROM:<ada@home.example> BODY=BINARYMIME\r\n",
        b"MAIL FROM:<> SIZE=99999999999\r\n",
        b"MAIL FROM:<x@far.example> SMTPUTF8 RET=HDRS ENVID=a+2Bb\r\n",
        "MAIL FROM:<ж@far.example> SMTPUTF8\r\n".encode(),
        b"MAIL FROM:<x@far.example>X\r\n",
        b"RCPT TO:<ada@home.example>\r\n",
        b"RCPT TO:<team@home.example> NOTIFY=SUCCESS,FAILURE\r\n",
        b"RCPT TO:<bob@far.example> ORCPT=rfc822;bob@far.example\r\n",
        b"RCPT TO:<postmaster>\r\n",
        b'RCPT TO:<"a\\"b"@home.example>\r\n',
        b"DATA\r\n",
        b"AUTH PLAIN =\r\n",
        b"*\r\n",
        b"\x00\xff\r\n",
    ]
)
_content = st.lists(
    st.sampled_from(
        [
            b"From: ada@home.example\r\n",
            b"from\t: Ada (boss@home.example) <ada@home.example>\r\n",
            b"From: ceo@home.example\r\n",
            b"X: y\rFrom: ceo@home.example\r\n",
            b"From: \xff@home.example\r\n",
            b"Subject: =?\xc3\xa9?q?x?=\r\n",
            b"Bcc: hidden@home.example,\r\n\thidden@far.example\r\n",
            b"Authentication-Results: mx.home.example; spf=pass\r\n",
            b" fold\r\n",
            b"no field\r\n",
            b"\r\n",
            b"\r",
            b"\n",
            b".",
            b"\x00",
            b"x",
        ]
    ),
    max_size=8,
).map(b"".join)
_said = st.lists(
    _commands
    | st.tuples(
        st.sampled_from([b"", b" BODY=BINARYMIME", b" BODY=8BITMIME"]),
        _content,
        st.sampled_from(["data", "bdat", "two chunks"]),
    ).map(lambda drawn: _transaction(*drawn)),
    max_size=6,
).map(b"".join)


def _transaction(parameters: bytes, content: bytes, how: str) -> bytes:
    start = FROM_ADA + parameters + b"\r\nRCPT TO:<ada@home.example>\r\n"
    if how == "data":
        return start + b"DATA\r\n" + content + b"\r\n.\r\n"
    if how == "bdat":
        return start + bdat(content)
    half = len(content) // 2
    return start + b"BDAT %d\r\n" % half + content[:half] + bdat(content[half:])


class PromptQueue(HeldQueue):
    """Stores all that is handed over, at once."""

    def commit(self, message: ReceivedMessage, done: Callable[[CommitAnswer], None]) -> None:
        super().commit(message, done)
        done(CommitAnswer(True))


def _heard(said: bytes, cuts: list[int], listener: str) -> tuple[list[str], list[ReceivedMessage]]:
    queue = PromptQueue()
    client = logged_in(queue) if listener == "submission" else Client(active_config(queue))
    client.send(b"EHLO c\r\n")
    before = len(client.said)
    places = sorted(min(cut, len(said)) for cut in cuts)
    for a, b in zip([0, *places], [*places, len(said)], strict=True):
        client.send(said[a:b])
    lines = re.sub(rb"accepted as [0-9a-f]+", b"accepted", client.said[before:]).decode().split("\r\n")
    assert lines.pop() == ""
    return lines, [message for message, _ in queue.commits]


@given(_said, st.lists(st.integers(0, 600), max_size=6), st.sampled_from(["mx", "submission"]))
def test_whatever_is_said_in_whatever_pieces_gets_the_same_answers_with_their_codes_SIN_21(
    said: bytes, cuts: list[int], listener: str
) -> None:
    lines, messages = _heard(said, [], listener)
    again, others = _heard(said, cuts, listener)
    assert again == lines
    assert [message.body for message in others] == [message.body for message in messages] or listener == "submission"
    for line in lines:
        assert re.fullmatch(r"3\d\d [ -~]*|([245])\d\d[ -]\1\.\d+\.\d+ [ -~]+|250[ -][ -~]+", line), line


@given(_said, st.lists(st.integers(0, 600), max_size=6), st.sampled_from(["mx", "submission"]))
def test_what_is_said_of_the_lines_of_a_body_is_so_SIN_03_SOUT_12a(said: bytes, cuts: list[int], listener: str) -> None:
    for message in _heard(said, cuts, listener)[1]:
        body = message.body or b""
        assert not message.lines.whole or (b"\0" not in body and not has_bare_line_ends(body))
        assert not message.lines.undotted or not (body.startswith(b".") or b"\r\n." in body)


_HEAD = b"From: ada@home.example\r\nDate: Mon, 30 Nov 2026 09:00:00 +0000\r\nMessage-ID: <1@home.example>\r\n"


@pytest.mark.parametrize(
    ("content", "how", "parameters", "lines"),
    [
        (_HEAD + b"\r\nhello\r\n", "data", b"", PLAIN),
        (_HEAD + b"\r\nhello\r\n..dots\r\n", "data", b"", WHOLE),
        (_HEAD + b"\r\nh\0llo\r\n", "data", b"", UNKNOWN),
        (_HEAD + b"\r\nhello\r\n", "bdat", b"", WHOLE),
        (_HEAD + b"\r\nhello\r\n.dots", "two chunks", b"", WHOLE),
        (_HEAD + b"\r\nhello\r\n", "bdat", b" BODY=BINARYMIME", UNKNOWN),
        (b"From: ada@home.example\r\n\r\na field is added\r\n", "data", b"", PLAIN),
        (b"Return-Path: <x@y.example>\r\n" + _HEAD + b"\r\na field is taken out\r\n", "data", b"", PLAIN),
        (_HEAD + b"\r\nno end of the last line", "bdat", b"", WHOLE),
        (_HEAD + b"\r\n" + b"long " * 300 + b"\r\n", "data", b"", PLAIN),
    ],
)
def test_what_was_seen_of_a_body_s_lines_goes_with_it(
    content: bytes, how: str, parameters: bytes, lines: LineFacts
) -> None:
    (message,) = _heard(_transaction(parameters, content, how), [], "mx")[1]
    assert message.lines == lines


def test_nothing_is_said_of_lines_that_were_made_anew_SOUT_12d() -> None:
    """The re-encoder shortens them, and its lines are not those that came."""
    (message,) = _heard(_transaction(b"", _HEAD + b"\r\n" + b"long " * 300 + b"\r\n", "data"), [], "submission")[1]
    assert b"=\r\n" in (message.body or b"")
    assert message.lines == UNKNOWN


def test_nothing_is_said_of_lines_that_were_repaired_SIN_03() -> None:
    queue = PromptQueue()
    client = Client(active_config(queue))
    client.protocol.options = replace(client.protocol.options, repair_chunks=True)
    client.send(b"EHLO c\r\n" + _transaction(b"", _HEAD + b"\r\na\nb\r\n", "bdat"))
    ((message, _),) = queue.commits
    assert (message.body or b"").endswith(b"a\r\nb\r\n")
    assert message.lines == UNKNOWN


@given(_said, st.sampled_from(["mx", "submission"]))
def test_what_is_stored_reads_the_same_to_everybody_SIN_02_SUB_03(said: bytes, listener: str) -> None:
    """Neither the library's parser nor a lenient one finds an author, or results, that were not judged; not even after
    a next hop without BINARYMIME has made lines of what stands alone."""
    for message in _heard(said, [], listener)[1]:
        content = message.prefix + (message.body or b"")
        assert len(content) == message.size
        if message.parameters.body is not BodyType.BINARY_MIME:
            assert not has_bare_line_ends(content)
        wire = re.sub(rb"\r\n|\r|\n", b"\r\n", content)
        for octets in (content, wire):
            parsed = email.message_from_bytes(octets)
            assert parsed.get_all("received") is not None
            lenient = re.split(rb"\r\n(?![ \t])", octets.partition(b"\r\n\r\n")[0])
            found = [f"{name}:{value}".encode("ascii", "replace") for name, value in parsed.items()] + lenient
            for name, _, value in (field.partition(b":") for field in found):
                name = name.strip().lower()
                assert name != b"authentication-results" or b"mx.home.example" not in value
                if listener == "submission":
                    assert name != b"from" or b"ceo@" not in value
                    assert name != b"bcc"


@pytest.mark.parametrize(
    ("facts", "reply"),
    [
        (DomainFacts.NULL_MX, "556 5.1.10"),
        (DomainFacts.RESOLVES, "250 2.1.5"),
        (DomainFacts.DOES_NOT_EXIST, "250 2.1.5"),
        (DomainFacts.UNKNOWN, "250 2.1.5"),
    ],
)
def test_an_account_hears_at_once_of_a_recipient_whose_domain_takes_no_mail_SIN_23b(
    facts: DomainFacts, reply: str
) -> None:
    held = Held()
    client = logged_in(HeldQueue(), held)
    assert client.send(FROM_ADA + b"\r\nRCPT TO:<bob@null.example>\r\n") == ["250 2.1.0"]
    assert held.asked == ["null.example"]
    before = len(client.said)
    held.done(facts)
    assert code(client.said[before:].decode().strip()) == reply


@pytest.mark.parametrize("recipient", ["ada@home.example", "away@home.example", "bob@[192.0.2.1]", "bob@smart.example"])
def test_only_recipients_that_we_would_deliver_to_their_MX_are_looked_up_SIN_23b(recipient: str) -> None:
    held = Held()
    client = logged_in(HeldQueue(), held)
    assert client.send(FROM_ADA + f"\r\nRCPT TO:<{recipient}>\r\n".encode())[-1] == "250 2.1.5"
    assert held.asked == []


FROM_ADA_HEADER = b"From: ada@home.example\r\nDate: Mon, 5 Jan 2026 10:00:00 +0000\r\nMessage-ID: <a@b.example>\r\n"
LONG_LINE = b"word " * 400 + b"\r\n"


@pytest.mark.parametrize("more", [0, 160_000])
def test_lines_above_998_of_a_submission_are_shortened_before_it_is_stored_SOUT_12d(more: int) -> None:
    queue = HeldQueue()
    client = logged_in(queue)
    content = (
        FROM_ADA_HEADER + b"References:" + b" <x@far.example>" * 90 + b"\r\n\r\n" + b"short\r\n" * more + LONG_LINE
    )
    client.send(FROM_ADA + b"\r\nRCPT TO:<bob@smart.example>\r\n")
    client.send(b"DATA\r\n")
    client.send(content + b".\r\n")
    message = queue.commits[0][0]
    stored = b"".join(queue.uploads[0].frames) if more else message.body
    assert stored is not None
    assert message.size == len(message.prefix) + len(stored)
    assert max(map(len, stored.split(b"\r\n"))) <= 998
    parsed = email.message_from_bytes(stored)
    assert parsed["references"].replace("\r\n", "").replace("\n", "") == "<x@far.example>" + " <x@far.example>" * 89
    payload = parsed.get_payload(decode=True)
    assert isinstance(payload, bytes)
    assert payload.split() == (b"short\r\n" * more + LONG_LINE).split()
    assert not message.eight_bit


def test_the_limit_of_size_is_for_what_was_received_not_for_what_is_stored_SOUT_12d() -> None:
    queue = HeldQueue()
    client = logged_in(queue)
    limit = client.session.config.options.size_limit
    client.protocol.options = replace(client.protocol.options, size_limit=3000)
    client.send(FROM_ADA + b"\r\nRCPT TO:<bob@smart.example>\r\nDATA\r\n")
    client.send(FROM_ADA_HEADER + b"\r\n" + "é ".encode() * 900 + b"\r\n.\r\n")
    assert limit > 3000
    assert queue.commits[0][0].size > 3000


def test_relayed_mail_keeps_its_lines_SOUT_12c() -> None:
    queue = HeldQueue()
    client = Client(active_config(queue))
    client.send(OPEN + b"Subject: x\r\n\r\n" + LONG_LINE + b".\r\n")
    assert queue.commits[0][0].body == b"Subject: x\r\n\r\n" + LONG_LINE


@pytest.mark.parametrize("listener", ["mx", "submission"])
def test_a_mailbox_file_that_is_piped_to_us_keeps_its_header(listener: str) -> None:
    queue = HeldQueue()
    client = Client(active_config(queue)) if listener == "mx" else logged_in(queue)
    client.send(b"EHLO c\r\n" + FROM_ADA + b"\r\nRCPT TO:<ada@home.example>\r\nDATA\r\n")
    client.send(b"From ada Mon Jan  5 10:00:00 2026\r\n" + FROM_ADA_HEADER + b"Subject: s\r\n\r\nbody\r\n.\r\n")
    message = queue.commits[0][0]
    assert message.body is not None
    parsed = email.message_from_bytes(message.prefix + message.body)
    assert (parsed["subject"], parsed["x-mailbox-line"]) == ("s", "From ada Mon Jan  5 10:00:00 2026")
    assert message.subject == "s"


def test_small_submissions_that_are_held_back_are_sent_on_while_memory_is_short_ACC_07() -> None:
    queue = HeldQueue()
    config = active_config(queue)
    config.budget = HeldOctets(100_000)
    clients = [logged_in(queue, config=config) for _ in range(4)]
    part = b"x" * 70 + b"\r\n"
    for client in clients:
        client.send(FROM_ADA + b"\r\nRCPT TO:<bob@smart.example>\r\nDATA\r\n")
        client.send(FROM_ADA_HEADER + b"\r\n" + part * 800)
    assert config.budget.held <= 4 * 60_000
    for client in clients:
        client.send(part * 50)
    assert queue.uploads, "a body that is held back goes to the queue"
    assert not any(client.paused for client in clients)
    for client in clients:
        client.send(b".\r\n")
    assert len(queue.commits) == 4


@pytest.mark.parametrize("end", ["accept", "refuse", "leave"])
def test_a_check_that_takes_its_time_keeps_the_answer_and_the_commit_waiting(end: str) -> None:
    waiting: list[Callable[[Refuse | Edit | None], None]] = []
    slow = Check("slow", Moment.END, Whose.ALL, lambda _: Pending(waiting.append))
    queue = HeldQueue()
    client = Client(active_config(queue))
    client.send(OPEN)
    transaction = client.session._transaction
    assert transaction is not None
    assert transaction.checks is not None
    transaction.checks._checks = CheckLists(end=(slow,))
    assert client.send(b"Subject: x\r\n\r\n.\r\nNOOP\r\n") == []
    assert queue.commits == []
    before = len(client.said)
    if end == "accept":
        waiting[0](Edit(added=b"X-Checked: yes\r\n"))
        assert queue.commits[0][0].prefix.startswith(b"X-Checked: yes\r\nReceived: ")
    elif end == "refuse":
        waiting[0](Refuse(Reply.of(550, "5.7.1", "no")))
        assert [code(line) for line in client.said[before:].decode().splitlines()] == ["550 5.7.1", "250 2.0.0"]
    else:
        client.leave()
        waiting[0](None)
    assert len(queue.commits) == (end == "accept")
