"""Sending what waits in the queue folder (SML-08): oldest first, one process at a time, each message with its backoff.

An attempt is written down before it is made, so a crash in the middle waits like any failure. After five days, or a
refusal, a message moves to `failed`, and whoever sent it gets a notice: the caller was told 0 long ago.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from email.utils import formataddr
from typing import Final

from mailrail.core.message.header import date
from mailrail.core.smtp.address import Address, AddressError, parse_address
from mailrail.sendmail.dialogue import NoSuchHost, SessionBroken, SubmissionClient
from mailrail.sendmail.folder import BadEnvelope, KeptEnvelope, KeptRecipient, QueueFolder
from mailrail.sendmail.outcome import Fate, RecipientFate, fate_of
from mailrail.sendmail.settings import SubmissionSettings
from mailrail.sendmail.status import ExitStatus, Stop

LIFETIME: Final = 5 * 86_400.0
"""Seconds after which a message that could not be sent fails (SML-08, RFC 5321 4.5.4.1)."""
FIRST_DELAY: Final = 300.0
LONGEST_DELAY: Final = 4 * 3600.0
_BEAT_SECONDS: Final = 600.0
"""At least so often a process that stays says that it is there."""
_HEADER_IN_NOTICE: Final = 16 * 1024
_REPLIES_IN_NOTICE: Final = 100

Say = Callable[[str], None]


def delay_after(attempts: int) -> float:
    """Seconds until the next attempt after so many: 5 minutes, then twice as long each time, at most 4 hours."""
    return float(min(FIRST_DELAY * 2 ** min(max(attempts, 1) - 1, 20), LONGEST_DELAY))


def flush(
    folder: QueueFolder, settings: SubmissionSettings, hello: str, say: Say, *, all_now: bool, trace: Say | None = None
) -> ExitStatus:
    """One pass. `all_now`: somebody asked for it by hand, and wants no backoff. Raises Stop, OSError."""
    with folder.locked() as got:
        if not got:
            say(f"another process sends what waits in {folder.path}")
            return ExitStatus.OK
        folder.sweep(time.time())
        return _Pass(folder, settings, hello, say, all_now, trace).run()


def stay(
    folder: QueueFolder,
    settings: SubmissionSettings,
    hello: str,
    say: Say,
    every: float,
    *,
    sleep: Callable[[float], None] = time.sleep,
    rounds: int | None = None,
) -> None:
    """A pass every so many seconds, until the process is ended. `rounds`: passes, for tests."""
    while rounds is None or rounds > 0:
        rounds = None if rounds is None else rounds - 1
        folder.beat()
        try:
            flush(folder, settings, hello, say, all_now=False)
        except (Stop, OSError) as error:
            say(str(error))  # such as a password file that is being replaced: the next pass may do
        left = every
        while left > 0:
            folder.beat()
            part = min(left, _BEAT_SECONDS)
            sleep(part)
            left -= part


class _Pass:
    """One pass over what waits, on one connection as long as it lasts."""

    def __init__(
        self,
        folder: QueueFolder,
        settings: SubmissionSettings,
        hello: str,
        say: Say,
        all_now: bool,
        trace: Say | None,
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._hello = hello
        self._say = say
        self._all_now = all_now
        self._trace = trace
        self._connection: SubmissionClient | None = None
        self._useless: RecipientFate | None = None  # what keeps the server from being used for any message

    def run(self) -> ExitStatus:
        """Returns TRY_AGAIN where the server could not be used."""
        try:
            for id in self._folder.ids(self._folder.waiting):
                try:
                    self._one(self._folder.read(id, self._folder.waiting))
                except FileNotFoundError:
                    continue
                except BadEnvelope as error:
                    self._say(f"{error}: look at it in {self._folder.waiting}")
        finally:
            if self._connection is not None:
                self._connection.close()
        return ExitStatus.OK if self._useless is None else ExitStatus.TRY_AGAIN

    def _one(self, envelope: KeptEnvelope) -> None:
        now = time.time()
        expired = now - envelope.created > LIFETIME
        if self._useless is not None:
            # The server cannot be used: no other message is tried, yet the time of some is over.
            if expired:
                self._conclude(envelope, [self._useless] * len(envelope.recipients), expired)
            return
        if not expired and not self._all_now and now < envelope.next_try:
            return
        # Written before the attempt: a crash in it, or by it, must not make a loop without a pause.
        envelope.attempts += 1
        envelope.next_try = now + delay_after(envelope.attempts)
        self._folder.update(envelope)
        self._conclude(envelope, self._attempt(envelope), expired)

    def _attempt(self, envelope: KeptEnvelope) -> list[RecipientFate]:
        count = len(envelope.recipients)
        deadline = time.monotonic() + self._settings.total_seconds
        with self._folder.open(envelope.id, self._folder.waiting) as message:
            try:
                if self._connection is None or not self._connection.usable:
                    self._connect(deadline)
                assert self._connection is not None
                self._connection.extend(deadline)
                return [fate_of(each) for each in self._connection.send(envelope, message).answers]
            except NoSuchHost as error:
                # The name server may be wrong for an hour; the caller was told that this will be sent.
                self._useless = RecipientFate(Fate.LATER, ExitStatus.TRY_AGAIN, str(error))
            except SessionBroken as error:
                self._useless = replace(fate_of(error.answer), fate=Fate.LATER)
        self._say(self._useless.text)
        return [self._useless] * count

    def _connect(self, deadline: float) -> None:
        if self._connection is not None:
            self._connection.close()
        connection = SubmissionClient(self._settings, hello=self._hello, deadline=deadline, trace=self._trace)
        self._connection = connection
        connection.open()

    def _conclude(self, envelope: KeptEnvelope, fates: list[RecipientFate], expired: bool) -> None:
        waiting: list[KeptRecipient] = []
        lost: list[KeptRecipient] = []
        for recipient, one in zip(envelope.recipients, fates, strict=True):
            if one.fate is Fate.SENT:
                continue
            recipient.reply = one.text
            later = one.fate is Fate.LATER or one.status is ExitStatus.PROTOCOL
            (waiting if later and not expired else lost).append(recipient)
        if lost:
            self._tell(envelope, lost)
            failed = replace(envelope, recipients=lost)
            remains = replace(envelope, recipients=waiting) if waiting else None
            path = self._folder.fail(failed, remains=remains)
            for recipient in lost:
                self._say(f"{recipient.address}: {recipient.reply}; kept as {path}")
        elif waiting:
            self._folder.update(replace(envelope, recipients=waiting))
        else:
            self._folder.remove(envelope.id)

    def _tell(self, envelope: KeptEnvelope, lost: list[KeptRecipient]) -> None:
        """Put a notice into the folder, once for each message however often this is tried."""
        if envelope.notice or not (envelope.sender or self._settings.author):
            return
        to = self._settings.author or _address(envelope.sender)
        if to is None:
            return
        id = f"{envelope.id}-notice"
        header = b""
        with contextlib.suppress(OSError), self._folder.open(envelope.id, self._folder.waiting) as message:
            header = message.read(_HEADER_IN_NOTICE).partition(b"\r\n\r\n")[0]
        text = notice(to, lost, header, now=time.time(), id=id, kept=str(self._folder.failed / f"{envelope.id}.eml"))
        about = KeptEnvelope(
            id, time.time(), "", [KeptRecipient(str(to))], notice=True, size=len(text), eight_bit=not text.isascii()
        )
        self._folder.put(about, text)


def _address(text: str) -> Address | None:
    try:
        return parse_address(text)
    except AddressError:
        return None


def notice(to: Address, lost: list[KeptRecipient], header: bytes, *, now: float, id: str, kept: str) -> bytes:
    """The mail that says which recipients did not get a message, and why."""
    lines = [
        f"From: {formataddr(('Mail Delivery', str(to))) if str(to).isascii() else to}",
        f"To: {to}",
        "Subject: Mail could not be sent",
        f"Date: {date(now)}",
        f"Message-ID: <{id}@{to.domain if not to.is_literal else 'localhost'}>",
        "Auto-Submitted: auto-replied",
        "MIME-Version: 1.0",
        "Content-Type: text/plain; charset=utf-8",
        "Content-Transfer-Encoding: 8bit",
        "",
        "A message that was handed to sendmail on this machine could not be sent to:",
        "",
    ]
    for each in lost[:_REPLIES_IN_NOTICE]:
        lines += [f"  {each.address}", f"    {each.reply[:800]}"]
    if len(lost) > _REPLIES_IN_NOTICE:
        lines.append(f"  and {len(lost) - _REPLIES_IN_NOTICE} more")
    lines += ["", f"It is kept as {kept}", "and is not tried again by itself.", ""]
    if header:
        lines += ["Its header:", ""]
        lines += [f"  {line[:900]}" for line in header.decode("utf-8", "replace").split("\r\n")]
    return "\r\n".join(lines).encode("utf-8", "replace") + b"\r\n"
