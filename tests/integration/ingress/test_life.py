"""Ingress when something else fails, changes or takes long: queue, configuration, proxies, clocks, stopping."""

import contextlib
import select
import socket
import ssl
import struct
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest

from mailrail.core.revision.revision import Alias, GatewayLimits, Listener, ListenerProtocol
from mailrail.core.sasl.client import ChannelBinding, Credentials, start
from mailrail.core.sasl.client import Mechanism as ClientMechanism
from mailrail.core.smtp.proxy import SIGNATURE
from mailrail.pb.queue.v1 import enqueue_pb2, types_pb2
from mailrail_ingress.handshakes import GRACE
from mailrail_ingress.smtp import LINGER_OCTETS

from testkit.background import background
from testkit.ca import Authority, trusting_anybody
from testkit.conditions import wait_until
from testkit.dns import DnsServer, Failure
from testkit.ingress import PASSWORD, Ingress, Setup, Talk, code, setup
from testkit.ports import free_port

HOST = "127.0.0.1"
Start = Callable[..., Ingress]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Start]:
    """Start an ingress with a setup and settings; stopped at the end."""
    with contextlib.ExitStack() as stack:

        def begin(made: Setup | None = None, **settings: Any) -> Ingress:
            return stack.enter_context(Ingress(tmp_path, made, **settings))

        yield begin


def mx(ingress: Ingress) -> Talk:
    talk = Talk((HOST, ingress.ports["mx"]))
    assert talk.codes("EHLO client.example") == ["250"]
    return talk


def open_message(talk: Talk) -> None:
    assert talk.codes("MAIL FROM:<x@far.example>", "RCPT TO:<ada@home.example>", "DATA")[2] == "354"


def deliver(talk: Talk) -> str:
    open_message(talk)
    talk.send(b"Subject: x\r\n\r\nbody\r\n.\r\n")
    return code(talk.reply())


# --- the queue ---


def test_a_refusal_of_the_queue_is_told_and_the_session_goes_on_ACC_08(run: Start) -> None:
    ingress = run()
    ingress.queue.refusal = types_pb2.Reply(code=451, enhanced="4.7.1", lines=["daily limit\r\n250 ok"])
    with mx(ingress) as talk:
        open_message(talk)
        talk.send(b".\r\n")
        assert talk.reply() == "451 4.7.1 daily limit??250 ok"
        ingress.queue.refusal = types_pb2.Reply(code=200, lines=["nonsense"])
        assert deliver(talk) == "451 4.3.0"
        ingress.queue.refusal = None
        assert deliver(talk) == "250 2.6.0"


def test_without_a_queue_senders_are_asked_to_come_back_and_then_it_works_again_ACC_05(run: Start) -> None:
    ingress = run()

    def said_at_mail() -> str:
        with mx(ingress) as talk:  # a new one each time: too much to and fro ends a session
            return talk.codes("MAIL FROM:<x@far.example>")[0]

    background().call(ingress.queue.stop())
    ingress.wait_for(lambda: said_at_mail() == "451 4.3.0", "451 at MAIL")
    background().call(ingress.queue.serve())
    ingress.wait_for(lambda: said_at_mail() == "250 2.1.0", "250 at MAIL")
    with mx(ingress) as talk:
        assert deliver(talk) == "250 2.6.0"


@pytest.mark.parametrize(("committed", "expected"), [(True, "250 2.6.0"), (False, "451 4.3.0")])
def test_a_lost_answer_is_asked_after_and_told_as_it_is_ACC_04(run: Start, committed: bool, expected: str) -> None:
    ingress = run()
    if committed:
        ingress.queue.lose_answer = True
    else:
        ingress.queue.forget_commit = True
    with mx(ingress) as talk:
        assert deliver(talk) == expected
        assert len(ingress.queue.asked) == 1
        assert len(ingress.queue.stored) == committed
        ingress.wait_for(lambda: talk.codes("MAIL FROM:<x@far.example>", "RSET")[0] == "250 2.1.0", "a new stream")
        assert deliver(talk) == "250 2.6.0"


def test_a_queue_that_restarts_in_the_middle_of_many_commits_is_asked_after_each_ACC_04(run: Start) -> None:
    ingress = run()
    ingress.queue.answers.clear()
    with contextlib.ExitStack() as stack:
        talks = [stack.enter_context(mx(ingress)) for _ in range(20)]
        for talk in talks:
            open_message(talk)
            talk.send(b"Subject: x\r\n\r\n.\r\n")
        ingress.wait_stored(1)
        background().call(ingress.queue.stop())
        background().loop.call_soon_threadsafe(ingress.queue.answers.set)
        background().call(ingress.queue.serve())
        replies = [talk.reply() for talk in talks]
    told = {bytes.fromhex(reply.split()[-1]) for reply in replies if reply.startswith("250 2.6.0")}
    assert told == {message.id for message in ingress.queue.stored}
    assert len(told) == len(ingress.queue.stored) >= 1
    assert all(code(reply) in ("250 2.6.0", "451 4.3.0") for reply in replies)


def test_a_queue_that_never_tells_is_not_waited_for_without_end_ACC_04(run: Start) -> None:
    ingress = run(answer_timeout="0.5")
    ingress.queue.answers.clear()
    with mx(ingress) as talk:
        open_message(talk)
        talk.send(b"Subject: x\r\n\r\n.\r\n")
        ingress.wait_stored(1)
        background().call(ingress.queue.stop())
        assert code(talk.reply()) == "451 4.3.0"
        ingress.wait_for(lambda: ingress.events("commit outcome unknown"), "the log tells of it")
    background().loop.call_soon_threadsafe(ingress.queue.answers.set)


