"""What is packed is unpacked within bounds, whatever it is."""

import gzip
import io
import struct
import tracemalloc
import zipfile
import zlib
from functools import cache, partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.reports.unpack import BOUNDS, Bounds, ReportError, unpack

gzipped = partial(gzip.compress, mtime=0)  # without the time: each process of the tests makes the same names of tests
XML = b"<feedback>" + b"x" * 5000 + b"</feedback>"


def zipped(*files: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        for name, octets in files:
            archive.writestr(zipfile.ZipInfo(name), octets, compress_type=method)
    return made.getvalue()


@cache
def bomb() -> bytes:
    """gzip of a gigabyte of blanks, made without one."""
    packer = zlib.compressobj(1, wbits=31)
    piece = b" " * (1024 * 1024)
    return b"".join(packer.compress(piece) for _ in range(1024)) + packer.flush()


@pytest.mark.parametrize(
    "packed",
    [
        XML,
        gzipped(XML),
        gzipped(XML) + b"\0" * 100,
        gzipped(XML[:100]) + gzipped(XML[100:]),
        gzipped(gzipped(XML)),
        zipped(("a.xml", XML)),
        zipped(("a.xml", XML), method=zipfile.ZIP_STORED),
        zipped(("a.xml.gz", gzipped(XML))),
        zipped(("__MACOSX/._a.xml", b"junk"), ("a.xml", XML)),
        zipped(("folder/", b""), ("folder/REPORT", XML)),
    ],
)
def test_a_report_is_unpacked_however_it_is_packed(packed: bytes) -> None:
    assert unpack(packed) == XML


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        (gzipped(XML)[:-20], "too early"),
        (b"\x1f\x8b" + b"junk" * 10, "gzip is broken"),
        (gzipped(gzipped(gzipped(gzipped(XML)))), "more than 3 times"),
        (gzipped(b"") * 1000, "more than 100 gzip files"),
        (zipped(*((f"{n}.xml", XML) for n in range(17))), "more than 16 files"),
        (zipped(("folder/", b"")), "zip has no file"),
        (zipped(("a.xml", XML), method=zipfile.ZIP_LZMA), "method 14"),
        (zipped(("a.xml", XML), method=zipfile.ZIP_BZIP2), "method 12"),
        (zipped(("a.xml", XML))[:-30], "zip is broken"),
        (b"PK\x03\x04", "zip is broken"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # octets make long names
)
def test_what_cannot_be_unpacked_is_refused_with_the_reason(packed: bytes, reason: str) -> None:
    with pytest.raises(ReportError, match=reason):
        unpack(packed)


def test_a_locked_zip_is_refused() -> None:
    locked = bytearray(zipped(("a.xml", XML)))
    locked[6] |= 1  # the flag of encryption, in the file's own header and in the directory
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(ReportError, match="locked"):
        unpack(bytes(locked))


def test_a_zip_that_lies_about_its_size_is_refused() -> None:
    lying = bytearray(zipped(("a.xml", b" " * 10_000_000)))
    at = lying.index(b"PK\x01\x02")
    struct.pack_into("<I", lying, at + 24, 10)
    with pytest.raises(ReportError):
        unpack(bytes(lying))


@pytest.mark.parametrize("form", ["gzip", "gzip in gzip", "zip"])
def test_a_gigabyte_of_blanks_is_refused_in_little_memory_DAGG_21(form: str) -> None:
    packed = bomb()
    assert len(packed) < 8 * 1024 * 1024
    if form == "gzip in gzip":
        packed = gzipped(packed)
    elif form == "zip":
        packed = zipped(("a.xml.gz", packed))
    tracemalloc.start()
    try:
        with pytest.raises(ReportError, match="unpacks to more than"):
            unpack(packed)
        assert tracemalloc.get_traced_memory()[1] < 3 * BOUNDS.unpacked
    finally:
        tracemalloc.stop()


def test_the_ratio_is_bounded_and_small_reports_are_free_of_it_DAGG_21() -> None:
    assert len(unpack(gzipped(b" " * BOUNDS.free))) == BOUNDS.free
    with pytest.raises(ReportError, match="too much for its size"):
        unpack(gzipped(b" " * (2 * BOUNDS.free)))


def test_octets_are_bounded_before_and_after_DAGG_21() -> None:
    with pytest.raises(ReportError, match="more than 10 are not read"):
        unpack(b"x" * 11, Bounds(packed=10))
    with pytest.raises(ReportError, match="unpacks to more than 10 octets"):
        unpack(gzipped(b"x" * 11), Bounds(unpacked=10))
    with pytest.raises(ReportError, match="more than 10 octets"):
        unpack(b"x" * 11, Bounds(unpacked=10))


@given(st.sampled_from([gzipped(XML), zipped(("a.xml", XML))]), st.integers(0, 400), st.binary(max_size=8))
def test_whatever_is_broken_in_it_nothing_but_the_named_error_is_raised(packed: bytes, at: int, junk: bytes) -> None:
    try:
        unpack(packed[:at] + junk + packed[at + len(junk) :])
    except ReportError as error:
        told = str(error)
        assert told.isprintable(), told


@given(st.sampled_from([b"\x1f\x8b", b"\x1f\x8b\x08\0\0\0\0\0", b"PK\x03\x04"]), st.binary(max_size=100))
def test_octets_of_any_kind_raise_nothing_but_the_named_error(begin: bytes, octets: bytes) -> None:
    try:
        unpack(begin + octets)
    except ReportError:
        pass
