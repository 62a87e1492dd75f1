"""Zones that a test writes and signs itself (DNSSEC, RFC 4034 and 4035), right or deliberately wrong.

A `Zone` holds records in presentation form. `written` gives its master file: signed by a key of its own, unsigned,
with signatures that have run out, or with broken signatures of some record sets. `ds` is what its parent publishes.
"""

import time
from collections.abc import Iterable
from enum import Enum
from functools import cached_property

import dns.dnssec
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.DNSKEY
import dns.rrset
import dns.zone
from cryptography.hazmat.primitives.asymmetric import ec

_DAY = 86400
_TTL = 300


class Signed(Enum):
    """What a validating resolver makes of a zone."""

    SECURE = "secure"
    INSECURE = "insecure"
    """Unsigned, and its parent proves that."""
    BOGUS = "bogus"
    """Signed by another key than the one that its parent names."""
    EXPIRED = "expired"
    """Signed by the right key; the signatures ran out three days ago: resolvers forgive clocks one."""


class Zone:
    """A zone, until it is served."""

    def __init__(self, name: str, signed: Signed = Signed.SECURE) -> None:
        """`name`: without the final dot; "" is the root."""
        self.name = name
        self.signed = signed
        self.origin = dns.name.from_text(name)
        self._serial = 1
        self._records: dict[tuple[dns.name.Name, dns.rdatatype.RdataType], list[str]] = {}
        self._broken: set[tuple[dns.name.Name, dns.rdatatype.RdataType]] = set()

    def add(self, owner: str, kind: str, *values: str, broken: bool = False) -> None:
        """Add records of one type in presentation form. `owner`: the full name, without the final dot. `broken`: the
        signature of this record set does not match it."""
        key = (dns.name.from_text(owner), dns.rdatatype.from_text(kind))
        assert key[0].is_subdomain(self.origin), f"{owner} is not in {self.name}"
        self._records.setdefault(key, []).extend(values)
        if broken:
            self._broken.add(key)

    def set(self, owner: str, kind: str, *values: str) -> None:
        """`add` in place of what there was; without values the name has none of that type any more."""
        self._records.pop((dns.name.from_text(owner), dns.rdatatype.from_text(kind)), None)
        if values:
            self.add(owner, kind, *values)

    def delegate(self, child: "Zone", name_server: str) -> None:
        """Name the servers of a zone below this one and, unless it is unsigned, its key."""
        self.add(child.name, "NS", name_server)
        if child.signed is not Signed.INSECURE:
            self.add(child.name, "DS", *child.ds)

    @property
    def ds(self) -> list[str]:
        """The DS records (RFC 4034 5) that the parent should have."""
        key = _new_key() if self.signed is Signed.BOGUS else self._key
        return [dns.dnssec.make_ds(self.origin, key[1], "SHA256").to_text()]

    @cached_property
    def _key(self) -> "_Key":
        return _new_key()

    def written(self, name_server: str) -> str:
        """The master file (RFC 1035 5), of a higher serial number each time."""
        self._serial += 1
        zone = dns.zone.Zone(self.origin, relativize=False)
        contact = dns.name.from_text("hostmaster", self.origin).to_text()
        soa = f"{name_server} {contact} {self._serial} 3600 600 86400 60"
        records: Iterable[tuple[tuple[dns.name.Name, dns.rdatatype.RdataType], list[str]]] = self._records.items()
        with zone.writer() as writer:
            for kind, value in (("SOA", soa), ("NS", name_server)):
                writer.add(self.origin, dns.rdataset.from_text("IN", kind, _TTL, value))
            for (owner, rdtype), values in records:
                writer.add(owner, dns.rdataset.from_rdata(_TTL, *(_rdata(rdtype, value) for value in values)))
        if self.signed is not Signed.INSECURE:
            now = int(time.time())
            ended = self.signed is Signed.EXPIRED
            dns.dnssec.sign_zone(
                zone,
                keys=[self._key],
                inception=now - 30 * _DAY,
                expiration=now - 3 * _DAY if ended else now + 30 * _DAY,
            )
            for owner, rdtype in self._broken:
                self._break(zone, owner, rdtype)
        text = zone.to_text(relativize=False)
        assert isinstance(text, str)
        return text

    def _break(self, zone: dns.zone.Zone, owner: dns.name.Name, rdtype: dns.rdatatype.RdataType) -> None:
        with zone.writer() as writer:
            signatures = writer.get(owner, dns.rdatatype.RRSIG, rdtype)
            assert signatures is not None, f"{owner} has no signature of {rdtype.name}"
            wrong = [one.replace(signature=bytes([one.signature[0] ^ 1]) + one.signature[1:]) for one in signatures]
            writer.replace(owner, dns.rdataset.from_rdata(_TTL, *wrong))


def _rdata(kind: dns.rdatatype.RdataType, text: str) -> dns.rdata.Rdata:
    # In the form of RFC 3597 5 (`\\# LENGTH HEX`) the data may be malformed, which dnspython would not write otherwise.
    words = text.split()
    if words[0] != "\\#":
        return dns.rdata.from_text("IN", kind, text)
    return dns.rdata.GenericRdata(dns.rdataclass.IN, kind, bytes.fromhex("".join(words[2:])))


_Key = tuple[ec.EllipticCurvePrivateKey, dns.rdtypes.ANY.DNSKEY.DNSKEY]


def _new_key() -> _Key:
    private = ec.generate_private_key(ec.SECP256R1())
    return private, dns.dnssec.make_dnskey(private.public_key(), "ECDSAP256SHA256", flags=257)
