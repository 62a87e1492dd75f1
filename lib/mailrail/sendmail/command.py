"""`mailrail-sendmail` as a whole: what one call reads, does, says and returns.

A message is written into the queue folder as it comes, then handed to the server. What the server did not take stays
there: in `queue` and with status 0 only if somebody will surely send it, else in `failed` with a status that tells the
caller (SML-06, SML-07). Whatever goes wrong after the message was read, it is not thrown away.

What is needed only after the message was read is loaded then: whoever writes it waits for our start (SML-11b).
"""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, Final

from mailrail.core.smtp.address import Address
from mailrail.sendmail.addresses import read_recipients, resolve
from mailrail.sendmail.flags import HELP, REQUIRED, WAIVED, Invocation, SendmailMode, read_flags, usage
from mailrail.sendmail.folder import BadEnvelope, KeptEnvelope, KeptRecipient, QueueFolder, new_id
from mailrail.sendmail.message import HeaderWishes, MessageFacts, pieces_of, read_message
from mailrail.sendmail.senders import hello_name, senders_of
from mailrail.sendmail.settings import (
    Password,
    SubmissionSettings,
    SubmissionTls,
    Surroundings,
    check_server,
    load,
    read_password,
    wrong,
)
from mailrail.sendmail.status import ExitStatus, Stop

if TYPE_CHECKING:
    from mailrail.core.smtp.parameters import RcptParameters
    from mailrail.sendmail.outcome import RecipientFate

NAMES: Final = ("sendmail", "mailq", "newaliases")
"""What the command is linked as."""


class _Ended(BaseException):
    """Somebody ended the process in the middle."""


@dataclass(frozen=True, slots=True)
class _Caller:
    """Who calls, and how to answer."""

    around: Surroundings
    user: str
    host: str
    full_name: str
    quiet: bool = False

    def say(self, text: str) -> None:
        """A line on standard error. Nobody may be reading there; that changes nothing of what became of the message."""
        if self.quiet:
            return
        with contextlib.suppress(OSError, ValueError, AttributeError):
            print(f"sendmail: {text}", file=sys.stderr, flush=True)


def run(words: Sequence[str], *, called: str) -> int:
    """One call. Never raises."""
    _speak_any_locale()
    caller = _Caller(surroundings(), "", "", "")
    try:
        call = read_flags(_decoded(words), called=_name(called))
        caller = _caller(caller.around, call.quiet)
        status = _do(call, caller)
        return _said(caller) or int(status)
    except Stop as stop:
        caller.say(str(stop))
        return int(stop.status)
    except BrokenPipeError:
        _drop_output()
        return int(ExitStatus.IO)
    except OSError as error:
        caller.say(f"reading or writing failed: {error}")
        return int(ExitStatus.IO)
    except (KeyboardInterrupt, _Ended):
        caller.say("ended before the message was sent")
        return int(ExitStatus.TRY_AGAIN)
    except Exception as error:
        caller.say(f"a mistake of this program: {type(error).__name__}: {error}. Please report it")
        return int(ExitStatus.SOFTWARE)


def _do(call: Invocation, caller: _Caller) -> ExitStatus:
    match call.mode:
        case SendmailMode.HELP:
            print(HELP, end="")
            return ExitStatus.OK
        case SendmailMode.VERSION:
            from importlib.metadata import version

            print(f"mailrail sendmail {version('mailrail')}")
            return ExitStatus.OK
        case SendmailMode.ALIASES:
            print("sendmail: aliases are in the configuration file; there is nothing to rebuild")
            return ExitStatus.OK
        case SendmailMode.INSTALL:
            return _install(Path(call.install or ""))
        case _:
            pass
    settings = _settings(call, caller.around)
    folder = QueueFolder(settings.queue)
    match call.mode:
        case SendmailMode.LIST:
            return _list(folder)
        case SendmailMode.FLUSH | SendmailMode.STAY:
            return _flush(call, caller, settings, folder)
        case SendmailMode.SMTP:
            from mailrail.sendmail.smtp_input import converse

            return converse(Submitter(call, caller, settings, folder), caller.host)
        case _:
            return _submit(call, caller, settings, folder)


