"""The client of the queue alone, in this process: a real stream to a queue that the test kit plays."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mailrail.core.config.revision import ObjectRef
from mailrail.core.smtp.parameters import NO_MAIL_PARAMETERS
from mailrail_ingress.budget import Budget
from mailrail_ingress.clients import QueueClient
from mailrail_ingress.ports import FRAME_LIMIT, Answer, Message, Origin, Provenance, Recipient, Upload
from mailrail_ingress.reception import MessageIds
from mailrail_ingress.settings import IngressSettings

from testkit.conditions import eventually
from testkit.ingress import FakeQueue

PROVENANCE = Provenance(Origin.MX, ObjectRef("MailGateway", "mail", "main"), None, "127.0.0.1", "client.example", 1)
IDS = MessageIds()


def message(*, id: bytes = b"", body: bytes | None = b"A: b\r\n\r\nx\r\n") -> Message:
    return Message(
        id=id or IDS.new(time.time()),
        provenance=PROVENANCE,
        sender=None,
        parameters=NO_MAIL_PARAMETERS,
        auth=None,
        message_id=None,
        subject=None,
        received=time.time(),
        eight_bit=False,
        recipients=[Recipient("ada@home.example", "ada@home.example", (), None, False, None, None, "")],
        prefix=b"Received: x\r\n",
        body=body,
        size=13 + len(body or b""),
    )


class Sender:
    """A client that uploads as fast as it may, without end."""

    def __init__(self, queue: QueueClient) -> None:
        self.id = os.urandom(16)
        self.lost = False
        self._upload: Upload = queue.upload(self.id, self.send, self._gone)
        self.send()

    def send(self) -> None:
        while not self.lost and self._upload.send(bytes(FRAME_LIMIT)):
            pass

    def _gone(self) -> None:
        self.lost = True


@asynccontextmanager
async def client(fake: FakeQueue, **settings: Any) -> AsyncIterator[QueueClient]:
    """A client with its stream open to the queue, which ends with it."""
    if not fake.port:
        await fake.serve()
    made = IngressSettings(plaintext=True, queue_target=f"127.0.0.1:{fake.port}", stop_grace=0.1, **settings)
    try:
        async with QueueClient(made, Budget(made.held_octets)).running() as queue:
            await eventually(lambda: queue.available, what="a stream is open")
            yield queue
    finally:
        await fake.stop()


def commit(queue: QueueClient, what: Message) -> "asyncio.Future[Answer]":
    """Hand a message over; its answer."""
    answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
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
