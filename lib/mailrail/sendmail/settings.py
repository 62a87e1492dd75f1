"""The configuration of sendmail: one TOML file, and a variable of the environment for each of its keys (SML-02).

What is read here is what an administrator or a user wrote, so every mistake is named with its key, its place and what
to write. A password lies in the file, in a file of its own, or is printed by a command; it is read only when the server
wants it, and shown never.
"""

import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mailrail.core.smtp.address import Address, AddressError, domain_to_ascii, is_ip_address, parse_address
from mailrail.sendmail.flags import REQUIRED, read_requirement
from mailrail.sendmail.status import ExitStatus, Stop

if TYPE_CHECKING:
    from mailrail.core.sasl.client import Mechanism
    from mailrail.core.tlspolicy.facts import Requirement

PREFIX: Final = "MAILRAIL_SENDMAIL_"
SYSTEM_FILE: Final = Path("/etc/mailrail/sendmail.toml")
SYSTEM_QUEUE: Final = Path("/var/spool/mailrail-sendmail")
FILE_LIMIT: Final = 256 * 1024
"""Octets of the configuration file."""
PASSWORD_LIMIT: Final = 4096
"""Octets of a password with its line end."""
COMMAND_SECONDS: Final = 30.0
"""Seconds that password_command may take."""
INPUT_LIMIT: Final = 100 * 1024 * 1024
"""Octets of a message (SML-12)."""
TOTAL_SECONDS: Final = 240.0
"""Seconds for all of the dialogue, from the end of the input (SML-12)."""


class SubmissionTls(StrEnum):
    """How TLS begins with the submission server. Its certificate is verified always (SML-04)."""

    IMPLICIT = "implicit"
    STARTTLS = "starttls"
    NONE = "none"  # to this machine alone


class RewriteFrom(StrEnum):
    """When the From of a message is replaced with ours."""

    NEVER = "never"
    LOCAL = "local"  # where its address has no domain that others could answer to
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class Password:
    """Where the password is. At most one is set."""

    text: str = field(default="", repr=False)
    file: str = ""
    command: tuple[str, ...] = field(default=(), repr=False)

    @property
    def given(self) -> bool:
        """Whether there is one."""
        return bool(self.text or self.file or self.command)


@dataclass(frozen=True, slots=True)
class SubmissionSettings:
    """What the command works by."""

    server: str = ""
    port: int = 465
    tls: SubmissionTls = SubmissionTls.IMPLICIT
    ca_file: str = ""
    """PEM; in place of the system's authorities."""
    login: str = ""
    password: Password = field(default_factory=Password)
    mechanism: "Mechanism | None" = None
    """The only one that is used; None: the strongest that both ends have."""
    author: Address | None = None
    """`from`: the sender where no flag names one, and who hears of mail that failed."""
    rewrite_from: RewriteFrom = RewriteFrom.LOCAL
    default_domain: str = ""
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Local name in lower case → where its mail goes."""
    default_destination: str = ""
    tls_requirement: "Requirement | None" = None
    queue: Path = Path()
    hello: str = ""
    """Our name in EHLO; empty: this machine's."""
    connect_seconds: float = 30.0
    reply_seconds: float = 60.0
    total_seconds: float = TOTAL_SECONDS
    input_limit: int = INPUT_LIMIT
    source: str = "the environment"
    """Where this was read, for messages."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What of the process decides where settings are looked for."""

    environ: Mapping[str, str]
    home: Path
    superuser: bool
    setgid: bool = False
    """Installed setgid: only the system's file counts, and no variable of the environment (SML-10)."""
    system_file: Path = SYSTEM_FILE
    system_queue: Path = SYSTEM_QUEUE


def wrong(text: str) -> Stop:
    """A mistake in the configuration."""
    return Stop(ExitStatus.CONFIG, text)


def find_file(named: str | None, around: Surroundings) -> Path | None:
    """The configuration file: the first of `-C`, MAILRAIL_SENDMAIL_CONFIG, the user's and the system's (SML-02). None:
    there is none. Raises Stop where a file that was named is not there."""
    if around.setgid:
        return around.system_file if around.system_file.exists() else None
    for given, by in ((named, "-C"), (around.environ.get(PREFIX + "CONFIG"), PREFIX + "CONFIG")):
        if given:
            path = Path(given)
            if not path.is_file():
                raise wrong(f"{by} names {path}, and there is no such file: mend the name, or write the file")
            return path
    below = around.environ.get("XDG_CONFIG_HOME") or ""
    user = Path(below) if below.startswith("/") or (below and os.name == "nt") else around.home / ".config"
    for path in (user / "mailrail" / "sendmail.toml", around.system_file):
        if path.is_file():
            return path
    return None


