"""A small SMTP or LMTP server that takes mail, remembers it, and answers as it is told.

    async with Sink(Options(lmtp=True)) as sink:
        sink.answers.give("RCPT", "550 5.1.1 no such user", to="nobody@example.org")
        ...  # deliver to sink.host, sink.port
        assert sink.messages[0].recipients == ("b@example.org",)

It is the next hop of our tests, and an opinion that is not ours: commands, addresses, content and AUTH are read by
aiosmtpd, and nothing here imports Mailrail's own SMTP code. It keeps all mail in memory, or hands
it to `receive`, and gives none away. `mailrail sink` is the same server as a command: `rules` reads what people order,
and `keeping` writes what comes.

What aiosmtpd does not know is added in `session`: the DSN parameters of RFC 3461, AUTH= of MAIL (RFC 4954), and one
reply for each recipient at the end of LMTP content (RFC 2033 4.2). CHUNKING and BINARYMIME are not offered. A server
that breaks the protocol is not to be had here: aiosmtpd keeps to it.
"""

from mailrail.sink.answers import CLOSE, Answers, Step
from mailrail.sink.message import CannotKeep, SinkMessage
from mailrail.sink.options import Options
from mailrail.sink.server import Sink

__all__ = ["CLOSE", "Answers", "CannotKeep", "Options", "Sink", "SinkMessage", "Step"]
