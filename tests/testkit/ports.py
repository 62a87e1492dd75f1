"""Addresses and ports that no other test uses.

Each host of a scenario gets an address of its own from 127.0.0.0/8, so that names, MX records and source addresses are
real, tests run side by side, and a port that the system gave on that address stays free until it is bound.
"""

import contextlib
import functools
import secrets
import socket
import sys


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


def free_port(address: str = "127.0.0.1", *, udp: bool = False) -> int:
    """A port that nobody listens on at `address`; with `udp` one that is free for both TCP and UDP.

    For programs that cannot take port 0. On an address from `loopback_address()` nobody else will take it meanwhile.
    """
    while True:
        with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as tcp:
            tcp.bind((address, 0))
            port: int = tcp.getsockname()[1]
            if not udp:
                return port
            with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as datagrams:
                try:
                    datagrams.bind((address, port))
                except OSError:
                    continue
                return port


def free_offset(ports: tuple[int, ...], address: str = "127.0.0.1") -> int:
    """A number that, added to each of `ports`, gives ports that are all free at `address` (for `--port-offset`).

    The sums stay below 32,768, where Linux begins to hand out ports for outgoing connections.
    """
    for _ in range(500):
        offset = 8_000 + 10 * secrets.randbelow((32_000 - 8_000 - max(ports)) // 10)
        with contextlib.ExitStack() as held:
            try:
                for port in ports:
                    probe = held.enter_context(contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)))
                    probe.bind((address, port + offset))
            except OSError:
                continue
            return offset
    raise OSError(f"no free offset for the ports {ports} at {address}")


def accepts(address: str, port: int) -> bool:
    """Whether somebody accepts TCP connections there now."""
    try:
        with socket.create_connection((address, port), timeout=2):
            return True
    except OSError:
        return False
