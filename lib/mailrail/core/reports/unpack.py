"""A packed report made plain, within bounds: gzip, zip, or one in the other (DAGG-21).

A few octets of gzip can stand for gigabytes. So what comes out is counted while it comes out, and nothing beyond the
bounds is ever made. What the octets are is told by themselves, for senders name and label them wrongly.
"""

import io
import lzma
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import Final

_GZIP: Final = b"\x1f\x8b"
_ZIP: Final = b"PK\x03\x04"
_ZIP_ENTRY: Final = b"PK\x01\x02"
_PIECE: Final = 256 * 1024  # octets that are made at once
_MEMBERS_LIMIT: Final = 100  # gzip files one after the other (RFC 1952 2.2)
_NAMES: Final = (".xml", ".json", ".xml.gz", ".json.gz", ".gz")


class ReportError(ValueError):
    """What was sent is no report, or none that is read. The text says why, in one printable line."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of reports that others send."""

    packed: int = 15 * 1024 * 1024
    """Octets as they came. Mail with more is seldom delivered."""
    unpacked: int = 32 * 1024 * 1024
    """Octets of the report."""
    ratio: int = 200
    """Octets of the report for each octet that came. XML of many like records has some 50."""
    free: int = 1024 * 1024
    """Octets of a report that are never too many for what came."""
    entries: int = 16
    """Files in a zip."""
    layers: int = 3
    """Packings within each other. Some senders pack what is packed."""

    def most(self, packed: int) -> int:
        """Octets of a report that came in so many."""
        return min(self.unpacked, max(self.free, self.ratio * packed))


BOUNDS: Final = Bounds()


def is_packed(octets: bytes) -> bool:
    """Whether they begin as gzip or zip do."""
    return octets.startswith((_GZIP, _ZIP))


def unpack(octets: bytes, bounds: Bounds = BOUNDS) -> bytes:
    """The report in it, which is itself if it is not packed. Raises ReportError."""
    if len(octets) > bounds.packed:
        raise ReportError(f"it has {len(octets)} octets; reports of more than {bounds.packed} are not read")
    most = bounds.most(len(octets))
    for _ in range(bounds.layers):
        if octets.startswith(_GZIP):
            octets = _gunzip(octets, most)
        elif octets.startswith(_ZIP):
            octets = _unzip(octets, most, bounds.entries)
        elif len(octets) > bounds.unpacked:
            raise _too_large(bounds.unpacked)
        else:
            return octets
    if is_packed(octets):
        raise ReportError(f"it is packed more than {bounds.layers} times")
    return octets


def _too_large(most: int) -> ReportError:
    return ReportError(f"it unpacks to more than {most} octets, which is too much, or too much for its size")


def _gunzip(octets: bytes, most: int) -> bytes:
    out = bytearray()
    left = octets
    for _ in range(_MEMBERS_LIMIT):
        member = zlib.decompressobj(wbits=31)
        try:
            while not member.eof:
                piece = member.decompress(left, _PIECE)
                left = member.unconsumed_tail
                out += piece
                if len(out) > most:
                    raise _too_large(most)
                if not piece and not left and not member.eof:
                    raise ReportError("its gzip ends too early: the report was cut off")
        except zlib.error as error:
            raise ReportError(f"its gzip is broken: {error}") from None
        left = member.unused_data
        if not left.startswith(_GZIP):
            return bytes(out)  # what follows is no gzip: padding, which gzip itself passes over, too
    raise ReportError(f"it is made of more than {_MEMBERS_LIMIT} gzip files")


def _unzip(octets: bytes, most: int, entries: int) -> bytes:
    # The library reads the whole directory, whose entries begin so.
    if octets.count(_ZIP_ENTRY) > entries:
        raise ReportError(f"its zip has more than {entries} files")
    try:
        with zipfile.ZipFile(io.BytesIO(octets)) as archive:
            files = [info for info in archive.infolist() if not info.is_dir()]
            chosen = next((info for info in files if _is_report(info.filename)), files[0] if files else None)
            if chosen is None:
                raise ReportError("its zip has no file")
            if chosen.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ReportError(
                    f"its zip is packed by method {chosen.compress_type}; only stored and deflated are read"
                )
            out = bytearray()
            with archive.open(chosen) as file:
                while piece := file.read(_PIECE):
                    out += piece
                    if len(out) > most:
                        raise _too_large(most)
            return bytes(out)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise ReportError(f"its zip is broken, or locked: {_line(error)}") from None
    except (zlib.error, lzma.LZMAError, struct.error, OverflowError, IndexError) as error:
        raise ReportError(f"its zip is broken: {_line(error)}") from None
    except ReportError:
        raise
    except ValueError as error:
        raise ReportError(f"its zip is broken: {_line(error)}") from None


def _is_report(name: str) -> bool:
    return name.lower().endswith(_NAMES) and not name.rpartition("/")[2].startswith(".")


def _line(error: Exception) -> str:
    return "".join(char if char.isprintable() else "?" for char in str(error))[:100]