def test_no_mail_begins_while_the_queue_says_that_its_database_is_silent_and_what_is_under_way_waits_ACC_09(
    run: Start,
) -> None:
    ingress = run()

    def say(*, silent: bool) -> None:
        said = enqueue_pb2.EnqueueResponse(database_silent=silent)
        background().loop.call_soon_threadsafe(ingress.queue.says.put_nowait, said)

    def mail(talk: Talk) -> str:
        return talk.codes("MAIL FROM:<x@far.example>", "RSET")[0]

    ingress.queue.answers.clear()
    with mx(ingress) as waiting, mx(ingress) as begun, mx(ingress) as new:
        open_message(waiting)
        waiting.send(b"Subject: x\r\n\r\n.\r\n")
        ingress.wait_stored(1)
        assert begun.codes("MAIL FROM:<x@far.example>", "RCPT TO:<ada@home.example>") == ["250 2.1.0", "250 2.1.5"]
        say(silent=True)
        wait_until(lambda: mail(new) == "451 4.3.0", 30, "MAIL is put off")
        assert begun.codes("DATA") == ["451 4.3.0"]
        say(silent=False)
        wait_until(lambda: mail(new) == "250 2.1.0", 30, "MAIL is taken")
        background().loop.call_soon_threadsafe(ingress.queue.answers.set)
        assert code(waiting.reply()) == "250 2.6.0"


def test_a_body_is_never_resumed_on_another_stream_ACC_05(run: Start) -> None:
    ingress = run()
    with mx(ingress) as talk:
        open_message(talk)
        talk.send(b"Subject: x\r\n\r\n" + b"x" * 998 + b"\r\n" * 600_000)
        wait_until(lambda: ingress.queue.held, 30, "chunks arrived")
        background().call(ingress.queue.stop())
        background().call(ingress.queue.serve())
        ingress.wait_for(lambda: len(ingress.events("queue stream open")) == 2, "a new stream")
        talk.send(b"the rest\r\n.\r\n")
        assert code(talk.reply()) == "451 4.3.0"
        assert ingress.queue.stored == []
        assert deliver(talk) == "250 2.6.0"


def test_no_credit_pauses_one_client_alone_and_then_refuses_it_ACC_07(run: Start) -> None:
    ingress = run(credit_timeout="1")
    ingress.queue.return_credit = False
    block = b"x" * 998 + b"\r\n"
    with mx(ingress) as slow, mx(ingress) as other:
        open_message(slow)
        slow.socket.settimeout(1)
        sent = 0
        while sent < 90 * 1024 * 1024:
            try:
                sent += slow.socket.send(block[sent % 1000 :] + block * 100)
            except TimeoutError:
                if ingress.queue.octets > 31 * 1024 * 1024:
                    break  # else the machine is busy
        slow.send(block[sent % 1000 :])
        slow.socket.settimeout(60)
        # The stream's 32 MiB and what lies between were taken, and no more of it.
        assert ingress.queue.octets <= 32 * 1024 * 1024
        assert code(other.say("NOOP")[0]) == "250 2.0.0"
        slow.send(b"\r\n.\r\n")
        assert code(slow.reply()) == "452 4.3.1"
        assert code(slow.say("NOOP")[0]) == "250 2.0.0"


def test_a_budget_that_many_uploads_overrun_slows_them_down_and_loses_none_ACC_07(run: Start) -> None:
    ingress = run(held_octets="100000", credit_timeout="30")
    header = b"Subject: x\r\n" + (b"X: " + b"y" * 900 + b"\r\n") * 3 + b"\r\n"
    line = b"x" * 998 + b"\r\n"

    def upload(number: int) -> str:
        with mx(ingress) as talk:
            if number % 2:
                talk.start_tls()
            open_message(talk)
            for piece in (header, line * 700, b".\r\n"):
                talk.send(piece)
            return code(talk.reply())

    with ThreadPoolExecutor(8) as clients:
        assert set(clients.map(upload, range(16))) == {"250 2.6.0"}
    assert {len(message.body) for message in ingress.queue.stored} == {len(header) + 700_000}


def test_of_many_large_messages_at_once_some_are_taken_and_the_others_hear_it_at_mail_ACC_07(run: Start) -> None:
    ingress = run(client_upload_octets="5000000", upload_octets="50000000")
    body = b"Subject: large\r\n\r\n" + (b"x" * 998 + b"\r\n") * 1500
    halves = body[: len(body) // 2], body[len(body) // 2 :] + b".\r\n"
    sender = f"MAIL FROM:<x@far.example> SIZE={len(body)}"
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(mx(ingress)) for _ in range(6)]
        rounds = []
        while waiting:
            said = [talk.codes(sender)[0] for talk in waiting]
            assert set(said) <= {"250 2.1.0", "452 4.3.1"}
            begun = [talk for talk, answer in zip(waiting, said, strict=True) if answer == "250 2.1.0"]
            for talk in begun:
                assert talk.codes("RCPT TO:<ada@home.example>", "DATA")[1] == "354"
            for half in halves:  # they grow evenly
                for talk in begun:
                    talk.send(half)
            assert [code(talk.reply()) for talk in begun] == ["250 2.6.0"] * len(begun)
            rounds.append(len(begun))
            waiting = [talk for talk in waiting if talk not in begun]
        assert rounds == [3, 3]
    assert [message.body for message in ingress.queue.stored] == [body] * 6
    assert not ingress.queue.aborted
    assert len(ingress.queue.sizes) == 6, "the queue hears once what each declared"
    assert min(ingress.queue.sizes) >= len(body)


