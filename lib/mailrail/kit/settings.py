"""Settings of a process, read from the environment into a frozen dataclass.

A field `grpc_listen` of service `queue` is read from `MAILRAIL_QUEUE_GRPC_LISTEN`, else from `MAILRAIL_GRPC_LISTEN`,
else it keeps its default. Every default starts a working service. A value that cannot be read stops the process with
the variable's name and what it takes; an unknown `MAILRAIL_<SERVICE>_*` variable does too: a typo is never silent.

`MAILRAIL_QUEUE_DATABASE_URL_FILE` names a file that holds the value of `MAILRAIL_QUEUE_DATABASE_URL`. So a secret comes
into a pod: a container whose environment is made of Secrets cannot start again while the API server is away (CFG-07).
Such a file may change under a running process, as a mounted Secret does when a password is rotated: `read_again`.
"""

import dataclasses
import os
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, Union

_FILE = "_FILE"  # at the end of a variable: it names a file that holds the value
_NO_VARIABLE: Mapping[str, bool] = types.MappingProxyType({"variable": False})  # a field that no variable sets


class BadSettings(Exception):
    """The environment says something that the settings cannot take; the text names the variable."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """What every service needs to know."""

    node_id: str = ""
    """Name of this process among its replicas; default host name and process id."""
    grpc_listen: str = "127.0.0.1:0"
    """HOST:PORT of the gRPC server."""
    health_listen: str = ""
    """HOST:PORT of a plaintext gRPC health server for probes, which speak no TLS; empty = none."""
    metrics_listen: str = ""
    """HOST:PORT of the Prometheus endpoint; empty = none."""
    tls_dir: Path | None = None
    """Folder with tls.crt, tls.key and ca.crt for mutual TLS between services (the layout that cert-manager writes)."""
    plaintext: bool = False
    """Speak gRPC without TLS when `tls_dir` is not given. For tests; without it such a process refuses to start."""
    config_target: str = "127.0.0.1:7001"
    """Target of the config service."""
    sealing_keys_dir: Path | None = None
    """Folder of sealing keys: file name = key id, content = 32 octets in base64; the greatest seals (CFG-02)."""
    cache_dir: Path | None = None
    """Where the sealed last good revision is kept for a restart while config is down (CFG-07); None = not kept."""
    log_format: str = "json"
    """`json` or `console`."""
    log_level: str = "info"
    """`debug`, `info`, `warning` or `error`."""
    stop_with_parent: bool = False
    """Stop when standard input closes, as it does when the parent dies. Local mode's children set it."""
    stop_grace: float = 10.0
    """Seconds for work in progress once the process is told to stop."""
    files: Mapping[str, Path] = dataclasses.field(
        default_factory=dict, compare=False, repr=False, metadata=_NO_VARIABLE
    )
    """Names of the fields whose values came from files, with the file of each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatabaseSettings(ServiceSettings):
    """What a service with tables of its own needs besides."""

    database_url: str = "postgresql://localhost/mailrail"
    """Where its schema lives. One URL and one role suffice for all services (DBS-01); MAILRAIL_DATABASE_URL names it
    for all of them."""
    database_user: str = ""
    """In place of the URL's user."""
    database_password: str = dataclasses.field(default="", repr=False)
    """In place of the URL's password; MAILRAIL_DATABASE_PASSWORD_FILE names a file that holds it."""


S = TypeVar("S", bound=ServiceSettings)


