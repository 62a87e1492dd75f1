"""Addresses and ports that no other test uses.

Each host of a scenario gets an address of its own from 127.0.0.0/8, so that names, MX records and source addresses are
real, tests run side by side, and a port that the system gave on that address stays free until it is bound.
"""

import contextlib
import functools
import secrets
import socket
import sys
from collections.abc import Iterable


@functools.cache
def _any_loopback_address_works() -> bool:
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        try:
            probe.bind(("127.83.7.19", 0))
        except OSError:
            return False
    return True


def loopback_address() -> str:
    """A fresh address 127.x.y.z (x from 16 up: people and programs use the low ones).

    Drawn at random from some 15 million, so processes need not agree. Skips the test where the system has
    only 127.0.0.1 (macOS, unless aliases were added).
    """
    if not _any_loopback_address_works():
        import pytest  # here, because in a pod these fakes run without it

        pytest.skip(f"this system ({sys.platform}) has no addresses 127.x.y.z besides 127.0.0.1")
    return f"127.{16 + secrets.randbelow(239)}.{1 + secrets.randbelow(254)}.{1 + secrets.randbelow(254)}"


_LOOPBACK = "127.0.0.1"
_LOWEST, _HIGHEST = 8_000, 32_000
"""Ports at 127.0.0.1 are drawn from between: below 32,768, where Linux begins to hand out ports for connections, all of
which leave from this address; one that stays unbound for a second would not stay free."""
_NOTES = "127.1.1.1"
"""Here a test process binds what it has chosen at 127.0.0.1, so that no other one chooses it before it is in use there,
or while what uses it is killed and started again."""
_held: dict[int, list[socket.socket]] = {}
"""Of each offset that `free_offset` gave, until it is released."""
_kept: list[socket.socket] = []
"""Of ports that `free_port` gave: for as long as this process lives."""


def _bound(address: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    made = socket.socket(socket.AF_INET, kind)
    try:
        made.bind((address, port))
    except OSError:
        made.close()
        raise
    return made


def _noted(ports: Iterable[int]) -> list[socket.socket]:
    """Sockets that tell other test processes of ports at 127.0.0.1. Raises OSError where another one has told."""
    if not _any_loopback_address_works():
        return []
    with contextlib.ExitStack() as held:
        notes = [held.enter_context(_bound(_NOTES, port)) for port in ports]
        held.pop_all()
    return notes


def free_port(address: str = _LOOPBACK, *, udp: bool = False) -> int:
    """A port that nobody listens on at `address`; with `udp` one that is free for both TCP and UDP.

    For programs that cannot take port 0. On an address from `loopback_address()` nobody else will take it meanwhile;
    at 127.0.0.1 no other test process will, for as long as this one lives, and what takes it must not ask for the port
    at every address.
    """
    shared = address == _LOOPBACK
    while True:
        wanted = _LOWEST + secrets.randbelow(_HIGHEST - _LOWEST) if shared else 0
        with contextlib.suppress(OSError), _bound(address, wanted) as tcp:
            port: int = tcp.getsockname()[1]
            if udp:
                _bound(address, port, socket.SOCK_DGRAM).close()
            if shared:
                _kept.extend(_noted([port]))
            return port


def free_offset(ports: tuple[int, ...], address: str = _LOOPBACK) -> int:
    """A number that, added to each of `ports`, gives ports that are all free at `address` (for `--port-offset`).

    No other test process gets any of the sums until `release_offset`.
    """
    for _ in range(500):
        offset = _LOWEST + 10 * secrets.randbelow((_HIGHEST - _LOWEST - max(ports)) // 10)
        if offset in _held:
            continue
        with contextlib.suppress(OSError), contextlib.ExitStack() as probes:
            for port in ports:
                probes.enter_context(_bound(address, port + offset))
            _held[offset] = _noted(port + offset for port in ports)
            return offset
    raise OSError(f"no free offset for the ports {ports} at {address}")


def release_offset(offset: int) -> None:
    """Let others have what `free_offset` gave."""
    for note in _held.pop(offset, []):
        note.close()


def accepts(address: str, port: int) -> bool:
    """Whether somebody accepts TCP connections there now."""
    try:
        with socket.create_connection((address, port), timeout=5):
            return True
    except OSError:
        return False