def test_what_is_declared_and_left_holds_nothing_up_and_a_stranger_who_declares_much_only_itself_ACC_07(
    run: Start,
) -> None:
    ingress = run(client_upload_octets="5000000", upload_octets="10000000")
    sender = "MAIL FROM:<x@far.example> SIZE=4900000"
    with contextlib.ExitStack() as stack:
        idle = []
        for number in range(1, 5):
            talk = stack.enter_context(Talk((HOST, ingress.ports["mx"]), source=f"127.0.98.{number}"))
            idle.append(talk)
            assert talk.codes("EHLO idle.example", sender) == ["250", "250 2.1.0"]
        own = stack.enter_context(Talk((HOST, ingress.ports["mx"]), source="127.0.98.1"))
        assert own.codes("EHLO idle.example", sender) == ["250", "452 4.3.1"]
        talk = stack.enter_context(mx(ingress))
        body = b"Subject: large\r\n\r\n" + (b"x" * 998 + b"\r\n") * 1500
        assert talk.codes(sender, "RCPT TO:<ada@home.example>", "DATA")[2] == "354"
        talk.send(body + b".\r\n")
        assert code(talk.reply()) == "250 2.6.0"
        assert idle[0].codes("RSET")[0].startswith("250")
        assert own.codes(sender) == ["250 2.1.0"]


