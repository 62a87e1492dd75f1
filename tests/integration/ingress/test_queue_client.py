"""The client of the queue alone, in this process: a real stream to a queue that the test kit plays."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from mailrail.core.limits import CHUNK_SIZE, INLINE_LIMIT
from mailrail.core.revision.revision import ObjectRef
from mailrail.core.smtp.parameters import NO_MAIL_PARAMETERS
from mailrail.kit import rpc
from mailrail.kit.settings import BadSettings
from mailrail_ingress.active_config import MessageIds
from mailrail_ingress.held_octets import HeldOctets
from mailrail_ingress.ports import (
    CommitAnswer,
    ExpandedRecipient,
    OpenTransactions,
    Origin,
    Provenance,
    ReceivedMessage,
    Upload,
)
from mailrail_ingress.queue_stream import EnqueueClient
from mailrail_ingress.settings import IngressSettings

from testkit.conditions import eventually
from testkit.ingress import FakeQueue
from testkit.ports import free_port
from testkit.processes import Program
from testkit.queue import sql

PROVENANCE = Provenance(Origin.MX, ObjectRef("MailGateway", "mail", "main"), None, "127.0.0.1", "client.example", 1)
IDS = MessageIds()
TESTS = Path(__file__).parents[2]


def message(*, id: bytes = b"", body: bytes | None = b"A: b\r\n\r\nx\r\n") -> ReceivedMessage:
    return ReceivedMessage(
        id=id or IDS.new(time.time()),
        provenance=PROVENANCE,
        sender=None,
        parameters=NO_MAIL_PARAMETERS,
        auth=None,
        message_id=None,
        subject=None,
        received=time.time(),
        eight_bit=False,
        recipients=[ExpandedRecipient("ada@home.example", "ada@home.example", (), None, False, None, None, "")],
        prefix=b"Received: x\r\n",
        body=body,
        size=13 + len(body or b""),
    )


def upload(queue: EnqueueClient) -> tuple[bytes, Upload, list[bool]]:
    """Begin a body; its id, the upload, and a list that gets an entry when it is lost."""
    lost: list[bool] = []
    number = IDS.new(time.time())
    return number, queue.upload(number, lambda: None, lambda: lost.append(True)), lost


class Sender:
    """A client that uploads as fast as it may, without end."""

    def __init__(self, queue: EnqueueClient) -> None:
        self.id = os.urandom(16)
        self.lost = False
        self._upload: Upload = queue.upload(self.id, self.send, self._gone)
        self.send()

    def send(self) -> None:
        while not self.lost and self._upload.send(bytes(CHUNK_SIZE)):
            pass

    def _gone(self) -> None:
        self.lost = True


@asynccontextmanager
async def client(fake: FakeQueue, **settings: Any) -> AsyncIterator[EnqueueClient]:
    """A client with its stream open to the queue, which ends with it."""
    if not fake.port:
        await fake.serve()
    made = IngressSettings(plaintext=True, queue_target=f"127.0.0.1:{fake.port}", stop_grace=0.1, **settings)
    try:
        async with EnqueueClient(made, HeldOctets(made.held_octets), OpenTransactions()).running() as queue:
            await eventually(lambda: queue.available, what="a stream is open")
            yield queue
    finally:
        await fake.stop()


def commit(queue: EnqueueClient, what: ReceivedMessage) -> "asyncio.Future[CommitAnswer]":
    """Hand a message over; its answer."""
    answered: asyncio.Future[CommitAnswer] = asyncio.get_running_loop().create_future()
    queue.commit(what, answered.set_result)
    return answered


@pytest.mark.parametrize("uploads", [4, 40])
async def test_small_messages_are_committed_while_many_large_ones_are_uploaded_ACC_07(uploads: int) -> None:
    fake = FakeQueue(keep=False)
    async with client(fake) as queue:
        senders = [Sender(queue) for _ in range(uploads)]
        await eventually(lambda: fake.held == uploads, what="all are uploading")
        for _ in range(20):
            answer = await asyncio.wait_for(commit(queue, message()), 60)
            assert answer.accepted
        octets = fake.octets
        await eventually(lambda: fake.octets > octets + 8 * 1024 * 1024, what="the uploads go on")
        assert not any(sender.lost for sender in senders)


async def test_small_messages_pass_large_bodies_that_wait_to_be_committed_ACC_07() -> None:
    fake = FakeQueue(keep=False)
    committed = 0

    async def send_large(queue: EnqueueClient) -> None:
        nonlocal committed
        while True:
            assert (await commit(queue, message(body=bytes(INLINE_LIMIT)))).accepted
            committed += 1

    async with client(fake) as queue:
        senders = [asyncio.create_task(send_large(queue)) for _ in range(60)]
        await eventually(lambda: committed > 60, what="large bodies are committed")
        for _ in range(20):
            before = committed
            assert (await asyncio.wait_for(commit(queue, message()), 60)).accepted
            assert committed - before < 30, "what was on its way, and not what waited"
            await eventually(lambda n=before: committed > n, what="large bodies go on")  # type: ignore[misc]
        for sender in senders:
            sender.cancel()
        await asyncio.gather(*senders, return_exceptions=True)


async def test_mail_that_begins_while_streams_change_waits_for_the_next_one_ACC_07() -> None:
    fake = FakeQueue()
    async with client(fake) as queue:
        fake.opens.clear()
        fake.go_away.set()
        await eventually(lambda: fake.streams == 2, what="the next stream has no credit yet")
        assert queue.available, "MAIL and DATA are not put off"
        number, body, lost = upload(queue)
        assert body.send(bytes(CHUNK_SIZE))
        small, large = commit(queue, message()), commit(queue, message(id=number, body=None))
        dropped, unwanted, _ = upload(queue)
        unwanted.send(bytes(CHUNK_SIZE))
        unwanted.abort()
        fake.opens.set()
        assert (await small).accepted
        assert (await large).accepted
        assert not lost
        assert [len(one.body) for one in fake.stored if one.id == number] == [CHUNK_SIZE]
        assert dropped not in {*fake.aborted, *(one.id for one in fake.stored)}


async def test_mail_does_not_wait_long_for_a_stream_that_does_not_come_ACC_05(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailrail_ingress.queue_stream.PATIENCE", 0.5)
    fake = FakeQueue()
    async with client(fake) as queue:
        fake.opens.clear()
        fake.go_away.set()
        await eventually(lambda: fake.streams == 2, what="the next stream has no credit yet")
        if queue.available:
            _, body, lost = upload(queue)
            body.send(bytes(CHUNK_SIZE))
            whole, _, _ = upload(queue)
            answers = [commit(queue, message()), commit(queue, message(id=whole, body=None))]
            assert [str((await answer).refusal)[:9] for answer in answers] == ["451 4.3.0"] * 2
            await eventually(lambda: lost, what="the body is lost")
        await eventually(lambda: not queue.available, what="MAIL is put off")
        fake.opens.set()


async def test_that_no_queue_answers_is_said_once_with_its_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailrail_ingress.queue_stream.PATIENCE", 0.2)
    target = f"127.0.0.1:{free_port()},127.0.0.1:{free_port()}"
    settings = IngressSettings(plaintext=True, queue_target=target)
    with capture_logs() as logged:
        async with EnqueueClient(settings, HeldOctets(settings.held_octets), OpenTransactions()).running():
            await eventually(lambda: any(line["log_level"] == "warning" for line in logged), what=lambda: str(logged))
            tried = len(logged)
            await eventually(lambda: len(logged) > tried + 2, what="it is tried again")
    (warning,) = [line for line in logged if line["log_level"] == "warning"]
    assert warning["target"] == target
    assert "MAILRAIL_INGRESS_QUEUE_TARGET" in warning["event"]


async def test_a_commit_says_until_when_it_is_waited_for_by_the_databases_clock_ACC_04() -> None:
    fake = FakeQueue()
    fake.database_time = 5_000_000_000_000_000
    before = time.monotonic()
    async with client(fake, answer_timeout=100.0) as queue:
        assert (await commit(queue, message())).accepted
    passed = time.monotonic() - before
    assert 100 <= fake.valid_until[0] / 1e6 - 5_000_000_000 <= 100 + passed


async def test_a_commit_is_asked_after_also_when_our_certificate_cannot_be_read_just_then_ACC_04(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is barred by then: 451 would have the client send again what was stored."""
    fake = FakeQueue()
    channel, tries = rpc.channel, [0]

    def unreadable(*given: Any, **named: Any) -> Any:
        tries[0] += 1
        if tries[0] <= 3:
            raise BadSettings("cannot read the certificate")
        return channel(*given, **named)

    async with client(fake) as queue:
        fake.lose_answer = True
        monkeypatch.setattr(rpc, "channel", unreadable)
        assert (await commit(queue, message())).accepted
        assert tries[0] > 3


