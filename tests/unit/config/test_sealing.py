"""Sealed secrets open only under their name, for their role, with a key that is held (CFG-02)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.revision.sealing import CannotOpen, Keyring, key_of

OLD, NEW = bytes(32), bytes([1]) * 32


@given(content=st.binary(max_size=200), path=st.text(max_size=30), role=st.sampled_from(["ingress", "outbound"]))
def test_what_is_sealed_opens_again_and_the_same_input_gives_the_same_bytes(
    content: bytes, path: str, role: str
) -> None:
    ring = Keyring({"1": OLD})
    sealed = ring.seal(content, path, role)
    assert ring.open(sealed, path, role) == content
    assert ring.seal(content, path, role) == sealed
    assert content not in sealed or len(content) < 4


@given(position=st.integers(min_value=0, max_value=40), flip=st.integers(min_value=1, max_value=255))
def test_damaged_bytes_do_not_open(position: int, flip: int) -> None:
    ring = Keyring({"1": OLD})
    sealed = bytearray(ring.seal(b"twelve octets", "a/b/c", "ingress"))
    sealed[position % len(sealed)] ^= flip
    with pytest.raises(CannotOpen):
        ring.open(bytes(sealed), "a/b/c", "ingress")


def test_another_name_or_role_does_not_open_it_CFG_02() -> None:
    ring = Keyring({"1": OLD})
    sealed = ring.seal(b"secret", "a/b/c", "outbound")
    for path, role in (("a/b/d", "outbound"), ("a/b/c", "ingress")):
        with pytest.raises(CannotOpen, match="does not open"):
            ring.open(sealed, path, role)


def test_the_newest_key_seals_and_any_held_one_opens_CFG_02() -> None:
    sealed_before = Keyring({"2026-01": OLD}).seal(b"secret", "a", "ingress")
    both = Keyring({"2026-01": OLD, "2026-02": NEW})
    assert key_of(both.seal(b"secret", "a", "ingress")) == "2026-02"
    assert both.open(sealed_before, "a", "ingress") == b"secret"
    with pytest.raises(CannotOpen, match="not held here"):
        Keyring({"2026-02": NEW}).open(sealed_before, "a", "ingress")


def test_a_digest_tells_change_and_depends_on_the_key_CFG_02() -> None:
    ring = Keyring({"1": OLD})
    assert ring.digest(b"a") == ring.digest(b"a") != ring.digest(b"b")
    assert Keyring({"1": NEW}).digest(b"a") != ring.digest(b"a")


@pytest.mark.parametrize("keys", [{}, {"1": b"short"}, {"": OLD}])
def test_a_ring_without_good_keys_is_refused(keys: dict[str, bytes]) -> None:
    with pytest.raises(ValueError, match="sealing key"):
        Keyring(keys)