def load(named: str | None, around: Surroundings) -> SubmissionSettings:
    """Find and read the settings. Raises Stop."""
    path = find_file(named, around)
    values: dict[str, Any] = {}
    if path is not None:
        values = _read_file(path)
    variables = {} if around.setgid else _read_variables(around.environ)
    if any(key in variables for key in _PASSWORD_KEYS):
        for key in _PASSWORD_KEYS:
            values.pop(key, None)
    for key, value in variables.items():
        if key == "timeouts":
            there = values.get(key)
            values[key] = {**(there if isinstance(there, dict) else {}), **value}
        else:
            values[key] = value
    return read(values, str(path) if path is not None else "the environment", around)


# --- files ------------------------------------------------------------------------------------------------------------


def _read_file(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            octets = file.read(FILE_LIMIT + 1)
    except OSError as error:
        raise wrong(
            f"{path} cannot be read: {_reason(error)}. Give this user the right to, or name another with -C"
        ) from error
    if len(octets) > FILE_LIMIT:
        raise wrong(f"{path} is larger than {FILE_LIMIT} octets: this is no configuration of sendmail")
    try:
        values = tomllib.loads(octets.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        # The words of the error quote no value, so no password either.
        raise wrong(f"{path} is no TOML: {error}") from error
    if values.get("password"):
        check_private(path, mode)
    return values


def check_private(path: Path, mode: int) -> None:
    """Refuse a file with a password in it that others can read or write (SML-02). Windows has no such modes."""
    if os.name != "nt" and mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
        raise wrong(f"{path} has a password in it, and others can read or change it: run `chmod o-rwx,g-w {path}`")


def read_password(password: Password, source: str) -> str:
    """The password itself. Raises Stop, with a text that does not hold it."""
    if password.file:
        path = Path(password.file)
        try:
            with path.open("rb") as file:
                check_private(path, os.fstat(file.fileno()).st_mode)
                octets = file.read(PASSWORD_LIMIT + 1)
        except OSError as error:
            raise wrong(f"password_file {path} cannot be read: {_reason(error)}") from error
        return _one_line(octets, f"password_file {path}")
    if password.command:
        return _one_line(_output_of(password.command, source), "what password_command prints")
    return password.text


def _output_of(command: tuple[str, ...], source: str) -> bytes:
    import subprocess

    try:
        done = subprocess.run(  # noqa: S603 - the administrator's own command, without a shell
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=COMMAND_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise wrong(
            f"password_command of {source} did not end within {COMMAND_SECONDS:.0f} s: see what it waits for"
        ) from error
    except (OSError, ValueError) as error:
        raise wrong(f"password_command of {source} cannot be run: {error}") from error
    if done.returncode:
        raise wrong(f"password_command of {source} ended with status {done.returncode}: run it by hand to see why")
    return done.stdout


def _one_line(octets: bytes, what: str) -> str:
    line = octets.split(b"\n", 1)[0].removesuffix(b"\r")
    if not line or len(octets) > PASSWORD_LIMIT or b"\0" in line:
        raise wrong(f"{what} must be one line, which is the password, of at most {PASSWORD_LIMIT} octets")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise wrong(f"{what} is not UTF-8") from error


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__


# --- values -----------------------------------------------------------------------------------------------------------

_PASSWORD_KEYS: Final = ("password", "password_file", "password_command")
_TIMEOUTS: Final = {"connect": 30.0, "reply": 60.0, "total": TOTAL_SECONDS}
KEYS: Final = (
    "server", "port", "tls", "ca_file", "login", *_PASSWORD_KEYS, "mechanism", "from", "rewrite_from", "default_domain",
    "aliases", "default_destination", "tls_requirement", "queue", "hello", "timeouts", "input_limit",
)  # fmt: skip


def _read_variables(environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key in KEYS:
        text = environ.get(PREFIX + key.upper())
        if key == "timeouts":
            found = {
                name: _number(environ[variable], variable)
                for name in _TIMEOUTS
                if environ.get(variable := f"{PREFIX}TIMEOUTS_{name.upper()}")
            }
            if found:
                values[key] = found
        elif not text:
            continue
        elif key in ("port", "input_limit"):
            values[key] = int(_number(text, PREFIX + key.upper()))
        elif key == "aliases":
            values[key] = _alias_words(text)
        else:
            values[key] = text
    return values


def _number(text: str, variable: str) -> float:
    try:
        if len(text) <= 20:
            return float(text)
    except ValueError:
        pass
    raise wrong(f"{variable} takes a number")


def _alias_words(text: str) -> dict[str, list[str]]:
    aliases: dict[str, list[str]] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, equals, target = word.partition("=")
        if not equals:
            raise wrong(f"{PREFIX}ALIASES takes NAME=ADDRESS, with commas between several")
        aliases.setdefault(name.strip(), []).append(target.strip())
    return aliases


class _Values:
    """The values of one source, each taken with its type. Raises Stop."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self._values = values
        self._source = source

    def wrong(self, key: str, what: str) -> Stop:
        return wrong(f"{key} in {self._source} {what}")

    def text(self, key: str) -> str:
        value = self._values.get(key, "")
        if not isinstance(value, str):
            raise self.wrong(key, "is a text: write it in quotes")
        if any(c < " " or c == "\x7f" for c in value):
            raise self.wrong(key, "has a control character or a line end: take it out")
        return value

    def number(self, key: str, default: float, least: float, most: float) -> float:
        value = self._values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self.wrong(key, f"is a number from {least:g} to {most:g}")
        return value

    def whole(self, key: str, default: int, least: int, most: int) -> int:
        value = self.number(key, default, least, most)
        if not isinstance(value, int) and not value.is_integer():
            raise self.wrong(key, "is a whole number")
        return int(value)

    def one_of(self, key: str, kind: type[StrEnum], default: StrEnum) -> Any:
        text = self.text(key).lower()
        if not text:
            return default
        try:
            return kind(text)
        except ValueError:
            raise self.wrong(key, f"is one of {', '.join(each.value for each in kind)}") from None

    def table(self, key: str) -> Mapping[str, Any]:
        value = self._values.get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, f"is a table: write it as [{key}], with a line for each entry below")
        return value

    def words(self, key: str) -> tuple[str, ...]:
        """A command: a list of words, or one text that is split as a shell would."""
        value = self._values.get(key, ())
        if isinstance(value, str):
            import shlex

            try:
                return tuple(shlex.split(value))
            except ValueError as error:
                raise self.wrong(key, f"cannot be split into words: {error}") from error
        if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
            raise self.wrong(key, "is a list of texts: the command and its arguments")
        return tuple(value)


def read(values: Mapping[str, Any], source: str, around: Surroundings) -> SubmissionSettings:
    """Settings out of values, as the file has them. Raises Stop."""
    for key in values:
        if key not in KEYS:
            raise wrong(f"{source} has the key {key[:60]!r}, which sendmail does not know: it knows {', '.join(KEYS)}")
    of = _Values(values, source)
    port_given = "port" in values
    port = of.whole("port", 0, 0, 65535)
    usual = SubmissionTls.STARTTLS if port_given and port in (25, 587) else SubmissionTls.IMPLICIT
    tls: SubmissionTls = of.one_of("tls", SubmissionTls, usual)
    if not port_given or not port:
        port = {SubmissionTls.IMPLICIT: 465, SubmissionTls.STARTTLS: 587, SubmissionTls.NONE: 25}[tls]
    server = _server(of)
    if tls is SubmissionTls.NONE and server and not is_loopback(server):
        # SML-02: a password and mail in clear stay on this machine.
        raise of.wrong("tls", f"may be none only to this machine, and {server} is another: write implicit or starttls")
    timeouts = _Values(of.table("timeouts"), f"[timeouts] of {source}")
    for key in of.table("timeouts"):
        if key not in _TIMEOUTS:
            raise of.wrong("timeouts", f"has {key[:60]!r}: it knows {', '.join(_TIMEOUTS)}")
    total = timeouts.number("total", TOTAL_SECONDS, 1, TOTAL_SECONDS)
    password = Password(of.text("password"), of.text("password_file"), of.words("password_command"))
    login = of.text("login")
    if sum(map(bool, (password.text, password.file, password.command))) > 1:
        raise wrong(f"{source} has several passwords: keep one of {', '.join(_PASSWORD_KEYS)}")
    if bool(login) != password.given:
        lacks = "a password: add password_file, password_command or password" if login else "login, the user's name"
        raise wrong(f"{source} lacks {lacks}")
    if login and tls is SubmissionTls.NONE:  # SML-04: no AUTH without TLS, on no network
        raise wrong(f"{source} has a login and tls = none: write implicit or starttls, or take the login out")
    requirement = _requirement(of)
    if requirement == REQUIRED and tls is SubmissionTls.NONE:
        raise of.wrong("tls_requirement", "cannot be required where tls is none: write starttls or implicit")
    return SubmissionSettings(
        server=server,
        port=port,
        tls=tls,
        ca_file=of.text("ca_file"),
        login=login,
        password=password,
        mechanism=_mechanism(of),
        author=_author(of),
        rewrite_from=of.one_of("rewrite_from", RewriteFrom, RewriteFrom.LOCAL),
        default_domain=_domain(of, "default_domain"),
        aliases=_aliases(of),
        default_destination=of.text("default_destination"),
        tls_requirement=requirement,
        queue=_queue(of, around),
        hello=_domain(of, "hello"),
        connect_seconds=timeouts.number("connect", _TIMEOUTS["connect"], 0.1, TOTAL_SECONDS),
        reply_seconds=timeouts.number("reply", _TIMEOUTS["reply"], 0.1, TOTAL_SECONDS),
        total_seconds=total,
        input_limit=of.whole("input_limit", INPUT_LIMIT, 1, 1 << 40),
        source=source,
    )


def check_server(settings: SubmissionSettings) -> None:
    """Refuse settings without a server; what only looks at the queue folder needs none. Raises Stop."""
    if not settings.server:
        raise wrong(
            "no configuration of sendmail was found, or it names no server: write /etc/mailrail/sendmail.toml with"
            " server, login and password_file, or set MAILRAIL_SENDMAIL_SERVER"
        )


def is_loopback(server: str) -> bool:
    """Whether mail to this server stays on this machine."""
    if server.lower() == "localhost":
        return True
    try:
        return ip_address(server).is_loopback
    except ValueError:
        return False


def _server(of: _Values) -> str:
    text = of.text("server").strip().removeprefix("[").removesuffix("]")
    if not text or is_ip_address(text):
        return text
    try:
        return domain_to_ascii(text)
    except AddressError:
        raise of.wrong("server", "is a host name or an IP address, without a port") from None


def _domain(of: _Values, key: str) -> str:
    text = of.text(key).strip().removeprefix("@")
    if not text:
        return ""
    try:
        return domain_to_ascii(text)
    except AddressError as error:
        raise of.wrong(key, f"is a domain name: {error}") from None


def _author(of: _Values) -> Address | None:
    text = of.text("from").strip()
    if not text:
        return None
    try:
        return parse_address(text)
    except AddressError as error:
        raise of.wrong("from", f"is an address, as in alerts@example.org: {error}") from None


def _mechanism(of: _Values) -> "Mechanism | None":
    text = of.text("mechanism").upper()
    if not text:
        return None
    from mailrail.core.sasl.client import Mechanism

    try:
        return Mechanism(text)
    except ValueError:
        raise of.wrong("mechanism", f"is one of {', '.join(Mechanism)}") from None


def _requirement(of: _Values) -> "Requirement | None":
    text = of.text("tls_requirement")
    try:
        return read_requirement(text) if text else None
    except ValueError as error:
        raise of.wrong("tls_requirement", f"is required or no: {error}") from None


def _aliases(of: _Values) -> dict[str, tuple[str, ...]]:
    aliases: dict[str, tuple[str, ...]] = {}
    for name, target in of.table("aliases").items():
        targets = [target] if isinstance(target, str) else target
        if not isinstance(targets, list) or not targets or not all(isinstance(one, str) and one for one in targets):
            raise of.wrong("aliases", f"has {name[:60]!r}, whose value is an address or a list of addresses")
        aliases[name.lower()] = tuple(targets)
    return aliases


def _queue(of: _Values, around: Surroundings) -> Path:
    text = of.text("queue")
    if text:
        return Path(text)
    if around.superuser:
        return around.system_queue
    below = "" if around.setgid else around.environ.get("XDG_STATE_HOME") or ""
    if sys.platform == "win32":
        state = Path(below or around.environ.get("LOCALAPPDATA") or around.home)
    else:
        state = Path(below) if below.startswith("/") else around.home / ".local" / "state"
    return state / "mailrail" / "sendmail"