async def test_a_certificate_that_stays_unreadable_ends_the_wait_ACC_04(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*given: Any, **named: Any) -> Any:
        raise BadSettings("cannot read the certificate")

    monkeypatch.setattr("mailrail_ingress.queue_stream.SETTLING", 0.1)
    fake = FakeQueue()
    async with client(fake, answer_timeout=0.5) as queue:
        fake.lose_answer = True
        monkeypatch.setattr(rpc, "channel", unreadable)
        assert str((await commit(queue, message())).refusal).startswith("451 4.3.0")


async def test_a_queue_that_holds_its_answer_back_is_asked_for_it_in_time_ACC_04() -> None:
    fake = FakeQueue()
    async with client(fake, answer_timeout=0.5) as queue:
        fake.answers.clear()
        answer = await commit(queue, message())
        assert answer.accepted
        assert fake.asked == [fake.stored[0].id]
        fake.answers.set()


async def test_a_queue_that_stood_still_stores_nothing_that_was_answered_451_meanwhile_ACC_04(database: str) -> None:
    port = free_port()
    command = [sys.executable, "-m", "testkit.queue_process", database, "queue-a", str(port), "60", "30"]
    made = IngressSettings(plaintext=True, queue_target=f"127.0.0.1:{port}", stop_grace=0.1, answer_timeout=2.0)
    with Program(command, name="queue", env={"PYTHONPATH": str(TESTS)}) as program:
        program.wait_for_line("serving", 60)
        async with EnqueueClient(made, HeldOctets(made.held_octets), OpenTransactions()).running() as queue:
            await eventually(lambda: queue.available, what="a stream is open")
            assert (await commit(queue, message())).accepted
            os.kill(program.pid, signal.SIGSTOP)
            answers = []
            for _ in range(40):
                answers.append(commit(queue, message()))
                await asyncio.sleep(0.01)  # each in a request of its own
            assert [(await answer).accepted for answer in answers] == [False] * 40
            os.kill(program.pid, signal.SIGCONT)
            async with asyncio.timeout(60):  # it takes mail again, and has read all that came before
                while not (await commit(queue, message())).accepted:
                    await asyncio.sleep(0.1)
    assert (await sql(database, "SELECT count(*) FROM message WHERE NOT barred"))[0][0] == 2
