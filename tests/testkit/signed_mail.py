"""Signed messages as tests hold them: split into header and body, with a DNS that is a table."""

import base64
import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mailrail.core.arc.chain import ArcResult, verify_chain
from mailrail.core.arc.sets import body_forms as arc_body_forms
from mailrail.core.arc.sets import find_chain
from mailrail.core.dkim.canonical import BodyForm, BodyHash, BodyHasher
from mailrail.core.dkim.verify import DkimResult, body_forms, find_signatures, verify
from mailrail.core.lookups import NO_DATA, NO_NAME, DnsOutcome, DnsQuestion, LookupAnswer, answered
from mailrail.core.message.header import Header

TROUBLE = LookupAnswer(DnsOutcome.TROUBLE, text="SERVFAIL")


def txt(*records: str | bytes) -> LookupAnswer:
    """TXT records that were found."""
    return LookupAnswer(DnsOutcome.FOUND, tuple(each.encode() if isinstance(each, str) else each for each in records))


def from_table(table: Mapping[str, str | bytes | LookupAnswer]) -> Callable[[DnsQuestion], LookupAnswer]:
    """A DNS with one TXT record, or one answer, at each name."""

    def answer(question: DnsQuestion) -> LookupAnswer:
        assert question.kind == "TXT"
        found = table.get(question.name, NO_NAME)
        return found if isinstance(found, LookupAnswer) else txt(found)

    return answer


def from_case(records: Sequence[Mapping[str, Any]]) -> Callable[[DnsQuestion], LookupAnswer]:
    """The DNS of a case: name and type, with strings, data or an rcode."""

    def answer(question: DnsQuestion) -> LookupAnswer:
        here = [each for each in records if each["name"] == question.name]
        rcode = next((each["rcode"] for each in here if "rcode" in each), None)
        if rcode is not None:
            return {"SERVFAIL": TROUBLE, "NXDOMAIN": NO_NAME, "NODATA": NO_DATA}[rcode]
        alias = next((each for each in here if each["type"] == "CNAME"), None)
        if alias is not None:
            return answer(DnsQuestion(alias["data"][0], question.kind))
        texts = ["".join(each["strings"]).encode("latin-1") for each in here if each["type"] == "TXT"]
        return txt(*texts) if texts else NO_DATA if here else NO_NAME

    return answer


def octets_of(given: Mapping[str, Any]) -> bytes:
    """The message of a case."""
    if "message_b64" in given:
        return base64.b64decode(given["message_b64"])
    message: str = given["message"]
    return message.encode("latin-1")


def crlf(text: bytes) -> bytes:
    """A message as it is on the wire, whatever line ends its file has."""
    return text.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def split(message: bytes) -> tuple[Header, bytes]:
    """Header and body of a whole message."""
    header = Header(message)
    return header, message[len(header.block) :].removeprefix(b"\r\n")


def pieces(octets: bytes, size: int) -> Iterator[bytes]:
    """The octets in pieces of this size."""
    return (octets[at : at + size] for at in range(0, len(octets), size))


def hashed(forms: Iterable[BodyForm], body: bytes, size: int = 1 << 16) -> dict[BodyForm, BodyHash]:
    """The hashes of a body that comes in pieces."""
    hasher = BodyHasher(forms)
    for piece in pieces(body, size):
        hasher.feed(piece)
    return hasher.finish()


def dkim_results(
    message: bytes, dns: Callable[[DnsQuestion], LookupAnswer], now: float, size: int = 1 << 16
) -> tuple[DkimResult, ...]:
    """What the DKIM-Signatures of a message are worth."""
    header, body = split(message)
    found = find_signatures(header, now)
    return answered(verify(header, found, hashed(body_forms(found), body, size)), dns)


def arc_result(
    message: bytes, dns: Callable[[DnsQuestion], LookupAnswer], now: float, size: int = 1 << 16
) -> ArcResult:
    """What the ARC chain of a message is worth."""
    header, body = split(message)
    chain = find_chain(header, now)
    return answered(verify_chain(header, chain, hashed(arc_body_forms(chain), body, size)), dns)


# --- a signer that shares nothing with ours -----------------------------------------------------------------------


def naive_body(body: bytes, form: str) -> bytes:
    """A canonical body, line by line as RFC 6376 3.4.3 and 3.4.4 say it."""
    lines = body.split(b"\r\n")
    if form == "relaxed":
        lines = [re.sub(rb"[ \t]+", b" ", line).rstrip(b" ") for line in lines]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        return b"" if form == "relaxed" else b"\r\n"
    return b"".join(line + b"\r\n" for line in lines)


