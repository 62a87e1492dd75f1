"""The flags of sendmail, as the callers of forty years give them (SML-01): a list of words in, an `Invocation` out.

Words are read as getopt does: `-fADDRESS` and `-f ADDRESS`, `-it` for `-i -t`, `--` before recipients that begin with a
dash. What Sendmail, Postfix or Exim had a meaning for and we have not is passed over together with its argument; what
nobody knows is an error, because a mistyped flag that is ignored sends mail to the wrong place.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from mailrail.sendmail.status import ExitStatus, Stop

if TYPE_CHECKING:
    from mailrail.core.tlspolicy.facts import Requirement

REQUIRED: Final = "required"
WAIVED: Final = "no"
"""What a message demands of TLS on its whole way, by the names of core/tlspolicy's Requirement."""


class SendmailMode(StrEnum):
    """What one call does."""

    SUBMIT = "submit"  # -bm: a message from standard input
    SMTP = "smtp"  # -bs: SMTP on standard input and output
    LIST = "list"  # -bp, mailq
    FLUSH = "flush"  # -q
    STAY = "stay"  # -qTIME
    ALIASES = "aliases"  # -bi, newaliases
    INSTALL = "install"
    HELP = "help"
    VERSION = "version"


@dataclass(frozen=True, slots=True)
class Invocation:
    """One call, understood. What a flag did not say is None."""

    mode: SendmailMode = SendmailMode.SUBMIT
    recipients: tuple[str, ...] = ()
    from_header: bool = False
    """-t: the header names recipients, too."""
    dot_is_text: bool = False
    """-i: a line with a dot alone does not end the message."""
    sender: str | None = None
    """-f, -r; empty: the null reverse-path."""
    full_name: str | None = None
    body: str | None = None
    """As BODY= of MAIL says it (RFC 6152)."""
    notify: tuple[str, ...] = ()
    ret: str | None = None
    envid: str | None = None
    """xtext (RFC 3461 4)."""
    quiet: bool = False
    verbose: bool = False
    config: str | None = None
    every: float = 0.0
    """-qTIME, in seconds."""
    heartbeat: bool = False
    """A flush that comes again by itself, from a timer: it keeps to the backoff and leaves a heartbeat."""
    tls_requirement: "Requirement | None" = None
    install: str | None = None
    privileged: str = ""
    """The flag that a setgid command must not be given, if it was (SML-10)."""


