"""The ordinary next hop: a sink (`mailrail.sink`) that serves from its construction on, beside a plain test.

It counts thousands of messages and refuses recipients as it is told; what breaks the protocol is `testkit.smtp_peer`.
In a coroutine `mailrail.sink.Sink` serves in the test's own loop.
"""

from typing import Any

from mailrail.sink import Options, Sink, SinkMessage

from testkit.background import Served, background
from testkit.conditions import wait_until
from testkit.ports import loopback_address


class NextHop(Served):
    """See the module. Use as a context manager, or call `close()`."""

    def __init__(
        self, *, hostname: str = "hop.test", address: str | None = None, port: int = 0, **options: Any
    ) -> None:
        """Serve at a fresh 127.x.y.z and a port that the system gives; `options` are `mailrail.sink.Options`."""
        self.hostname = hostname
        self.sink = Sink(Options(hostname=hostname, **options), host=address or loopback_address(), port=port)
        background().call(self.sink.start())
        self.address, self.port = self.sink.host, self.sink.port
        self.answers = self.sink.answers

    @property
    def messages(self) -> list[SinkMessage]:
        """What came so far, in order."""
        return list(self.sink.messages)

    @property
    def connections(self) -> int:
        """How many clients have connected so far."""
        return self.sink.connections

    def __len__(self) -> int:
        return len(self.sink.messages)

    def attempts(self, recipient: str) -> int:
        """How often RCPT was tried for this recipient, refusals included."""
        return self.answers.asked("RCPT", recipient)

    def refuse(self, recipient: str, reply: str, times: int | None = None) -> None:
        """Answer RCPT for `recipient` (or for `@domain`) with `reply`, the next so many times or from now on."""
        self.answers.give("RCPT", reply, to=recipient, times=times)

    def accept(self, recipient: str) -> None:
        """Undo `refuse`."""
        self.answers.withdraw("RCPT", to=recipient)

    def received(self, recipient: str) -> list[SinkMessage]:
        """What came for one recipient."""
        return [message for message in self.messages if recipient in message.recipients]

    def wait_for(self, count: int, within: float = 60.0) -> list[SinkMessage]:
        """Wait until at least so many messages came; answers all of them."""
        wait_until(lambda: len(self) >= count, within, lambda: f"{count} messages at {self.hostname}, {len(self)} came")
        return self.messages

    def wait_for_recipient(self, recipient: str, within: float = 60.0) -> SinkMessage:
        """Wait until a message for this recipient came; answers the first."""
        return wait_until(
            lambda: next(iter(self.received(recipient)), None),
            within,
            lambda: f"a message for {recipient} at {self.hostname}; RCPT was tried {self.attempts(recipient)} times",
        )

    async def _close(self) -> None:
        await self.sink.close()