@pytest.mark.parametrize("size", [100, 300_000])
def test_a_message_that_is_whole_does_not_wait_for_credit_without_end_ACC_07(run: Start, size: int) -> None:
    """Of the larger one nothing can be sent either: its upload is forgotten, and the stream serves others on."""
    ingress = run(credit_timeout="1")
    ingress.queue.credit = 1
    background().loop.call_soon_threadsafe(ingress.queue.go_away.set)
    ingress.wait_for(lambda: ingress.queue.streams == 2, "a stream with hardly any credit")
    with mx(ingress) as talk:
        wait_until(lambda: talk.codes("MAIL FROM:<x@far.example>", "RSET")[0].startswith("250"), 30, "it is in use")
        for _ in range(2):
            open_message(talk)
            talk.send(b"Subject: x\r\n\r\n" + (b"x" * 98 + b"\r\n") * (size // 100) + b".\r\n")
            assert code(talk.reply()) == "452 4.3.1"
    assert (ingress.queue.count, ingress.queue.held, ingress.queue.streams) == (0, 0, 2)


def test_a_stream_that_is_to_end_finishes_what_runs_and_another_takes_what_is_new_ACC_07(run: Start) -> None:
    ingress = run()
    with mx(ingress) as long, mx(ingress) as short:
        open_message(long)
        long.send(b"Subject: x\r\n\r\n" + (b"x" * 998 + b"\r\n") * 1200)
        wait_until(lambda: ingress.queue.held, 30, "chunks arrived")
        background().loop.call_soon_threadsafe(ingress.queue.go_away.set)
        ingress.wait_for(lambda: ingress.queue.streams == 2, "a second stream")
        assert deliver(short) == "250 2.6.0"
        long.send(b".\r\n")
        assert code(long.reply()) == "250 2.6.0"
        assert len(ingress.queue.stored[1].body) == 14 + 1_200_000


# --- the configuration ---


def test_a_change_is_live_without_dropping_a_connection_CFG_06(run: Start) -> None:
    made = setup()
    ingress = run(made)
    with mx(ingress) as talk:
        assert talk.codes("MAIL FROM:<x@far.example>", "RCPT TO:<new@home.example>", "RSET")[1] == "550 5.1.1"
        home = replace(made.revision.domains[0], aliases=(Alias("new", ("ada@home.example",)),))
        gateway = replace(
            made.revision.gateways[0],
            limits=GatewayLimits(message_size=1000),
            listeners=(*made.revision.gateways[0].listeners[:2], Listener("second", ListenerProtocol.MX, 0, None)),
        )
        revision = replace(made.revision, domains=(home, *made.revision.domains[1:]), gateways=(gateway,))
        ingress.publish(Setup(revision, made.secrets))
        assert talk.codes("MAIL FROM:<x@far.example>", "RCPT TO:<new@home.example>", "RSET")[1] == "250 2.1.5"
        assert "250-SIZE 1000\n" in talk.say("EHLO c")[0]
        assert talk.codes("MAIL FROM:<x@far.example> SIZE=1001") == ["552 5.3.4"]
    ingress.wait_for(lambda: any(e["listener"] == "second" for e in ingress.events("listening")), "a new listener")
    ingress.wait_for(lambda: ingress.events("listener closed"), "a listener that is gone is closed")
    second = next(e["port"] for e in ingress.events("listening") if e["listener"] == "second")
    with Talk((HOST, second)) as talk:
        assert "STARTTLS" not in talk.say("EHLO c")[0]
        assert talk.codes("STARTTLS") == ["502 5.5.1"]
    with pytest.raises(OSError, match="refused"):
        Talk((HOST, ingress.ports["submissions"]))


def test_requiretls_is_switched_off_and_on_while_sessions_are_open_and_what_has_begun_keeps_it(run: Start) -> None:
    made = setup()
    ingress = run(made)
    off = replace(made.revision, gateways=(replace(made.revision.gateways[0], offer_requiretls=False),))
    with Talk((HOST, ingress.ports["mx"])) as talk:
        talk.start_tls()
        talk.say("MAIL FROM:<x@far.example> REQUIRETLS", "RCPT TO:<ada@home.example>")
        ingress.publish(Setup(off, made.secrets))
        assert talk.codes("DATA") == ["354"]
        talk.send(b"Subject: x\r\n\r\n.\r\n")
        assert talk.reply().startswith("250")
        assert ingress.queue.stored[-1].envelope.tls_requirement == types_pb2.TLS_REQUIREMENT_REQUIRED
        assert talk.codes("MAIL FROM:<x@far.example> REQUIRETLS") == ["555 5.5.4"]
        assert "REQUIRETLS" not in talk.say("EHLO c")[0]
        ingress.publish(made)
        assert "250-REQUIRETLS\n" in talk.say("EHLO c")[0]


def test_a_new_certificate_serves_new_handshakes_TLS_09(run: Start) -> None:
    ingress = run()

    def served() -> bytes:
        with Talk((HOST, ingress.ports["submissions"]), greeting=False) as talk:
            talk.encrypt()
            return talk.socket.getpeercert(binary_form=True)  # type: ignore[attr-defined, no-any-return]

    before = served()
    with Talk((HOST, ingress.ports["submission"])) as talk:
        talk.start_tls()
        ingress.publish(setup(certificate=Authority().issue("other.home.example").pem))
        wait_until(lambda: served() != before, 30, "the other certificate is served")
        assert talk.codes("NOOP") == ["250 2.0.0"]


def test_465_begins_with_tls_and_587_with_starttls_and_the_same_is_offered_after_both_TLS_04(run: Start) -> None:
    ingress = run()

    def offered(talk: Talk) -> set[str]:
        (reply,) = talk.say("EHLO client.example")
        return {line[4:].partition(" ")[0] for line in reply.split("\n")[1:]}

    with (
        Talk((HOST, ingress.ports["submissions"]), greeting=False) as implicit,
        Talk((HOST, ingress.ports["submission"])) as explicit,
    ):
        implicit.encrypt()  # nothing was said in clear before it
        assert implicit.reply().startswith("220 ")
        assert "STARTTLS" in offered(explicit)
        explicit.start_tls()
        assert offered(implicit) == offered(explicit)
        assert "STARTTLS" not in offered(explicit)
        for talk in (implicit, explicit):
            assert talk.codes("MAIL FROM:<ada@home.example>") == ["530 5.7.0"]
            assert talk.log_in() == "235 2.7.0"
            assert talk.codes("MAIL FROM:<ada@home.example>") == ["250 2.1.0"]
    with Talk((HOST, ingress.ports["submissions"]), greeting=False) as clear, contextlib.suppress(ConnectionError):
        clear.send(b"EHLO client.example\r\n")
        assert b"220" not in clear.socket.recv(100)


@pytest.mark.parametrize("listener", ["submission", "submissions"])
def test_whatever_server_a_client_names_it_gets_the_certificate_DANE_23(run: Start, listener: str) -> None:
    ingress = run()
    context = trusting_anybody()
    served = set()
    for name in (None, "mx.home.example", "elsewhere.example"):
        with Talk((HOST, ingress.ports[listener]), greeting=False) as talk:
            if listener == "submission":
                assert talk.reply().startswith("220 ")
                assert talk.codes("EHLO c", "STARTTLS")[1] == "220 2.0.0"
            with context.wrap_socket(talk.socket, server_hostname=name) as secured:
                served.add(secured.getpeercert(binary_form=True))
    assert len(served) == 1


def test_a_client_that_is_gone_before_its_handshake_begins_is_no_fault_of_ours(run: Start) -> None:
    ingress = run()
    for _ in range(5):
        with mx(ingress) as talk:
            talk.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # so close() resets
            talk.send(b"STARTTLS\r\n")
    with Talk((HOST, ingress.ports["submission"])) as talk:
        talk.start_tls()
    assert not [line for line in ingress.program_lines() if '"level": "error"' in line]


def test_a_certificate_that_cannot_serve_costs_tls_and_nothing_else_TLS_01(run: Start) -> None:
    ingress = run(setup(certificate=b"no certificate"))
    with mx(ingress) as talk:
        assert talk.codes("STARTTLS") == ["454 4.7.0"]
        assert deliver(talk) == "250 2.6.0"
    assert ingress.events("certificate unusable")


def test_captive_mode_takes_any_recipient_at_the_mx_and_none_without(run: Start) -> None:
    ingress = run(setup(captive=True))
    with mx(ingress) as talk:
        codes = talk.codes(
            "MAIL FROM:<x@far.example>", "RCPT TO:<any@where.example>", "RCPT TO:<no@home.example>", "DATA"
        )
        assert codes == ["250 2.1.0", "250 2.1.5", "250 2.1.5", "354"]
        talk.send(b".\r\n")
        assert code(talk.reply()) == "250 2.6.0"
    found = [(r.address, r.mailbox_account.name) for r in ingress.queue.stored[0].recipients]
    assert found == [("any@where.example", ""), ("no@home.example", "postmaster")]


# --- proxies ---


def proxied(**listener: Any) -> Setup:
    return setup(proxy_protocol=True, **{"proxy_trusted_cidrs": ("127.0.0.0/8",), **listener})


def version_2(client: str, *, command: int = 1) -> bytes:
    payload = ip_address(client).packed + ip_address("198.51.100.1").packed + struct.pack("!HH", 5000, 25)
    return SIGNATURE + bytes([0x20 | command, 0x11]) + struct.pack("!H", len(payload)) + payload


@pytest.mark.parametrize(
    ("header", "client"),
    [
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 5000 25\r\n", "192.0.2.7"),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 5000 25\r\n", "2001:db8::7"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
        (version_2("192.0.2.8"), "192.0.2.8"),
        (version_2("192.0.2.8", command=0), "127.0.0.1"),
    ],
)
def test_the_conveyed_address_is_the_clients_PRX_02_PRX_04(run: Start, header: bytes, client: str) -> None:
    ingress = run(proxied())
    with Talk((HOST, ingress.ports["mx"]), greeting=False) as talk:
        talk.send(header[:9])
        talk.send(header[9:] + b"EHLO c\r\n")
        assert talk.reply().startswith("220")
        assert talk.reply().startswith("250")
        assert deliver(talk) == "250 2.6.0"
    assert ingress.queue.stored[0].envelope.client_ip == client


@contextlib.contextmanager
def behind_proxy(ingress: Ingress, client: str, listener: str = "mx") -> Iterator[Talk]:
    """A connection of the one proxy, which conveys this address."""
    with Talk((HOST, ingress.ports[listener]), greeting=False, source="127.0.0.5") as talk:
        talk.send(version_2(client))
        yield talk


def test_connections_are_counted_by_the_conveyed_address_PRX_04(run: Start) -> None:
    ingress = run(proxied(limits=GatewayLimits(connections_per_ip=2)))
    with contextlib.ExitStack() as stack:

        def greeting(client: str) -> str:
            return code(stack.enter_context(behind_proxy(ingress, client)).reply())

        assert [greeting("192.0.2.7") for _ in range(3)] == ["220", "220", "421 4.7.0"]
        assert [greeting("192.0.2.8") for _ in range(2)] == ["220", "220"]


def test_guesses_are_counted_by_the_conveyed_address_PRX_04_AUTH_05c(run: Start) -> None:
    ingress = run(proxied())

    def log_in(client: str, *passwords: str) -> list[str]:
        with behind_proxy(ingress, client, "submission") as talk:
            assert talk.reply().startswith("220 ")
            talk.start_tls()
            return [talk.log_in(password=password) for password in passwords]

    for _ in range(6):
        assert log_in("192.0.2.7", *["guess"] * 5) == ["535 5.7.8"] * 5
    assert log_in("192.0.2.7", PASSWORD) == ["454 4.7.0"]
    assert log_in("192.0.2.8", PASSWORD) == ["235 2.7.0"]


def test_the_header_comes_before_tls_even_in_one_segment_PRX_03(run: Start) -> None:
    ingress = run(proxied())
    for header in (version_2("192.0.2.8"), b"PROXY TCP4 192.0.2.8 198.51.100.1 5000 465\r\n"):
        hello = _client_hello()
        with Talk((HOST, ingress.ports["submissions"]), greeting=False) as talk:
            talk.send(header + hello)
            assert talk.socket.recv(5)[:1] == b"\x16"  # the server's handshake record
        with Talk((HOST, ingress.ports["submissions"]), greeting=False) as talk:
            talk.send(header)
            talk.encrypt()
            assert talk.reply().startswith("220")
            assert talk.codes("EHLO c") == ["250"]
            assert talk.log_in() == "235 2.7.0"


def _client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


@pytest.mark.parametrize(
    ("sent", "trusted"),
    [
        (b"EHLO c\r\n", "127.0.0.0/8"),
        (b"PROXY TCP4 nonsense\r\n", "127.0.0.0/8"),
        (b"", "127.0.0.0/8"),  # late
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 5000 25\r\n", "192.0.2.0/24"),
    ],
)
def test_without_a_good_header_from_a_trusted_proxy_there_is_no_banner_PRX_01(
    run: Start, sent: bytes, trusted: str
) -> None:
    ingress = run(proxied(proxy_trusted_cidrs=(trusted,)), proxy_timeout="0.5")
    with Talk((HOST, ingress.ports["mx"]), greeting=False) as talk:
        with contextlib.suppress(ConnectionError):
            talk.send(sent)
        try:
            assert talk.socket.recv(100) == b""
        except ConnectionResetError:
            pass


# --- limits and clocks ---


def limited(**limits: int) -> Setup:
    return setup(limits=GatewayLimits(**limits))


def test_a_silent_client_hears_421_SIN_17(run: Start) -> None:
    ingress = run(limited(idle_timeout=3))
    with mx(ingress) as talk, mx(ingress) as in_message:
        open_message(in_message)
        assert code(talk.reply()) == "421 4.4.2"
        assert talk.ended()
        assert code(in_message.reply()) == "421 4.4.2"
        assert in_message.ended()
    assert ingress.queue.stored == []


def test_a_message_that_drips_ends_by_the_clock_SIN_17(run: Start) -> None:
    ingress = run(limited(idle_timeout=600, transaction_timeout=3))
    with mx(ingress) as talk:
        open_message(talk)
        talk.send(b"Subject: x\r\n")
        assert code(talk.reply()) == "421 4.4.2"


def test_a_client_is_not_timed_out_while_it_waits_for_us(run: Start) -> None:
    ingress = run(limited(idle_timeout=3))
    ingress.queue.answers.clear()
    with mx(ingress) as talk, mx(ingress) as idle:
        open_message(talk)
        talk.send(b".\r\n")
        assert code(idle.reply()) == "421 4.4.2"  # the clock has run out for it, and so it has for us
        background().loop.call_soon_threadsafe(ingress.queue.answers.set)
        assert code(talk.reply()) == "250 2.6.0"


def test_one_client_gets_so_many_connections_and_others_still_get_theirs(run: Start) -> None:
    ingress = run(limited(connections_per_ip=3))
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(mx(ingress))
        with Talk((HOST, ingress.ports["mx"]), greeting=False) as refused:
            assert code(refused.reply()) == "421 4.7.0"
            assert refused.ended()
        with Talk((HOST, ingress.ports["mx"]), source="127.0.0.9") as other:
            assert other.codes("NOOP") == ["250 2.0.0"]

    def again() -> bool:
        with Talk((HOST, ingress.ports["mx"]), greeting=False) as talk:
            return code(talk.reply()) == "220"

    wait_until(again, 30, "the place of one that left is free")


def test_a_client_that_never_shakes_hands_is_counted_like_any_other(run: Start) -> None:
    ingress = run(limited(connections_per_ip=3))
    place = (HOST, ingress.ports["submissions"])
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(Talk(place, greeting=False)) for _ in range(3)]
        with Talk(place, greeting=False) as fourth:
            assert fourth.ended()
        with Talk(place, greeting=False, source="127.0.0.9") as other:
            other.encrypt()
            assert other.reply().startswith("220 ")
        silent[0].send(b"EHLO this is not TLS\r\n")

        def again() -> bool:
            with Talk(place, greeting=False) as talk, contextlib.suppress(OSError):
                talk.encrypt()
                return talk.reply().startswith("220 ")
            return False

        wait_until(again, 30, "the place of one whose handshake failed is free")


def test_handshakes_that_nobody_finishes_keep_nobody_from_theirs_SIN_17(run: Start) -> None:
    ingress = run(handshakes="20")
    with contextlib.ExitStack() as stack:
        places = (ingress.ports["submissions"], ingress.ports["mx"])
        for number in range(40):
            silent = Talk((HOST, places[number % 2]), greeting=bool(number % 2))
            stack.enter_context(silent)
            if number % 2:
                assert silent.codes("EHLO silent.example", "STARTTLS")[1] == "220 2.0.0" or number >= 20
        with Talk((HOST, places[0]), greeting=False) as earnest:
            earnest.encrypt()
            assert earnest.reply().startswith("220 ")

        def by_starttls() -> bool:
            with Talk((HOST, places[1])) as talk:
                if talk.codes("EHLO client.example", "STARTTLS")[1] == "421 4.7.0":
                    return False
                talk.encrypt()
                return talk.codes("EHLO client.example") == ["250"]

        wait_until(by_starttls, 30, "a handshake after STARTTLS is done")


def test_no_handshake_ends_while_there_are_no_more_than_may_be(run: Start) -> None:
    ingress = run(handshakes="2")
    place = (HOST, ingress.ports["submissions"])
    with Talk(place, greeting=False) as slow:
        began = time.monotonic()
        while time.monotonic() < began + 2 * GRACE:  # so it is old enough to make room
            with Talk(place, greeting=False) as other:
                other.encrypt()
                assert other.reply().startswith("220 ")
        slow.encrypt()
        assert slow.reply().startswith("220 ")


def test_waves_of_handshakes_that_nobody_finishes_leave_no_memory_behind(run: Start) -> None:
    """Each wave of 1,200 left 60 MB, and the next one as much again."""
    ingress = run()
    assert ingress.program is not None
    process = psutil.Process(ingress.program.pid)
    bound = process.memory_info().rss + 40 * 1024 * 1024
    place = (HOST, ingress.ports["submissions"])

    def wave() -> None:
        with contextlib.ExitStack() as stack:
            for number in range(1200):
                source = (f"127.0.8.{1 + number // 90}", 0)
                stack.enter_context(socket.create_connection(place, timeout=60, source_address=source))

    wave()
    wait_until(lambda: process.memory_info().rss < bound, 60, "the first wave's memory is given back")
    for _ in range(5):
        wave()
    wait_until(lambda: process.memory_info().rss < bound, 60, "all of it is given back")


def test_a_process_takes_so_many_connections_and_ends_none_that_waits_for_it(run: Start) -> None:
    ingress = run(limited(connections=1))
    ingress.queue.answers.clear()
    with mx(ingress) as talk:
        open_message(talk)
        talk.send(b".\r\n")
        wait_until(lambda: ingress.queue.count == 1, 60, "it waits for its answer")
        with Talk((HOST, ingress.ports["mx"]), greeting=False) as another:
            assert code(another.reply()) == "421 4.7.0"
        background().loop.call_soon_threadsafe(ingress.queue.answers.set)
        assert code(talk.reply()) == "250 2.6.0"


def test_idle_clients_on_every_place_keep_nobody_out_SIN_17(run: Start) -> None:
    """Whoever came first stayed for five minutes with each word, and all others heard 421."""
    ingress = run(limited(connections=9))
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(Talk((HOST, ingress.ports["mx"]), source=f"127.0.{n}.9")) for n in range(8)]
        in_tls = stack.enter_context(Talk((HOST, ingress.ports["submissions"]), greeting=False, source="127.0.9.9"))
        in_tls.encrypt()
        assert in_tls.reply().startswith("220 ")

        def delivers(number: int) -> bool:
            with Talk((HOST, ingress.ports["mx"]), greeting=False, source=f"127.1.{number}.1") as talk:
                if code(talk.reply()) != "220":
                    return False
                assert talk.codes("EHLO client.example") == ["250"]
                return deliver(talk) == "250 2.6.0"

        def stays(number: int) -> bool:
            talk = stack.enter_context(Talk((HOST, ingress.ports["mx"]), greeting=False, source=f"127.1.{number}.1"))
            return code(talk.reply()) == "220"

        wait_until(lambda: delivers(0), 30, "the first gets a place")
        spoken_to, _, _ = select.select([talk.socket for talk in idle], [], [], 60)
        (gone,) = [talk for talk in idle if talk.socket in spoken_to]
        assert code(gone.reply()) == "421 4.3.2"
        assert gone.ended()
        idle.remove(gone)
        for number in range(1, 10):  # each comes again and stays: the idle ones have to go, one after the other
            wait_until(lambda number=number: delivers(number), 60, f"number {number} gets a place")  # type: ignore[misc]
            wait_until(lambda number=number: stays(number), 60, f"number {number} stays")  # type: ignore[misc]
        assert {code(talk.reply()) for talk in (*idle, in_tls)} <= {"421 4.3.2", "421 4.4.2"}
        assert all(talk.ended() for talk in (*idle, in_tls))
    assert len(ingress.queue.stored) == 10


