"""One recipient, message or text that cannot be written or read costs itself alone (ACC-03, SHD-03)."""

from mailrail.pb.queue.v1 import types_pb2

from testkit.conditions import eventually
from testkit.queue import result_of, running_queue

FAILED = types_pb2.OUTCOME_FAILED


async def test_a_reply_that_no_text_of_postgres_holds_ends_its_recipient_like_any_other_FIN_01(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        outbound.answer = lambda delivery: result_of(delivery, FAILED, text="no such\0user")
        await (await q.ingress()).accept("bob@away.example", mail_from="")
        await eventually(lambda: outbound.committed)
        (last,) = (bytes(row[0]) for row in await q.sql("SELECT last FROM history"))
        assert types_pb2.Attempt.FromString(last).reply.lines == ["no such\0user"]
        assert await q.sql("SELECT note FROM mailbox_message") == [
            (r"could not be delivered to bob@away.example: 550 5.1.1 no such\x00user",)
        ]
