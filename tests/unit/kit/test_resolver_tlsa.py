"""What dnspython reads for us of TLSA records."""

import dns.rdata
import dns.rdataclass
import dns.rdatatype
import pytest

from mailrail.core.dane.tlsa import TlsaRecord
from mailrail.kit import resolver


@pytest.mark.parametrize("data", [b"\xab\xcd", b"", bytes(31), bytes(33), bytes(65)])
@pytest.mark.parametrize("matching", [1, 2])
def test_a_digest_of_a_wrong_length_is_read_as_it_is_and_spoils_no_answer_DANE_18(matching: int, data: bytes) -> None:
    assert resolver.LARGEST
    wire = bytes((3, 1, matching)) + data
    found = dns.rdata.from_wire(dns.rdataclass.IN, dns.rdatatype.TLSA, wire, 0, len(wire))
    assert found.to_generic().data == wire
    assert TlsaRecord.from_wire(wire) == (3, 1, matching, data)