def test_guessing_from_one_address_is_slowed_down_AUTH_05c(run: Start) -> None:
    ingress = run()
    for _ in range(6):
        with Talk((HOST, ingress.ports["submission"]), source="127.0.0.5") as talk:
            talk.start_tls()
            for _ in range(5):
                assert talk.log_in(password="guess") == "535 5.7.8"
    with Talk((HOST, ingress.ports["submission"]), source="127.0.0.5") as talk:
        talk.start_tls()
        assert talk.log_in() == "454 4.7.0"
    with Talk((HOST, ingress.ports["submission"]), source="127.0.0.6") as talk:
        talk.start_tls()
        assert talk.log_in() == "235 2.7.0"


def test_a_client_that_does_not_read_is_not_answered_without_bound(run: Start) -> None:
    ingress = run(limited(idle_timeout=60))
    with mx(ingress) as talk, mx(ingress) as other:
        # What does nothing for a message ends the session soon; so these are messages.
        message = b"MAIL FROM:<>\r\nRCPT TO:<ada@home.example>\r\nBDAT 1 LAST\r\nx"
        talk.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        talk.socket.settimeout(1)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 60_000_000:
                sent += talk.socket.send(message * 1000)
        assert sent < 30_000_000
        assert other.codes("NOOP") == ["250 2.0.0"]