def _settings(call: Invocation, around: Surroundings) -> SubmissionSettings:
    if around.setgid:
        # SML-10: nobody but the administrator decides what is read with the rights of the group.
        if call.privileged:
            raise usage(f"{call.privileged} is refused where sendmail is installed setgid: leave it out")
        if not sys.flags.isolated:
            raise wrong("installed setgid, sendmail must be run by `python -I`: else the caller chooses what it loads")
        os.environ.clear()
        os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
    settings = load(call.config, around)
    if around.setgid:
        if settings.password.file:
            settings = replace(settings, password=Password(text=read_password(settings.password, settings.source)))
        _drop_group()
    requirement = call.tls_requirement
    if requirement is not None:
        if requirement == REQUIRED and settings.tls is SubmissionTls.NONE:
            raise wrong(f"--tls-requirement required: {settings.source} says tls = none; write starttls or implicit")
        settings = replace(settings, tls_requirement=requirement)
    return settings


# --- a message --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Spool:
    """Where a message is written as it comes: the queue folder, or where that cannot be used a nameless file."""

    id: str
    file: IO[bytes]
    trouble: Stop | None
    """Why the queue folder cannot be used."""


class Submitter:
    """Takes messages and hands them over, one after the other."""

    def __init__(self, call: Invocation, caller: _Caller, settings: SubmissionSettings, folder: QueueFolder) -> None:
        self.call = call
        self.settings = settings
        self._caller = caller
        self._folder = folder
        self.said: list[str] = []
        """What the caller was told."""

    def say(self, text: str) -> None:
        """Tell the caller."""
        self.said.append(text)
        self._caller.say(text)

    def again(self, call: Invocation, settings: SubmissionSettings) -> "Submitter":
        """The same for another message, with what holds for it."""
        return Submitter(call, self._caller, settings, self._folder)

    def submit(
        self,
        pieces: Iterator[bytes],
        wanted: Sequence[Address],
        *,
        terminal: bool = False,
        parameters: "Mapping[Address, RcptParameters] | None" = None,
    ) -> ExitStatus:
        """One message, for these recipients and, with -t, those of its header. `parameters`: what RCPT said of some.
        Raises Stop where nothing of it was kept or sent, or where it is kept and the text says so."""
        check_server(self.settings)
        now = time.time()
        spool = self._spool(now)
        try:
            try:
                envelope = self._take(spool, pieces, wanted, now, terminal, parameters or {})
            except OSError as error:
                raise _unkept_while_read(spool, error) from error
        except BaseException:
            self._drop(spool)
            raise
        try:
            fates = self._attempt(envelope, spool)
        except Stop as stop:
            path = self._keep_failed(spool, envelope, str(stop))
            raise Stop(stop.status, f"{stop}. {path}") from stop
        except (KeyboardInterrupt, _Ended):
            path = self._keep_failed(spool, envelope, "ended while the message was being sent")
            raise Stop(ExitStatus.TRY_AGAIN, f"ended while the message was being sent. {path}") from None
        except Exception as error:
            path = self._keep_failed(spool, envelope, f"{type(error).__name__}: {error}")
            text = f"a mistake of this program: {type(error).__name__}: {error}. Please report it. {path}"
            raise Stop(ExitStatus.SOFTWARE, text) from error
        with _undisturbed():
            return self._conclude(spool, envelope, fates)

    def _spool(self, now: float) -> _Spool:
        id = new_id(now, os.urandom(8))
        try:
            self._folder.make()
            return _Spool(id, self._folder.create(id), None)
        except Stop as stop:
            trouble = stop
        except OSError as error:
            trouble = Stop(
                ExitStatus.CANNOT_KEEP,
                f"the queue folder {self._folder.path} cannot be used: {error.strerror or error}. Give this user the"
                " right to, or name another one with `queue` in the configuration",
            )
        import tempfile

        return _Spool(id, tempfile.TemporaryFile(), trouble)

    def _drop(self, spool: _Spool) -> None:
        with contextlib.suppress(OSError):
            spool.file.close()
        self._folder.discard(spool.id)

    def _take(
        self,
        spool: _Spool,
        pieces: Iterator[bytes],
        wanted: Sequence[Address],
        now: float,
        terminal: bool,
        parameters: "Mapping[Address, RcptParameters]",
    ) -> KeptEnvelope:
        """Read the message into its file, and make its envelope. Raises Stop, OSError."""
        call, settings, caller = self.call, self.settings, self._caller
        senders = senders_of(call.sender, settings, user=caller.user, host=caller.host)
        wishes = HeaderWishes(
            author=senders.author,
            replacement=senders.replacement,
            full_name=call.full_name if call.full_name is not None else caller.full_name,
            rewrite_from=settings.rewrite_from,
            default_domain=settings.default_domain,
            message_id=f"<{spool.id}@{'localhost' if senders.author.is_literal else senders.author.domain}>",
            now=now,
            recipients=call.from_header,
            waive_tls=settings.tls_requirement == WAIVED,
            local_domains=frozenset({"localhost", "localhost.localdomain"}),
        )
        facts = read_message(
            pieces,
            spool.file.write,
            wishes,
            dot_is_text=call.dot_is_text,
            terminal=terminal,
            limit=settings.input_limit,
        )
        spool.file.flush()
        recipients = resolve(
            [*wanted, *facts.recipients], settings.aliases, settings.default_destination, settings.default_domain
        )
        if not recipients:
            raise usage("there is no recipient: name some as arguments, or in To, Cc or Bcc together with -t")
        kept = [_recipient(each, parameters.get(each), call) for each in recipients]
        return _envelope(spool.id, now, senders.envelope, kept, facts, call, settings)

    def _attempt(self, envelope: KeptEnvelope, spool: _Spool) -> "list[RecipientFate]":
        from mailrail.sendmail.dialogue import NoSuchHost, SessionBroken, SubmissionClient
        from mailrail.sendmail.outcome import Fate, RecipientFate, fate_of

        count = len(envelope.recipients)
        trace = self._caller.say if self.call.verbose else None
        try:
            with SubmissionClient(
                self.settings,
                hello=hello_name(self.settings, self._caller.host),
                deadline=time.monotonic() + self.settings.total_seconds,
                trace=trace,
            ) as connection:
                connection.open()
                return [fate_of(answer) for answer in connection.send(envelope, spool.file).answers]
        except NoSuchHost as error:
            return [RecipientFate(Fate.REFUSED, ExitStatus.NO_HOST, str(error))] * count
        except SessionBroken as error:
            return [fate_of(error.answer)] * count

    def _conclude(self, spool: _Spool, envelope: KeptEnvelope, fates: "list[RecipientFate]") -> ExitStatus:
        """Keep what was not sent, and tell the caller. Raises Stop where it cannot be kept."""
        from mailrail.sendmail.outcome import Fate, worst

        waiting: list[KeptRecipient] = []
        failed: list[KeptRecipient] = []
        flushed = spool.trouble is None and self._folder.is_flushed(time.time())
        for recipient, one in zip(envelope.recipients, fates, strict=True):
            recipient.reply = one.text
            if one.fate is Fate.LATER and flushed:
                waiting.append(recipient)
            elif one.fate is not Fate.SENT:
                failed.append(recipient)
        if not waiting and not failed:
            self._drop(spool)
            return ExitStatus.OK
        told = {one.text for one in fates}
        if len(told) == 1 and failed:
            self.say(f"not sent: {told.pop()}")
        else:
            for recipient in failed:
                self.say(f"{recipient.address}: {recipient.reply}")
        parts = []
        if failed:
            parts.append((replace(envelope, recipients=failed, attempts=1), self._folder.failed))
        if waiting:
            from mailrail.sendmail.flush import delay_after

            next_try = time.time() + delay_after(1)
            later = replace(envelope, recipients=waiting, attempts=1, next_try=next_try)
            parts.append((later, self._folder.waiting))
        some_later = any(one.fate is Fate.LATER for one in fates)
        try:
            if spool.trouble is not None:
                raise spool.trouble
            self._folder.keep(spool.file, *parts)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._folder.remove(spool.id)  # the caller hears that it was not kept, and may repeat it
            self._drop(spool)
            text = f"the message cannot be kept in {self._folder.path}: {error.strerror or error}"
            raise Stop(ExitStatus.CANNOT_KEEP if some_later else worst(fates), text) from error
        except Stop as stop:
            self._drop(spool)
            raise Stop(
                ExitStatus.CANNOT_KEEP if some_later else worst(fates), f"the message is not kept: {stop}"
            ) from stop
        if not failed:
            return ExitStatus.OK
        self.say(_kept(self._folder, spool.id))
        return worst([one for one in fates if one.fate is Fate.REFUSED or (one.fate is Fate.LATER and not flushed)])

    def _keep_failed(self, spool: _Spool, envelope: KeptEnvelope, why: str) -> str:
        """Keep the whole message in `failed`; what to tell of it."""
        for recipient in envelope.recipients:
            recipient.reply = why
        try:
            if spool.trouble is not None:
                raise spool.trouble
            self._folder.keep(spool.file, (envelope, self._folder.failed))
        except (OSError, Stop) as error:
            self._drop(spool)
            return f"The message is not kept: {error}"
        return _kept(self._folder, spool.id)


