"""Ports of this machine: their addresses in text, which are free, and which accept connections."""

import contextlib
import errno
import socket
import sys

TAKEN = "the port is taken"


def host_port(host: str, port: int) -> str:
    """HOST:PORT, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def dialled(listen: str) -> str:
    """The address to connect to, for an address to listen on."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen, listen)  # noqa: S104  # compared, not bound


def why_not_free(host: str, port: int) -> str | None:
    """Why we cannot listen there now; None when the port is free."""
    if not 0 < port < 65536:
        return f"{port} is not a port number; --port-offset is too large"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        if sys.platform != "win32":  # connections of a moment ago do not matter; on Windows it means something else
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return TAKEN
            return str(error.strerror or error)
    return None


def port_near(wanted: int) -> int:
    """The wanted port on 127.0.0.1; another one from the system when that is not free."""
    if why_not_free("127.0.0.1", wanted) is None:
        return wanted
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def accepts(where: str) -> bool:
    """Whether something accepts connections at HOST:PORT."""
    host, _, port = where.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=1):
            return True
    except OSError:
        return False