def test_a_client_that_goes_on_sending_after_our_last_word_is_cut_off(run: Start) -> None:
    ingress = run()
    with mx(ingress) as talk:
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 200_000_000:
                sent += talk.socket.send(b"a line that is no command\r\n" * 10_000)
        assert LINGER_OCTETS <= sent < 100_000_000


# --- senders in DNS ---


def test_sender_domains_are_looked_up_at_the_mx_SIN_23a(run: Start) -> None:
    with DnsServer() as dns:
        dns.add("mx.example", "MX", "10 mail.mx.example.")
        dns.add("implicit.example", "A", "192.0.2.1")
        dns.add("six.example", "AAAA", "2001:db8::1")
        dns.add("silent.example", "MX", "0 .")
        dns.add("nothing.example", "TXT", '"no mail here"')
        dns.fail("broken.example", Failure.SERVFAIL)
        ingress = run(resolver=dns.endpoint, dns_timeout="20")
        with mx(ingress) as talk:
            for domain, expected in (
                ("mx.example", "250 2.1.0"),
                ("implicit.example", "250 2.1.0"),
                ("six.example", "250 2.1.0"),
                ("silent.example", "550 5.7.27"),
                ("nothing.example", "550 5.1.8"),
                ("missing.example", "550 5.1.8"),
                ("broken.example", "451 4.4.3"),
                ("home.example", "250 2.1.0"),
                ("[192.0.2.1]", "250 2.1.0"),
                (".".join(["a" * 62] * 4 + ["bcd"]), "550 5.1.8"),  # 255 octets, and two more on the wire of DNS
            ):
                assert talk.codes(f"MAIL FROM:<x@{domain}>", "RSET")[0] == expected, domain
            assert talk.codes("MAIL FROM:<>", "RSET")[0] == "250 2.1.0"
            assert talk.codes("MAIL FROM:<x@mx.example>", "RSET")[0] == "250 2.1.0"
        assert dns.asked("mx.example", "MX") == 1
        assert dns.asked("home.example") == 0
        with Talk((HOST, ingress.ports["submission"])) as talk:
            talk.start_tls()
            talk.log_in()
            assert talk.codes("MAIL FROM:<ada@sending.example>") == ["250 2.1.0"]
        assert dns.asked("sending.example") == 0


