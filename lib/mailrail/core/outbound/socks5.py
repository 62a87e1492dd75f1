"""A SOCKS5 client as bytes in and bytes out (RFC 1928, RFC 1929).

It reads exactly its own octets: whatever follows the proxy's answer is the banner of the server behind it and is
handed on (SOCK-03). Every refusal is temporary (SOCK-04); credentials are in no error text (SOCK-02).
"""

from dataclasses import dataclass, field
from enum import Enum, auto
from ipaddress import ip_address

_REPLIES = {
    1: "general failure of the proxy",
    2: "the proxy's rules do not allow this connection",
    3: "network unreachable from the proxy",
    4: "host unreachable from the proxy",
    5: "connection refused behind the proxy",
    6: "TTL expired behind the proxy",
    7: "the proxy does not support CONNECT",
    8: "the proxy does not support this address type",
}
# 1 too: proxies say it for whatever went wrong behind them, and one dead destination must not stop all others.
_DESTINATION_REPLIES = frozenset({1, 3, 4, 5, 6})
_ADDRESS_REPLIES = _DESTINATION_REPLIES | {8}


class SocksError(Exception):
    """The proxy did not connect us. `destination`: the server behind it is out of reach, the proxy itself works.
    `this_address`: it was about the address asked for, another one may do."""

    def __init__(self, text: str, *, destination: bool = False, this_address: bool = False) -> None:
        super().__init__(text)
        self.destination = destination
        self.this_address = this_address


@dataclass(frozen=True, slots=True)
class ProxyLogin:
    """User name and password for the proxy, 1 to 255 octets each (RFC 1929 2)."""

    username: str
    password: str = field(repr=False)


class _State(Enum):
    METHOD = auto()
    LOGIN = auto()
    CONNECT = auto()
    DONE = auto()


class Socks5:
    """One connection through a proxy: write `start()`, feed what comes, write what `feed` returns, until `done`."""

    def __init__(self, address: str, port: int, login: ProxyLogin | None = None) -> None:
        """`address` is an IP address, or a name for the proxy to resolve (at most 255 octets)."""
        self._address = address
        self._port = port
        self._login = login
        self._state = _State.METHOD
        self._buffer = b""

    @property
    def done(self) -> bool:
        """The connection stands; everything from now on belongs to the server behind the proxy."""
        return self._state is _State.DONE

    @property
    def rest(self) -> bytes:
        """Octets that came behind the proxy's answer. Valid once `done`."""
        return self._buffer

    def start(self) -> bytes:
        """The greeting: no authentication, and user and password only if there are any (SOCK-01)."""
        return b"\x05\x02\x00\x02" if self._login is not None else b"\x05\x01\x00"

    def feed(self, data: bytes) -> bytes:
        """Octets from the proxy; returns what to answer. Raises ProxyError."""
        self._buffer += data
        if self._state is _State.METHOD:
            return self._method()
        if self._state is _State.LOGIN:
            return self._login_reply()
        if self._state is _State.CONNECT:
            self._connect_reply()
        return b""

    def _method(self) -> bytes:
        if len(self._buffer) < 2:
            return b""
        version, method = self._buffer[0], self._buffer[1]
        self._buffer = self._buffer[2:]
        if version != 5:
            raise SocksError("the proxy does not speak SOCKS5")
        if method == 0:
            return self._connect()
        if method == 2 and self._login is not None:
            name, password = self._login.username.encode(), self._login.password.encode()
            if not (1 <= len(name) <= 255 and 1 <= len(password) <= 255):
                raise SocksError("user name and password of the proxy must have 1 to 255 octets")
            self._state = _State.LOGIN
            return b"\x01" + bytes([len(name)]) + name + bytes([len(password)]) + password
        if method == 0xFF:
            raise SocksError("the proxy requires an authentication method that we cannot use")
        raise SocksError("the proxy chose an authentication that we did not offer")

    def _login_reply(self) -> bytes:
        if len(self._buffer) < 2:
            return b""
        version, status = self._buffer[0], self._buffer[1]
        self._buffer = self._buffer[2:]
        if version != 1 or status != 0:
            raise SocksError("the proxy refused our credentials")
        return self._connect()

    def _connect(self) -> bytes:
        self._state = _State.CONNECT
        try:
            ip = ip_address(self._address)
        except ValueError:
            name = self._address.encode("ascii")
            if not 1 <= len(name) <= 255:
                raise SocksError("the host name is too long for SOCKS5") from None
            destination = b"\x03" + bytes([len(name)]) + name
        else:
            destination = (b"\x01" if ip.version == 4 else b"\x04") + ip.packed
        return b"\x05\x01\x00" + destination + self._port.to_bytes(2, "big")

    def _connect_reply(self) -> None:
        buffer = self._buffer
        if len(buffer) >= 2:
            if buffer[0] != 5:
                raise SocksError("the proxy does not speak SOCKS5")
            if buffer[1] != 0:
                text = _REPLIES.get(buffer[1], f"the proxy answered with code {buffer[1]}")
                destination, this_address = buffer[1] in _DESTINATION_REPLIES, buffer[1] in _ADDRESS_REPLIES
                raise SocksError(text, destination=destination, this_address=this_address)
        if len(buffer) < 5:
            return
        match buffer[3]:
            case 1:
                length = 4 + 4 + 2
            case 3:
                length = 5 + buffer[4] + 2
            case 4:
                length = 4 + 16 + 2
            case _:
                raise SocksError("the proxy answered with an address of unknown type")
        if len(buffer) < length:
            return
        self._buffer = buffer[length:]
        self._state = _State.DONE