SHORTEST_INTERVAL: Final = 10.0
"""Seconds of `-qTIME`."""
LONGEST_INTERVAL: Final = 7 * 86400.0
BODIES: Final = ("7BIT", "8BITMIME")
RETURNS: Final = ("FULL", "HDRS")
NOTIFICATIONS: Final = frozenset({"NEVER", "SUCCESS", "FAILURE", "DELAY"})
"""The words of core/smtp/parameters, without the time that it takes to load (SML-11b)."""
_IGNORED: Final = frozenset("GmnU")
_IGNORED_WITH_ARGUMENT: Final = frozenset("AhLOpX")
# Exim's options of two letters and more whose argument may stand apart, such as -oMr PROTOCOL.
_APART: Final = re.compile(r"A|P|X|M(?:a|aa|ai|as|i|m|r|s|t)")
_ERRORS: Final = frozenset("emqpw")
_TIME: Final = re.compile(r"(?:[0-9]{1,6}[smhdw]?)+")
_TIME_PART: Final = re.compile(r"([0-9]{1,6})([smhdw]?)")
_SECONDS: Final = {"s": 1, "": 60, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_INSTEAD: Final = {
    "v": "-bv verifies addresses: `mailrail explain FROM TO` says where mail to an address goes",
    "t": "-bt tests rewriting rules, and there are none: `mailrail explain FROM TO` says where mail to an address goes",
    "d": "-bd runs a server: run `mailrail local`, or `mailrail-sendmail -q15m` to send what waits",
    "l": "-bl runs a server: run `mailrail local`, or `mailrail-sendmail -q15m` to send what waits",
}
HELP: Final = """\
usage: sendmail [FLAGS] [--] RECIPIENT...  < MESSAGE
       sendmail -t [FLAGS] < MESSAGE        recipients from To, Cc and Bcc, too
       sendmail -bs                         SMTP on standard input and output
       sendmail -q | -qTIME                 send what waits, once or every TIME (15m, 1h)
       sendmail -bp, mailq                  show what waits and what failed
       sendmail --install FOLDER            put sendmail, mailq and newaliases there

  -i, -oi            a line with a dot alone does not end the message
  -f, -r ADDRESS     sender of the envelope; '' or <> for none
  -F NAME            name of the author, where the message has no From
  -N WHEN            notifications: never, or success, failure and delay with commas between
  -R full|hdrs       what a notification returns
  -V ID              envelope id in notifications
  -B 7BIT|8BITMIME   what the body holds
  -oem, -oeq, ...    how errors are told: q is silent, the others write to standard error
  -v                 show the dialogue with the server, without secrets
  -C FILE            another configuration than the first that is found
  --tls-requirement required|no
                     TLS all the way (RFC 8689), or delivery rather than TLS
  --heartbeat        with -q: a timer runs this again; keep to the backoff
  --version, --help

Configuration: -C, $MAILRAIL_SENDMAIL_CONFIG, $XDG_CONFIG_HOME/mailrail/sendmail.toml, /etc/mailrail/sendmail.toml.
Exit status as in sysexits.h: 0 sent or surely to be sent, 75 not sent and kept, 64 wrong usage, 78 wrong configuration.
"""


def usage(text: str) -> Stop:
    """An error of whoever wrote the command line."""
    return Stop(ExitStatus.USAGE, text)


class _Words:
    """The words of a command line, taken one after the other."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = list(words)
        self._at = 0

    def next_flag(self) -> str | None:
        """The next word if it is a flag; `--` is passed over, and ends them."""
        if self._at >= len(self._words):
            return None
        word = self._words[self._at]
        if word == "--":
            self._at += 1
            return None
        if len(word) < 2 or word[0] != "-":
            return None
        self._at += 1
        return word

    def argument(self, flag: str, attached: str) -> str:
        """The argument of a flag: attached to it, or the next word."""
        if attached:
            return attached
        if self._at >= len(self._words):
            raise usage(f"{flag} needs an argument: write it behind the flag, as in `{flag} VALUE`")
        self._at += 1
        return self._words[self._at - 1]

    def rest(self) -> tuple[str, ...]:
        """The words that are left."""
        return tuple(self._words[self._at :])


def read_flags(words: Sequence[str], *, called: str = "sendmail") -> Invocation:
    """Understand a command line without the program's name; `called` is that name (SML-01). Raises Stop."""
    source = _Words(words)
    found: dict[str, object] = {}
    if called == "mailq":
        found["mode"] = SendmailMode.LIST
    elif called == "newaliases":
        found["mode"] = SendmailMode.ALIASES
    while (word := source.next_flag()) is not None:
        if word.startswith("--"):
            _long(word, source, found)
        else:
            _short(word, source, found)
    invocation = Invocation(**found, recipients=source.rest())  # type: ignore[arg-type]
    return _checked(invocation)


def _checked(call: Invocation) -> Invocation:
    for recipient in call.recipients:
        if recipient.startswith("-") and "@" not in recipient:
            raise usage(f"{recipient} stands behind a recipient: write flags before the recipients")
    alone = call.mode not in (SendmailMode.SUBMIT, SendmailMode.SMTP)
    if alone and call.recipients:
        raise usage(f"{call.mode} takes no recipients: leave out {call.recipients[0]!r}")
    if call.heartbeat and call.mode is not SendmailMode.FLUSH:
        raise usage("--heartbeat belongs to -q: leave it out, or write `-q --heartbeat`")
    if call.mode is SendmailMode.SMTP and call.from_header:
        raise usage("-bs and -t exclude each other: in SMTP, RCPT names the recipients")
    return call


def _long(word: str, source: _Words, found: dict[str, object]) -> None:
    name, equals, value = word.partition("=")
    if name == "--tls-requirement":
        text = value if equals else source.argument(name, "")
        try:
            found["tls_requirement"] = read_requirement(text)
        except ValueError as error:
            raise usage(f"--tls-requirement {_shown(text)}: {error}") from None
    elif name == "--install":
        found["mode"] = SendmailMode.INSTALL
        found["install"] = value if equals else source.argument(name, "")
        if not found["install"]:
            raise usage("--install needs a folder, as in `--install /usr/local/sbin`")
    elif word == "--heartbeat":
        found["heartbeat"] = True
    elif word in ("--help", "--version"):
        found["mode"] = SendmailMode(word[2:])
    else:
        raise usage(f"{_shown(word)} is no flag of sendmail: `sendmail --help` lists them")


def _short(word: str, source: _Words, found: dict[str, object]) -> None:
    """A word of one flag or several: those without an argument may stand together."""
    at = 1
    while at < len(word):
        letter, rest = word[at], word[at + 1 :]
        flag = f"-{letter}"
        at += 1
        match letter:
            case "t":
                found["from_header"] = True
            case "i":
                found["dot_is_text"] = True
            case "v":
                found["verbose"] = True
            case _ if letter in _IGNORED:
                pass
            case "d":  # its levels are attached, as in -d0.1
                return
            case "q":
                _queue(rest, found)
                return
            case _:
                _with_argument(letter, flag, rest, source, found)
                return


def _with_argument(letter: str, flag: str, rest: str, source: _Words, found: dict[str, object]) -> None:
    match letter:
        case "f" | "r":
            # An empty word is the null sender; `argument` takes one only as a word of its own.
            found["sender"] = _sender(source.argument(flag, rest))
        case "F":
            found["full_name"] = source.argument(flag, rest)
        case "b":
            _mode(source.argument(flag, rest), found)
        case "B":
            text = source.argument(flag, rest)
            found["body"] = text.upper()
            if found["body"] not in BODIES:
                raise usage(f"-B {_shown(text)}: write 7BIT or 8BITMIME")
        case "N":
            found["notify"] = _notify(source.argument(flag, rest))
        case "R":
            text = source.argument(flag, rest)
            found["ret"] = text.upper()
            if found["ret"] not in RETURNS:
                raise usage(f"-R {_shown(text)}: write full or hdrs")
        case "V":
            found["envid"] = _envid(source.argument(flag, rest))
        case "C":
            found["config"] = source.argument(flag, rest)
            found["privileged"] = flag
            if not found["config"]:
                raise usage("-C needs the name of a file")
        case "e":
            _errors(source.argument(flag, rest), flag, found)
        case "o":
            _option(source.argument(flag, rest), source, found)
        case _ if letter in _IGNORED_WITH_ARGUMENT:
            source.argument(flag, rest)
            if letter == "X":
                found["privileged"] = flag
        case _:
            raise usage(f"{_shown(flag)} is no flag of sendmail: `sendmail --help` lists them")


def _mode(text: str, found: dict[str, object]) -> None:
    match text:
        case "m":
            found["mode"] = SendmailMode.SUBMIT
        case "s":
            found["mode"] = SendmailMode.SMTP
        case "p":
            found["mode"] = SendmailMode.LIST
        case "i":
            found["mode"] = SendmailMode.ALIASES
        case _ if text in _INSTEAD:
            raise usage(f"sendmail does not do this: {_INSTEAD[text]}")
        case _:
            raise usage(f"-b{_shown(text)} is no mode of sendmail: -bm, -bs, -bp and -bi are")


def _queue(rest: str, found: dict[str, object]) -> None:
    if not rest:
        found["mode"] = SendmailMode.FLUSH
        return
    if not _TIME.fullmatch(rest):
        raise usage(f"-q{_shown(rest)}: write -q to send all that waits, or a time as in -q15m and -q1h")
    seconds = float(sum(int(count) * _SECONDS[unit] for count, unit in _TIME_PART.findall(rest)))
    if not SHORTEST_INTERVAL <= seconds <= LONGEST_INTERVAL:
        raise usage(f"-q{_shown(rest)}: write a time between {SHORTEST_INTERVAL:.0f}s and 1w")
    found["mode"] = SendmailMode.STAY
    found["every"] = seconds


def _option(text: str, source: _Words, found: dict[str, object]) -> None:
    if text == "i":
        found["dot_is_text"] = True
    elif text[:1] == "e" and len(text) == 2:
        _errors(text[1:], "-oe", found)
    elif _APART.fullmatch(text):
        source.argument(f"-o{text}", "")
    elif not text:
        raise usage("-o needs an option, as in -oi")


def _errors(text: str, flag: str, found: dict[str, object]) -> None:
    if text not in _ERRORS:
        raise usage(f"{flag}{_shown(text)}: how errors are told is one of e, m, p, q and w")
    found["quiet"] = text == "q"


def read_requirement(text: str) -> "Requirement":
    """What a message demands of TLS on its whole way (RFC 8689). Raises ValueError with what to write."""
    from mailrail.core.tlspolicy.facts import Requirement

    word = text.strip().lower()
    if word not in (REQUIRED, WAIVED):
        raise ValueError("write required or no")
    return Requirement(word)


def _sender(text: str) -> str:
    text = text.strip()
    return "" if text == "<>" else text


def _notify(text: str) -> tuple[str, ...]:
    words = [word.strip().upper() for word in text.split(",")]
    if not set(words) <= NOTIFICATIONS or ("NEVER" in words and set(words) != {"NEVER"}):
        raise usage(f"-N {_shown(text)}: write never, or some of success, failure and delay with commas between")
    return tuple(dict.fromkeys(words))


_ENVID_LIMIT: Final = 100
"""Characters of an envelope id (RFC 3461 4.4)."""


def _envid(text: str) -> str:
    if not text or len(text) > _ENVID_LIMIT or not all(" " <= c <= "~" for c in text):
        raise usage(f"-V {_shown(text)}: write an id of at most {_ENVID_LIMIT} printable ASCII characters")
    return "".join(c if "!" <= c <= "~" and c not in "+=" else f"+{ord(c):02X}" for c in text)


def _shown(text: str) -> str:
    """A stranger's word in a sentence: bounded, and without characters that a terminal acts on."""
    return "".join(c if c.isprintable() else "?" for c in text[:60])