def test_captive_mode_asks_no_dns_SIN_23a(run: Start) -> None:
    with DnsServer() as dns:
        ingress = run(setup(captive=True), resolver=dns.endpoint)
        with mx(ingress) as talk:
            assert talk.codes("MAIL FROM:<x@missing.example>") == ["250 2.1.0"]
        assert dns.asked("missing.example") == 0


# --- channel binding ---


def test_plus_is_offered_where_it_is_switched_on_and_binds_to_our_certificate_SCR_05a(run: Start) -> None:
    from mailrail_ingress.tls import load

    pem = Authority().issue("mx.home.example").pem
    binding = load(pem).end_point
    assert binding is not None
    ingress = run(setup(certificate=pem), bind_server_end_point="true")
    with Talk((HOST, ingress.ports["submission"])) as talk:
        assert "-PLUS" not in talk.say("EHLO c")[0]
    for data, expected in ((binding, "235"), (b"\0" * 32, "535")):
        with Talk((HOST, ingress.ports["submissions"]), greeting=False) as talk:
            talk.encrypt()
            talk.reply()
            assert "AUTH SCRAM-SHA-256-PLUS SCRAM-SHA-256 SCRAM-SHA-1-PLUS" in talk.say("EHLO c")[0]
            assert _scram_plus(talk, data).startswith(expected)


@pytest.mark.parametrize("listener", ["submission", "submissions"])
def test_a_login_is_bound_to_the_certificate_that_its_client_was_shown_SCR_05a(run: Start, listener: str) -> None:
    from mailrail_ingress.tls import load

    shown = Authority().issue("mx.home.example").pem
    binding = load(shown).end_point
    assert binding is not None
    ingress = run(setup(certificate=shown), bind_server_end_point="true")
    first = listener == "submissions"
    with Talk((HOST, ingress.ports[listener]), greeting=not first) as talk:
        if first:
            talk.encrypt()
            talk.reply()
        else:
            talk.start_tls()
        assert talk.codes("EHLO c") == ["250"]
        ingress.publish(setup(certificate=Authority().issue("mx.home.example").pem))
        assert talk.codes("NOOP") == ["250 2.0.0"]  # which the new configuration answers
        assert _scram_plus(talk, binding).startswith("235")