def load(kind: type[S], service: str, environment: Mapping[str, str] | None = None) -> S:
    """Settings of `service` from the environment. Raises BadSettings."""
    env = os.environ if environment is None else environment
    hints = typing.get_type_hints(kind)
    own = f"MAILRAIL_{service.upper()}_"
    names = {f.name.upper(): f for f in dataclasses.fields(kind) if f.metadata.get("variable", True)}
    # MAILRAIL_CONFIG_TARGET is everybody's `config_target`, not the config service's `target`.
    known = {name + suffix for name in names for suffix in ("", _FILE)}
    unknown = sorted(
        v
        for v in env
        if v.startswith(own) and v.removeprefix(own) not in known and v.removeprefix("MAILRAIL_") not in known
    )
    if unknown:
        raise BadSettings(
            f"{unknown[0]}: {service} has no such setting; it has {', '.join(sorted(own + n for n in names))}"
        )
    values: dict[str, Any] = {}
    files: dict[str, Path] = {}
    for upper, field in names.items():
        for variable in (own + upper, "MAILRAIL_" + upper):
            if variable in env:
                try:
                    values[field.name] = _read(hints[field.name], env[variable])
                except ValueError as error:
                    raise BadSettings(f"{variable}={env[variable]!r}: {error}") from None
                break
            if variable + _FILE in env:
                files[field.name] = Path(env[variable + _FILE])
                values[field.name] = _read_file(hints[field.name], f"{variable}{_FILE}=", files[field.name])
                break
    return kind(**values, files=files)


def read_again(settings: S) -> S:
    """The same settings, with those that came from files as the files are now. Raises BadSettings."""
    if not settings.files:
        return settings
    hints = typing.get_type_hints(type(settings))
    return dataclasses.replace(
        settings, **{name: _read_file(hints[name], f"{name}: ", path) for name, path in settings.files.items()}
    )


def _read_file(kind: Any, what: str, path: Path) -> Any:
    """A value from a file; `what` comes before the path in errors, which never repeat the content: it may be secret."""
    try:
        return _read(kind, path.read_text(encoding="utf-8").strip())
    except OSError as error:
        raise BadSettings(f"{what}{path}: {error.strerror or error}") from None
    except ValueError:
        raise BadSettings(f"{what}{path}: the content of the file is not a valid value") from None


def _read(kind: Any, text: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (Union, types.UnionType):
        inner = [a for a in typing.get_args(kind) if a is not type(None)]
        return None if text == "" else _read(inner[0], text)
    if origin is tuple:
        inner_kind = typing.get_args(kind)[0]
        return tuple(_read(inner_kind, part.strip()) for part in text.split(",") if part.strip())
    if kind is bool:
        lowered = text.strip().lower()
        if lowered in ("1", "true", "yes", "on"):
            return True
        if lowered in ("0", "false", "no", "off", ""):
            return False
        raise ValueError("must be true or false")
    if kind is int:
        try:
            return int(text)
        except ValueError:
            raise ValueError("must be a whole number") from None
    if kind is float:
        try:
            return float(text)
        except ValueError:
            raise ValueError("must be a number") from None
    if kind is Path:
        return Path(text)
    if kind is str:
        return text
    raise TypeError(f"settings cannot hold {kind!r}")


def port_map(variable: str, pairs: Iterable[str]) -> dict[int, int]:
    """Real ports by the ports of listeners, from `LISTENER=REAL`. Raises BadSettings."""
    found: dict[int, int] = {}
    for pair in pairs:
        listener, _, real = pair.partition("=")
        asked, opened = port_number(listener), port_number(real)
        if asked is None or not opened:
            raise BadSettings(f"{variable}: {pair!r}: takes LISTENER=REAL, as 25=2525")
        found.setdefault(asked, opened)
    return found


def host_port(text: str) -> tuple[str, int]:
    """Split `HOST:PORT` or `[IPv6]:PORT`. Raises BadSettings."""
    host, colon, digits = text.rpartition(":")
    port = port_number(digits)
    if not colon or port is None:
        raise BadSettings(f"{text!r}: must be HOST:PORT")
    return host.strip("[]"), port


def port_number(text: str) -> int | None:
    """A port, or 0 for any that is free. None when it is neither: `isdigit()` alone takes a ² that `int()` does not."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        return None
    port = int(text)
    return port if port < 65536 else None
