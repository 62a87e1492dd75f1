"""The fields that a signature covers, and their hash (RFC 6376 3.7, 5.4.2; standards DKIM-06)."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator

from mailrail.core.dkim.canonical import FIELD, Canonicalization
from mailrail.core.dkim.tags import without_value
from mailrail.core.message.header import Field, Header


class SignedHeader:
    """The header of one message, for all its signatures: each form of a field is made once."""

    __slots__ = ("_by_name", "_forms", "_header")

    def __init__(self, header: Header) -> None:
        self._header = header
        self._by_name: defaultdict[bytes, list[Field]] = defaultdict(list)
        for field in header.fields:
            self._by_name[field.name].append(field)
        self._forms: dict[tuple[Canonicalization, int], bytes] = {}

    def canonical(self, field: Field, form: Canonicalization) -> bytes:
        """A field of this header in one form, with its line end."""
        key = (form, field.start)
        made = self._forms.get(key)
        if made is None:
            made = self._forms[key] = FIELD[form](self._header.block[field.start : field.end])
        return made

    def chosen(self, names: Iterable[bytes], besides: Field | None = None) -> Iterator[Field]:
        """The fields that the names in `h=` mean: of those with one name the lowest first; none where all are taken,
        or where there never was one (RFC 6376 5.4.2). `besides`: the signature itself, which `h=` never means."""
        left: dict[bytes, list[Field]] = {}
        for name in names:
            fields = left.get(name)
            if fields is None:
                fields = left[name] = [field for field in self._by_name.get(name, ()) if field != besides]
            if fields:
                yield fields.pop()

    def digest(self, names: Iterable[bytes], form: Canonicalization, signature: Field) -> bytes:
        """SHA-256 of the fields with these names and of the signature without its `b=` (RFC 6376 3.7)."""
        return self._hash(names, form, self.signature(signature, form), signature)

    def signature(self, field: Field, form: Canonicalization) -> bytes:
        """A signature as it is hashed itself: without its `b=`, and without a line end."""
        return FIELD[form](without_value(self._header.block[field.start : field.end], b"b")).removesuffix(b"\r\n")

    def hashed(self, names: Iterable[bytes], form: Canonicalization) -> "HashedFields":
        """The fields with these names, for signatures that are not in the header yet."""
        return HashedFields(form, b"".join([self.canonical(field, form) for field in self.chosen(names)]))

    def _hash(self, names: Iterable[bytes], form: Canonicalization, own: bytes, besides: Field | None) -> bytes:
        parts = [self.canonical(field, form) for field in self.chosen(names, besides)]
        parts.append(own)
        return hashlib.sha256(b"".join(parts)).digest()


class HashedFields:
    """The fields that signatures to come cover. It holds their hash alone, however large the header is."""

    __slots__ = ("_form", "_hash")

    def __init__(self, form: Canonicalization, fields: bytes) -> None:
        self._form = form
        self._hash = hashlib.sha256(fields)

    def digest(self, signature: bytes) -> bytes:
        """SHA-256 of them and of a signature whose `b=` is empty (RFC 6376 3.7)."""
        hashed = self._hash.copy()
        hashed.update(FIELD[self._form](signature).removesuffix(b"\r\n"))
        return hashed.digest()
