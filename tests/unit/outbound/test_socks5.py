"""SOCKS5 octet by octet: methods, login, address types, refusals, and the banner that came too early (SOCK-01..04)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.outbound.socks5 import ProxyLogin, Socks5, SocksError

OK = b"\x05\x00\x00\x01\0\0\0\0\0\0"


def test_only_methods_that_we_can_use_are_offered_SOCK_01() -> None:
    assert Socks5("192.0.2.1", 25).start() == b"\x05\x01\x00"
    assert Socks5("192.0.2.1", 25, ProxyLogin("u", "p")).start() == b"\x05\x02\x00\x02"


@pytest.mark.parametrize(
    ("address", "wire"),
    [
        ("192.0.2.1", b"\x01\xc0\x00\x02\x01"),
        ("2001:db8::1", b"\x04\x20\x01\x0d\xb8" + bytes(11) + b"\x01"),
        ("mx.example", b"\x03\x0amx.example"),
    ],
)
def test_each_kind_of_address_is_asked_for_SOCK_03(address: str, wire: bytes) -> None:
    proxy = Socks5(address, 2525)
    assert proxy.feed(b"\x05\x00") == b"\x05\x01\x00" + wire + b"\x09\xdd"


def test_credentials_are_given_when_they_are_asked_for_SOCK_02() -> None:
    proxy = Socks5("192.0.2.1", 25, ProxyLogin("user", "pass"))
    assert proxy.feed(b"\x05\x02") == b"\x01\x04user\x04pass"
    assert proxy.feed(b"\x01\x00").startswith(b"\x05\x01\x00\x01")
    proxy.feed(OK)
    assert proxy.done


@pytest.mark.parametrize("answer", [b"\x05\xff", b"\x05\x01", b"\x05\x02", b"\x04\x00", b"HT"])
def test_a_method_that_was_not_offered_ends_it_SOCK_01(answer: bytes) -> None:
    with pytest.raises(SocksError):
        Socks5("192.0.2.1", 25).feed(answer)


@pytest.mark.parametrize("login", [ProxyLogin("", "p"), ProxyLogin("u", ""), ProxyLogin("u" * 256, "p")])
def test_credentials_out_of_bounds_are_not_sent_SOCK_02(login: ProxyLogin) -> None:
    proxy = Socks5("192.0.2.1", 25, login)
    with pytest.raises(SocksError):
        proxy.feed(b"\x05\x02")


def test_refused_credentials_are_in_no_text_SOCK_02() -> None:
    proxy = Socks5("192.0.2.1", 25, ProxyLogin("user", "hunter2"))
    proxy.feed(b"\x05\x02")
    with pytest.raises(SocksError) as caught:
        proxy.feed(b"\x01\x01")
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(ProxyLogin("user", "hunter2"))


@pytest.mark.parametrize("code", range(1, 256))
def test_every_refusal_is_told_SOCK_04(code: int) -> None:
    proxy = Socks5("192.0.2.1", 25)
    proxy.feed(b"\x05\x00")
    with pytest.raises(SocksError) as caught:
        proxy.feed(bytes([5, code, 0, 1]))
    assert caught.value.destination == (code in (1, 3, 4, 5, 6))
    assert caught.value.this_address == (code in (1, 3, 4, 5, 6, 8))


@given(
    st.sampled_from([OK, b"\x05\x00\x00\x04" + bytes(18), b"\x05\x00\x00\x03\x04name\x00\x19", b"\x05\0\0\x03\0\0\0"]),
    st.binary(max_size=20),
    st.data(),
)
def test_what_follows_the_answer_is_the_servers_in_any_split_SOCK_03(
    answer: bytes, banner: bytes, data: st.DataObject
) -> None:
    proxy = Socks5("192.0.2.1", 25)
    proxy.feed(b"\x05\x00")
    wire, rest = answer + banner, b""
    while wire:
        n = data.draw(st.integers(1, len(wire)))
        piece, wire = wire[:n], wire[n:]
        if proxy.done:
            rest += piece
        else:
            assert proxy.feed(piece) == b""
            if proxy.done:
                rest = proxy.rest
    assert proxy.done
    assert rest == banner


@given(st.lists(st.binary(min_size=1, max_size=10), max_size=10))
def test_no_octets_break_it(pieces: list[bytes]) -> None:
    proxy = Socks5("192.0.2.1", 25, ProxyLogin("u", "p"))
    try:
        for piece in pieces:
            if not proxy.done:
                proxy.feed(piece)
    except SocksError:
        return
    assert len(proxy.rest) <= 100
