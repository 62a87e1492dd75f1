"""Clients that mean no good, against one ingress: nobody else has less of it, and nothing of theirs stays.

What single clients do wrong is told apart in the other tests; many at once and whole installations are in
tests/scenarios/test_guards_hostile.py.
"""

import contextlib
import re
import socket
import struct
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest

from mailrail.core.message.header import FIELDS_LIMIT
from mailrail.core.revision.revision import GatewayLimits
from mailrail.core.smtp.proxy import SIGNATURE
from mailrail.core.smtp.server import USELESS_LIMIT

from testkit.conditions import wait_until
from testkit.ingress import Ingress, Talk, code, setup
from testkit.ports import free_port

HOST = "127.0.0.1"
MESSAGE_SIZE = 1_000_000
GROWTH = 40 * 1024 * 1024
METRICS_PORT = free_port()


@pytest.fixture(scope="module")
def ingress(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ingress]:
    made = setup(limits=GatewayLimits(message_size=MESSAGE_SIZE))
    with Ingress(tmp_path_factory.mktemp("ingress"), made, metrics_listen=f"{HOST}:{METRICS_PORT}") as running:
        yield running


@pytest.fixture(scope="module")
def behind_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ingress]:
    made = setup(proxy_protocol=True, proxy_trusted_cidrs=("127.0.0.0/8",))
    with Ingress(tmp_path_factory.mktemp("proxied"), made) as running:
        yield running