def _kept(folder: QueueFolder, id: str) -> str:
    return (
        f"The message is kept as {folder.message_path(id, folder.failed)} and is not sent again by itself: mend what is"
        " wrong, then send it with `sendmail -i RECIPIENT < FILE`"
    )


def _unkept_while_read(spool: _Spool, error: OSError) -> Stop:
    """What failed while a message was read into its file: the disk, or the input."""
    import errno

    full = (errno.ENOSPC, errno.EDQUOT) if hasattr(errno, "EDQUOT") else (errno.ENOSPC,)
    if error.errno in (*full, errno.EFBIG, errno.EROFS):
        return Stop(ExitStatus.CANNOT_KEEP, f"the message cannot be written: {error.strerror}. Nothing was sent")
    if error.errno in (errno.EISDIR, errno.EBADF):
        return Stop(ExitStatus.NO_INPUT, f"standard input cannot be read: {error.strerror}. Nothing was sent")
    return Stop(ExitStatus.IO, f"reading the message failed: {error.strerror or error}. Nothing was sent")


def _recipient(address: Address, given: "RcptParameters | None", call: Invocation) -> KeptRecipient:
    notify = given.notify if given is not None and given.notify else call.notify
    return KeptRecipient(str(address), notify=list(notify), orcpt=given.orcpt if given is not None else None)