def naive_field(field: bytes, form: str) -> bytes:
    """A canonical field with its line end (RFC 6376 3.4.1 and 3.4.2)."""
    if form == "simple":
        return field
    name, _, value = field.partition(b":")
    value = re.sub(rb"[ \t]+", b" ", value.replace(b"\r\n", b"")).strip(b" ")
    return name.lower().rstrip() + b":" + value + b"\r\n"


@cache
def rsa_key(bits: int = 2048, number: int = 0) -> RSAPrivateKey:
    """An RSA key that a test may publish; one of each size and number."""
    return generate_private_key(65537, bits)


@cache
def ed25519_key() -> Ed25519PrivateKey:
    """An Ed25519 key that a test may publish."""
    return Ed25519PrivateKey.generate()


def published(key: RSAPrivateKey | Ed25519PrivateKey, before: str = "") -> str:
    """The record of a key, with tags before its own."""
    public = key.public_key()
    if isinstance(public, RSAPublicKey):
        octets = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return f"v=DKIM1; {before}p={base64.b64encode(octets).decode()}"
    octets = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return f"v=DKIM1; k=ed25519; {before}p={base64.b64encode(octets).decode()}"


def signed_naively(
    message: bytes, tags: Mapping[str, str | None], key: RSAPrivateKey | Ed25519PrivateKey, name: str = "DKIM-Signature"
) -> bytes:
    """The message with a signature on top. `tags` overrule those of a usual one; None leaves one out."""
    kind = "rsa-sha256" if isinstance(key, RSAPrivateKey) else "ed25519-sha256"
    usual = {"v": "1", "a": kind, "c": "relaxed/relaxed", "d": "example.com", "s": "sel", "h": "from:to:subject"}
    values: dict[str, str | None] = {**usual, "bh": "", **tags}
    header_form, _, body_form = (values["c"] or "simple/simple").partition("/")
    fields = fields_of(message)
    body = message.partition(b"\r\n\r\n")[2]
    canonical = naive_body(body, body_form or "simple")
    length = values.get("l")
    if "bh" not in tags:
        hashed = canonical[: int(length)] if length is not None and length.isdigit() else canonical
        values["bh"] = base64.b64encode(hashlib.sha256(hashed).digest()).decode()
    written = "; ".join(f"{tag}={value}" for tag, value in values.items() if value is not None)
    own = f"{name}: {written}; b=".encode()
    chosen = b""
    left = list(fields)
    for wanted in (values["h"] or "").split(":"):
        for at in range(len(left) - 1, -1, -1):
            if left[at].partition(b":")[0].strip().lower().decode("latin-1") == wanted.strip().lower():
                chosen += naive_field(left.pop(at), header_form)
                break
    digest = hashlib.sha256(chosen + naive_field(own + b"\r\n", header_form)[:-2]).digest()
    if isinstance(key, RSAPrivateKey):
        octets = key.sign(digest, padding.PKCS1v15(), Prehashed(SHA256()))
    else:
        octets = key.sign(digest)
    return own + base64.b64encode(octets) + b"\r\n" + message


def fields_of(message: bytes) -> list[bytes]:
    """The header fields of a message, folds and all, with their line ends."""
    head = message.partition(b"\r\n\r\n")[0]
    return [each + b"\r\n" for each in re.split(rb"\r\n(?![ \t])", head)]


def sealed(
    message: bytes,
    instance: int,
    *,
    domain: str = "",
    cv: str | None = None,
    results: str = "spf=pass",
    message_tags: dict[str, str | None] | None = None,
    seal_tags: str = "",
    key: Ed25519PrivateKey | None = None,
) -> bytes:
    """The message with one more set on top, made without any line of ours."""
    domain = domain or f"d{instance}.example"
    signer = key or ed25519_key()
    own = {"v": None, "i": str(instance), "d": domain, "s": "arc", **(message_tags or {})}
    with_message = signed_naively(message, own, signer, "ARC-Message-Signature")
    top = f"ARC-Authentication-Results: i={instance}; mx.{domain}; {results}\r\n".encode() + with_message
    validation = cv if cv is not None else "none" if instance == 1 else "pass"
    seal = f"ARC-Seal: i={instance}; a=ed25519-sha256; cv={validation}; d={domain}; s=arc{seal_tags}; b=".encode()
    covered = b""
    for each, name in itertools.product(
        range(1, instance + 1), ("authentication-results", "message-signature", "seal")
    ):
        wanted = re.compile(rf"arc-{name}:.*\bi={each};".encode(), re.IGNORECASE | re.DOTALL)
        covered += b"".join(naive_field(field, "relaxed") for field in fields_of(top) if wanted.match(field))
    digest = hashlib.sha256(covered + naive_field(seal + b"\r\n", "relaxed")[:-2]).digest()
    return seal + base64.b64encode(signer.sign(digest)) + b"\r\n" + top
