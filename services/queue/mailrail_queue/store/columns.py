"""Columns of a batch as binary Postgres arrays, packed in one go.

A batch goes to the server as one array a column and comes apart there with `unnest`. psycopg would dump each element
through a Python-level dumper; for some twenty columns a message that alone would cost more than all the rest of a
commit. These few functions write the array format of the wire protocol (postgres/src/backend/utils/adt/arrayfuncs.c,
array_recv: dimensions, null flag, element type, length and lower bound, then length and bytes of each element).
"""

import struct
from collections.abc import Sequence
from typing import ClassVar, cast

from psycopg.adapt import AdaptersMap, Buffer, Dumper
from psycopg.pq import Format

from mailrail.kit.postgres import storable

_HEADER = struct.Struct(">iiIii")
_LENGTH = struct.Struct(">i").pack
_NULL = _LENGTH(-1)


class Column:
    """A parameter ready for the wire. Its class says the type."""

    __slots__ = ("data",)
    oid: ClassVar[int]
    """Of the type: pg_type.dat, fixed for ever."""

    def __init__(self, data: bytes) -> None:
        self.data = data


class UuidColumn(Column):
    """uuid[]"""

    __slots__ = ()
    oid = 2951


class BytesColumn(Column):
    """bytea[]"""

    __slots__ = ()
    oid = 1001


class TextColumn(Column):
    """text[]"""

    __slots__ = ()
    oid = 1009


class BigintColumn(Column):
    """bigint[]"""

    __slots__ = ()
    oid = 1016


class SmallintColumn(Column):
    """smallint[]"""

    __slots__ = ()
    oid = 1005


class FloatColumn(Column):
    """double precision[]"""

    __slots__ = ()
    oid = 1022


class BooleanColumn(Column):
    """boolean[]"""

    __slots__ = ()
    oid = 1000


class Number(Column):
    """double precision, one for the whole batch"""

    __slots__ = ()
    oid = 701


class Word(Column):
    """text, one for the whole batch"""

    __slots__ = ()
    oid = 25


# The types of the elements.
_ELEMENT: dict[type[Column], int] = {
    UuidColumn: 2950,
    BytesColumn: 17,
    TextColumn: 25,
    BigintColumn: 20,
    SmallintColumn: 21,
    FloatColumn: 701,
    BooleanColumn: 16,
}


def _array(kind: type[Column], count: int, nulls: bool, body: bytes) -> bytes:
    if not count:
        return struct.pack(">iiI", 0, 0, _ELEMENT[kind])
    return _HEADER.pack(1, 1 if nulls else 0, _ELEMENT[kind], count, 1) + body


def _alike(values: Sequence[object]) -> bool:
    """Many columns of a batch hold one value throughout: it is packed once."""
    return values.count(values[0]) == len(values) if values else False


def _fixed(kind: type[Column], code: str, width: int, values: Sequence[int] | Sequence[float]) -> bytes:
    count = len(values)
    if _alike(values):
        return _array(kind, count, False, struct.pack(">i" + code, width, values[0]) * count)
    flat: list[int | float] = [width] * (2 * count)
    flat[1::2] = values
    return _array(kind, count, False, struct.pack(">" + ("i" + code) * count, *flat))


def _varying(kind: type[Column], values: Sequence[bytes | None]) -> bytes:
    count = len(values)
    if not count:
        return _array(kind, 0, False, b"")
    nulls = None in values
    parts: list[bytes] = [b""] * (2 * count + 1)
    parts[0] = _HEADER.pack(1, 1 if nulls else 0, _ELEMENT[kind], count, 1)
    if nulls:
        parts[1::2] = [_NULL if v is None else _LENGTH(len(v)) for v in values]
        parts[2::2] = [v or b"" for v in values]
    else:
        present = cast(Sequence[bytes], values)
        parts[1::2] = map(_LENGTH, map(len, present))
        parts[2::2] = present
    return b"".join(parts)  # once: these may be bodies


def uuids(values: Sequence[bytes]) -> UuidColumn:
    """From 16 octets each."""
    prefix = _LENGTH(16)
    return UuidColumn(_array(UuidColumn, len(values), False, prefix + prefix.join(values) if values else b""))


def octets(values: Sequence[bytes | None]) -> BytesColumn:
    """bytea[]"""
    return BytesColumn(_varying(BytesColumn, values))


def texts(values: Sequence[str | None]) -> TextColumn:
    """text[] for people to read: what no text of Postgres holds is written as its escape (`kit.postgres.storable`)."""
    return names([None if v is None else storable(v) for v in values])


def names(values: Sequence[str | None]) -> TextColumn:
    """text[] of what is looked for again, and so must be what it is: addresses, domains, accounts, sites.

    Raises UnicodeEncodeError for lone surrogates; a NUL makes Postgres refuse the statement (psycopg.DataError).
    """
    if _alike(values):
        value = values[0]
        one = _NULL if value is None else _LENGTH(len(encoded := value.encode())) + encoded
        return TextColumn(_array(TextColumn, len(values), value is None, one * len(values)))
    return TextColumn(_varying(TextColumn, [None if v is None else v.encode() for v in values]))


def bigints(values: Sequence[int]) -> BigintColumn:
    """bigint[]"""
    return BigintColumn(_fixed(BigintColumn, "q", 8, values))


def smallints(values: Sequence[int]) -> SmallintColumn:
    """smallint[]"""
    return SmallintColumn(_fixed(SmallintColumn, "h", 2, values))


def floats(values: Sequence[float]) -> FloatColumn:
    """double precision[]"""
    return FloatColumn(_fixed(FloatColumn, "d", 8, values))


def booleans(values: Sequence[bool]) -> BooleanColumn:
    """boolean[]"""
    return BooleanColumn(_fixed(BooleanColumn, "?", 1, values))


def number(value: float) -> Number:
    """double precision"""
    return Number(struct.pack(">d", value))


def word(value: str) -> Word:
    """text, one for the whole batch, as `names` takes it"""
    return Word(value.encode())


def register(adapters: AdaptersMap) -> None:
    """Teach a connection to send columns."""
    kinds: tuple[type[Column], ...] = (*_ELEMENT, Number, Word)
    for kind in kinds:
        adapters.register_dumper(kind, _dumper(kind.oid))


def _dumper(array: int) -> type[Dumper]:
    class ColumnDumper(Dumper):
        format = Format.BINARY
        oid = array

        def dump(self, obj: Column) -> Buffer | None:
            return obj.data

    return ColumnDumper