def _envelope(
    id: str,
    now: float,
    sender: str,
    recipients: list[KeptRecipient],
    facts: MessageFacts,
    call: Invocation,
    settings: SubmissionSettings,
) -> KeptEnvelope:
    return KeptEnvelope(
        id=id,
        created=now,
        sender=sender,
        recipients=recipients,
        ret=call.ret,
        envid=call.envid,
        body=str(call.body) if call.body is not None and not facts.eight_bit else None,
        require_tls=settings.tls_requirement == REQUIRED,
        size=facts.size,
        eight_bit=facts.eight_bit,
        header_utf8=facts.header_utf8,
        nul=facts.nul,
        longest=facts.longest,
        signed=facts.signed,
    )


def _submit(call: Invocation, caller: _Caller, settings: SubmissionSettings, folder: QueueFolder) -> ExitStatus:
    wanted = [each for word in call.recipients for each in read_recipients(word)]
    if not wanted and not call.from_header:
        raise usage("there is no recipient: name some as arguments, or use -t for those of the header")
    # Before the message is read, which may take hours: what is known to fail fails now.
    resolve(wanted, settings.aliases, settings.default_destination, settings.default_domain)
    with _told_to_end():
        file, terminal = _input()
        return Submitter(call, caller, settings, folder).submit(pieces_of(file), wanted, terminal=terminal)


def _input() -> tuple[BinaryIO, bool]:
    if sys.stdin is None:
        raise Stop(ExitStatus.NO_INPUT, "standard input is closed: give the message there")
    return sys.stdin.buffer, sys.stdin.isatty()