def scrape() -> dict[str, float]:
    """Series of the first ingress → value."""
    opened: AbstractContextManager[Any] = urllib.request.urlopen(f"http://{HOST}:{METRICS_PORT}/metrics", timeout=60)
    with opened as response:
        lines = [line for line in response.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def deliver(ingress: Ingress, content: bytes = b"Subject: x\r\n\r\nbody\r\n", mail: str = "") -> str:
    """The answer to a message of a stranger, from an address of its own."""
    with Talk((HOST, ingress.ports["mx"]), source="127.0.99.1") as talk:
        talk.say("EHLO client.example")
        assert talk.codes(f"MAIL FROM:<x@far.example>{mail}", "RCPT TO:<ada@home.example>", "DATA")[2] == "354"
        talk.send(content + b".\r\n")
        return code(talk.reply())


# --- connections that come and go ---


def reset(client: socket.socket) -> None:
    """Close with a RST, as a scanner does."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def test_connections_that_come_and_go_leave_nothing_behind_and_keep_nobody_out(ingress: Ingress) -> None:
    assert ingress.program is not None
    process = psutil.Process(ingress.program.pid)
    assert deliver(ingress) == "250 2.6.0"
    files, memory = process.num_fds(), process.memory_info().rss
    words = (
        b"",
        b"EHLO c\r\n",
        b"MAIL FROM:<x@far.exa",
        b"EHLO c\r\nSTARTTLS\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"QUIT\r\n",
    )
    ends = (socket.socket.close, reset)
    for number in range(1200):
        listener = ("mx", "submission", "submissions")[number % 3]
        source = (f"127.0.98.{1 + number % 20}", 0)
        client = socket.create_connection((HOST, ingress.ports[listener]), timeout=60, source_address=source)
        client.sendall(words[number % len(words)])
        ends[number % 2](client)
        if number % 300 == 0:
            assert deliver(ingress) == "250 2.6.0"

    def all_gone() -> bool:
        found = scrape()
        open_now = [name for name in found if "connections_open" in name or "handshakes_open" in name]
        return len(open_now) == 5 and not any(found[name] for name in open_now)

    wait_until(all_gone, 60, "no connection and no handshake is counted any more")
    wait_until(lambda: process.num_fds() <= files + 5, 60, "their files are closed")
    assert process.memory_info().rss < memory + GROWTH
    assert deliver(ingress) == "250 2.6.0"


# --- commands that do nothing ---


@pytest.mark.parametrize(
    ("before", "word"),
    [
        (b"", b"NOOP\r\n"),
        (b"", b"VRFY a\r\n"),
        (b"", b"EHLO a\r\n"),
        (b"MAIL FROM:<>\r\n", b"RSET\r\nMAIL FROM:<>\r\n"),
        (b"MAIL FROM:<>\r\nRCPT TO:<ada@home.example>\r\n", b"BDAT 0\r\n"),
        (b"MAIL FROM:<>\r\nRCPT TO:<ada@home.example>\r\n", b"BDAT 1\r\nx"),
    ],
)
def test_commands_that_do_nothing_come_to_an_end_SIN_17(ingress: Ingress, before: bytes, word: bytes) -> None:
    with Talk((HOST, ingress.ports["mx"])) as talk:
        with contextlib.suppress(ConnectionError):
            talk.send(b"EHLO c\r\n" + before + word * 5000)
        codes: list[str] = []
        while not codes or not codes[-1].startswith("421"):
            codes.append(code(talk.reply()))
            assert codes[-1], "the connection ended without a word"
        assert codes[-1] == "421 4.7.0"
        assert len(codes) < 3 * USELESS_LIMIT


# --- sizes ---


@pytest.mark.parametrize(
    ("mail", "content", "answer"),
    [
        (" SIZE=100", b"Subject: x\r\n\r\n" + (b"y" * 998 + b"\r\n") * 900, "250 2.6.0"),
        ("", b"Subject: x\r\n\r\n" + (b"y" * 998 + b"\r\n") * 1100, "552 5.3.4"),
        ("", b"X-Long: y\r\n" + (b" " + b"y" * 900 + b"\r\n") * 400 + b"\r\nbody\r\n", "552 5.3.4"),
        ("", b"X-Long: " + b"y" * 100_000 + b"\r\n\r\nbody\r\n", "550 5.6.0"),
        ("", b"a:\r\n" * (FIELDS_LIMIT + 1) + b"\r\nbody\r\n", "550 5.6.0"),
        ("", b"a:\r\n" * FIELDS_LIMIT + b"\r\nbody\r\n", "250 2.6.0"),
        ("", b"Received: from a by b; x\r\n" * 101 + b"\r\nbody\r\n", "554 5.4.6"),
        ("", b"Authentication-Results: x; none\r\n" * 101 + b"\r\nbody\r\n", "550 5.6.0"),
    ],
    ids=["said-small", "body", "header", "line", "fields", "just-fields", "received", "results"],
)
def test_what_is_too_large_is_refused_for_what_it_is(ingress: Ingress, mail: str, content: bytes, answer: str) -> None:
    stored = len(ingress.queue.stored)
    assert deliver(ingress, content, mail) == answer
    assert len(ingress.queue.stored) == stored + answer.startswith("250")


# --- large messages that come at once ---

LARGE = b"Subject: large\r\n\r\n" + (b"z" * 998 + b"\r\n") * 1500


def test_of_large_messages_at_once_some_start_and_the_others_hear_it_before_they_send_ACC_07(tmp_path: Path) -> None:
    made = setup(limits=GatewayLimits(message_size=10_000_000))
    with Ingress(tmp_path, made, upload_octets="3600000", client_upload_octets="3600000") as ingress:
        with contextlib.ExitStack() as stack:
            talks = []
            for number in range(1, 9):
                talk = Talk((HOST, ingress.ports["mx"]), source=f"127.0.97.{number}")
                talks.append(stack.enter_context(talk))
                talk.say("EHLO c")
                mail = f"MAIL FROM:<x@far.example> SIZE={len(LARGE)}"
                assert talk.codes(mail, "RCPT TO:<ada@home.example>") == ["250 2.1.0", "250 2.1.5"]
            first, *others = talks
            assert first.codes("DATA") == ["354"]
            first.send(LARGE[:1_400_000])
            ingress.wait_for(lambda: ingress.queue.held, "the first one comes")
            assert [talk.codes("DATA") for talk in others] == [["452 4.3.1"]] * 7
            assert others[0].codes("MAIL FROM:<x@far.example>", "RCPT TO:<ada@home.example>", "DATA")[2] == "354"
            others[0].send(b"Subject: small\r\n\r\nbody\r\n.\r\n")
            assert code(others[0].reply()) == "250 2.6.0"
            first.send(LARGE[1_400_000:] + b".\r\n")
            assert code(first.reply()) == "250 2.6.0"
            for talk in talks:  # each in its turn, on the connection that it has
                assert talk.codes(mail, "RCPT TO:<ada@home.example>", "DATA")[2] == "354"
                talk.send(LARGE + b".\r\n")
                assert code(talk.reply()) == "250 2.6.0"
        assert len(ingress.queue.stored) == 10


# --- PROXY headers ---


def version_2(extra: bytes = b"") -> bytes:
    payload = ip_address("192.0.2.8").packed + ip_address("198.51.100.1").packed + struct.pack("!HH", 5000, 25) + extra
    return SIGNATURE + b"\x21\x11" + struct.pack("!H", len(payload)) + payload


VERSION_1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 5000 25\r\n"


def test_a_proxy_header_where_none_is_due_is_no_command_and_names_nobody_PRX_01(ingress: Ingress) -> None:
    with Talk((HOST, ingress.ports["mx"])) as talk:
        assert talk.codes(VERSION_1.decode().strip(), "EHLO c") == ["500 5.5.1", "250"]
    with Talk((HOST, ingress.ports["mx"])) as talk:
        talk.send(version_2())
        codes = [code(talk.reply()) for _ in range(4)]  # it has three line ends, and then a bare one
        assert codes == ["500 5.5.1"] * 3 + ["500 5.5.2"]
        assert talk.ended()
    assert deliver(ingress) == "250 2.6.0"
    assert ingress.queue.stored[-1].envelope.client_ip == "127.0.99.1"


def test_a_second_proxy_header_is_no_command_PRX_01(behind_proxy: Ingress) -> None:
    with Talk((HOST, behind_proxy.ports["mx"]), greeting=False) as talk:
        talk.send(VERSION_1 + VERSION_1.replace(b"192.0.2.7", b"192.0.2.9") + b"EHLO c\r\n")
        assert [code(talk.reply()) for _ in range(3)] == ["220", "500 5.5.1", "250"]
        assert talk.codes("MAIL FROM:<x@far.example>", "RCPT TO:<ada@home.example>", "BDAT 0 LAST")[2] == "250 2.6.0"
    assert behind_proxy.queue.stored[-1].envelope.client_ip == "192.0.2.7"


@pytest.mark.parametrize(("octets", "taken"), [(4000, True), (65_000, False)])
def test_a_proxy_header_may_be_long_and_not_endless_PRX_02(behind_proxy: Ingress, octets: int, taken: bool) -> None:
    extra = b"\x04" + struct.pack("!H", octets) + bytes(octets)
    with Talk((HOST, behind_proxy.ports["mx"]), greeting=False) as talk:
        with contextlib.suppress(ConnectionError):
            talk.send(version_2(extra))
        try:
            assert bool(talk.reply()) is taken
        except ConnectionResetError:
            assert not taken


# --- what is counted ---


def test_no_word_of_a_client_becomes_a_series(ingress: Ingress) -> None:
    assert deliver(ingress) == "250 2.6.0"
    before = set(scrape())
    for number in range(30):
        word = f"evil{number}"
        with Talk((HOST, ingress.ports["submission"])) as talk:
            talk.start_tls()
            talk.say(f"EHLO {word}.example", f"{word} x", f"AUTH {word}")
            talk.log_in(f"{word}@home.example")
        with Talk((HOST, ingress.ports["mx"])) as talk:
            talk.say(f"EHLO {word}", f"MAIL FROM:<{word}@{word}.example>", f"RCPT TO:<{word}@home.example>")
            talk.say(f"VRFY {word}", f"MAIL FROM:<{word}> {word}={word}")
    after = set(scrape())
    assert not [name for name in after if "evil" in name]
    assert len(after - before) < 10, f"these are new: {sorted(after - before)}"
    assert not [name for name in after - before if re.search(r"\d", name.partition("{")[2])]