def _scram_plus(talk: Talk, data: bytes) -> str:
    from base64 import b64decode, b64encode

    client = start(
        ClientMechanism.SCRAM_SHA_256_PLUS,
        Credentials("ada@home.example", PASSWORD),
        nonce="0123456789abcdef0123",
        binding=ChannelBinding("tls-server-end-point", data),
        server_offered_plus=True,
    )
    first = client.initial()
    assert first is not None
    reply = talk.say(f"AUTH SCRAM-SHA-256-PLUS {b64encode(first).decode()}")[0]
    while reply.startswith("334"):
        reply = talk.say(b64encode(client.respond(b64decode(reply[4:]))).decode())[0]
    return reply


# --- the end, and what is told ---


def test_stopping_says_421_and_lets_a_message_finish_SIN_17(run: Start) -> None:
    ingress = run(stop_grace="60")
    assert ingress.program is not None
    with mx(ingress) as idle, mx(ingress) as busy:
        open_message(busy)
        busy.send(b"Subject: x\r\n\r\nfirst half\r\n")
        ingress.program._process.terminate()
        assert code(idle.reply()) == "421 4.3.2"
        assert idle.ended()
        with pytest.raises(OSError, match="refused"):
            Talk((HOST, ingress.ports["mx"]))
        busy.send(b"second half\r\n.\r\n")
        assert code(busy.reply()) == "250 2.6.0"
        assert code(busy.reply()) == "421 4.3.2"
    assert ingress.program.wait(60) == 0
    assert ingress.queue.stored[0].body.endswith(b"second half\r\n")


def test_silent_clients_that_keep_their_connection_do_not_hold_up_a_stop_SIN_17(run: Start) -> None:
    ingress = run(stop_grace="600", linger_close="600")
    assert ingress.program is not None
    with mx(ingress) as talk, mx(ingress) as other:
        talk.say("EHLO keeps.example")
        ingress.program._process.terminate()
        assert ingress.program.wait(60) == 0  # far within the grace: nothing is under way
        assert [code(client.reply()) for client in (talk, other)] == ["421 4.3.2", "421 4.3.2"]


def test_a_kill_before_the_answer_leaves_all_or_nothing_and_says_nothing_SIN_01(run: Start) -> None:
    ingress = run()
    assert ingress.program is not None
    ingress.queue.answers.clear()
    with mx(ingress) as talk:
        open_message(talk)
        talk.send(b"Subject: x\r\n\r\nwhole\r\n.\r\n")
        ingress.wait_stored(1)
        ingress.program.kill()
        with contextlib.suppress(ConnectionResetError):
            assert talk.reply() == ""
    background().loop.call_soon_threadsafe(ingress.queue.answers.set)
    assert ingress.queue.stored[0].body.endswith(b"whole\r\n")


def test_metrics_count_what_happened(run: Start) -> None:
    port = free_port()
    ingress = run(metrics_listen=f"{HOST}:{port}")
    with mx(ingress) as talk:
        assert deliver(talk) == "250 2.6.0"
        talk.say("MAIL FROM:<x@far.example>", "RCPT TO:<nobody@home.example>", "QUIT")
    with Talk((HOST, ingress.ports["mx"])) as talk:
        talk.start_tls()
        for parameter, field in (("", b"TLS-Required: No\r\n"), (" REQUIRETLS", b"")):
            talk.say(f"MAIL FROM:<x@far.example>{parameter}", "RCPT TO:<ada@home.example>", "DATA")
            talk.send(field + b"\r\n.\r\n")
            assert talk.reply().startswith("250")
        talk.say("QUIT")

    def scrape() -> str:
        opened: AbstractContextManager[Any] = urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=60)
        with opened as response:
            return str(response.read().decode())

    wanted = (
        'mailrail_ingress_sessions_total{end="quit"} 2.0',
        'mailrail_ingress_connections_total{protocol="mx",result="accepted"} 2.0',
        'mailrail_ingress_connections_open{protocol="mx"} 0.0',
        'mailrail_ingress_messages_total{origin="mx",result="accepted"} 3.0',
        'mailrail_ingress_tls_requirements_total{origin="mx",requirement="required"} 1.0',
        'mailrail_ingress_tls_requirements_total{origin="mx",requirement="no"} 1.0',
        'mailrail_ingress_tls_requirements_total{origin="submission",requirement="no"} 0.0',
        'mailrail_ingress_recipients_total{origin="mx",result="accepted"} 3.0',
        'mailrail_ingress_recipients_total{origin="mx",result="refused"} 1.0',
        "mailrail_ingress_commit_seconds_count 3.0",
        "mailrail_ingress_queue_stream_up 1.0",
        "mailrail_ingress_queue_pending 0.0",
        "mailrail_ingress_held_bytes 0.0",
    )

    def missing() -> list[str]:
        text = scrape()
        return [series for series in wanted if series not in text]

    wait_until(lambda: not missing(), 30, lambda: f"everything is counted, such as {missing()}")


def test_a_revision_without_our_gateway_is_rejected_and_the_one_before_stays_in_force(run: Start) -> None:
    made = setup()
    ingress = run(made, gateway="mail/main")
    assert ingress.config.reports[-1].gateway == "mail/main"
    renamed = replace(made.revision.gateways[0], ref=replace(made.revision.gateways[0].ref, name="other"))
    revision = replace(made.revision, gateways=(renamed,))
    background().call(ingress.config.publish(revision, made.secrets))
    ingress.wait_for(lambda: ingress.events("configuration rejected"), "the revision is rejected")
    assert "has no gateway mail/main" in ingress.events("configuration rejected")[0]["error"]
    with mx(ingress) as talk:
        assert deliver(talk) == "250 2.6.0"