@contextlib.contextmanager
def _told_to_end() -> Iterator[None]:
    """While a message is under way SIGTERM ends it in order: it is kept, and the caller told."""

    def end(*_: object) -> None:
        raise _Ended

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """While what became of a message is written down, nobody ends the process in order: it takes milliseconds."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- the folder -------------------------------------------------------------------------------------------------------


def _flush(call: Invocation, caller: _Caller, settings: SubmissionSettings, folder: QueueFolder) -> ExitStatus:
    from mailrail.sendmail.flush import flush, stay

    check_server(settings)
    try:
        folder.make()
        hello = hello_name(settings, caller.host)
        if call.mode is SendmailMode.STAY:
            stay(folder, settings, hello, caller.say, call.every)
        if call.heartbeat:
            folder.beat()
        trace = caller.say if call.verbose else None
        return flush(folder, settings, hello, caller.say, all_now=not call.heartbeat, trace=trace)
    except OSError as error:
        raise Stop(
            ExitStatus.IO, f"the queue folder {folder.path} cannot be used: {error.strerror or error}"
        ) from error


def _list(folder: QueueFolder) -> ExitStatus:
    """What waits and what failed, oldest first (-bp, mailq)."""
    if folder.path.exists():
        folder.check()
    count = 0
    for where, word in ((folder.waiting, "waiting"), (folder.failed, "failed")):
        for id in folder.ids(where):
            count += 1
            try:
                envelope = folder.read(id, where)
            except FileNotFoundError:
                continue
            except BadEnvelope as error:
                print(f"{id} {word}: {error}")
                continue
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(max(0.0, min(envelope.created, 4e9))))
            print(f"{id} {word} {envelope.size:>8} {when} {_clean(envelope.sender) or '<>'}")
            for recipient in envelope.recipients:
                print(f"    {_clean(recipient.address)}")
                if recipient.reply:
                    print(f"        ({_clean(recipient.reply)})")
    if not count:
        print("The queue is empty")
    return ExitStatus.OK


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:1000])


def _install(target: Path) -> ExitStatus:
    """Link the command under the names that others call. What is there and not ours stays."""
    program = Path(sys.executable).parent / (
        "mailrail-sendmail.exe" if sys.platform == "win32" else "mailrail-sendmail"
    )
    if not program.is_file():
        raise Stop(ExitStatus.CONFIG, f"{program} is not there: install Mailrail into this Python first")
    if not target.is_dir():
        raise usage(f"--install {target}: there is no such folder; make it, or name another")
    links = [target / (name + program.suffix) for name in NAMES]
    for link in links:
        if (link.exists() or link.is_symlink()) and not _is_ours(link, program):
            raise Stop(ExitStatus.CANNOT_KEEP, f"{link} is there already: remove it first, or name another folder")
    for link in links:
        if _is_ours(link, program):
            continue
        try:
            link.symlink_to(program)
        except OSError as error:
            if sys.platform != "win32":
                raise Stop(ExitStatus.CANNOT_KEEP, f"{link} cannot be made: {error.strerror or error}") from error
            import shutil

            shutil.copy2(program, link)  # Windows lets few users make links
        print(f"{link} -> {program}")
    return ExitStatus.OK


def _is_ours(link: Path, program: Path) -> bool:
    try:
        return link.samefile(program)
    except OSError:
        return False


# --- the process ------------------------------------------------------------------------------------------------------


def surroundings() -> Surroundings:
    """What of this process decides where settings are looked for."""
    if sys.platform == "win32":
        return Surroundings(os.environ, Path.home(), superuser=False)
    setgid = is_setgid()
    home = _home() if setgid else Path(os.environ.get("HOME") or _home())
    return Surroundings(os.environ, home, superuser=os.geteuid() == 0, setgid=setgid)


def is_setgid() -> bool:
    """Whether this process has a group that its caller has not (SML-10)."""
    return sys.platform != "win32" and os.getegid() != os.getgid()


def _drop_group() -> None:
    if sys.platform != "win32":
        group = os.getgid()
        if hasattr(os, "setresgid"):
            os.setresgid(group, group, group)
        else:
            os.setregid(group, group)
        if os.getegid() != group:
            raise Stop(ExitStatus.SOFTWARE, "the rights of the group could not be given up")


def _home() -> Path:
    if sys.platform == "win32":
        return Path.home()
    import pwd

    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return Path("/nonexistent")


def _caller(around: Surroundings, quiet: bool) -> _Caller:
    if sys.platform == "win32":
        user = os.environ.get("USERNAME", "")
    else:
        import pwd

        try:
            user = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            user = str(os.getuid())
    full_name = "" if around.setgid else os.environ.get("NAME", "")
    return _Caller(around, user, socket.gethostname(), full_name, quiet)


def _name(called: str) -> str:
    """What the command was called as: `mailq` for /usr/bin/mailq."""
    return Path(called).name.lower().removesuffix(".exe").removesuffix(".py")


def _decoded(words: Sequence[str]) -> list[str]:
    """The arguments as UTF-8 where the locale knows none: octets came as surrogates (PEP 383)."""
    try:
        return [word.encode("utf-8", "surrogateescape").decode() for word in words]
    except UnicodeError:
        raise usage("an argument is not UTF-8: type it again, or set a UTF-8 locale") from None


def _speak_any_locale() -> None:
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _said(caller: _Caller) -> int:
    """Flush standard output: what was not written was not said. Returns a status where that fails, else 0."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _drop_output()
        caller.say("the answer could not be written")
        return int(ExitStatus.IO)
    return 0


def _drop_output() -> None:
    """Let the end of the process not try to write again what could not be written."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
