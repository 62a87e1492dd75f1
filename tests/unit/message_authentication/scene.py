"""A message, who hands it over, and a DNS of a table in which all of it is right; tests change what they are about."""

from dataclasses import dataclass, field
from ipaddress import ip_address

from mailrail.core.dmarc.disposition import EnforcementRules
from mailrail.core.lookups import answered
from mailrail.core.message_authentication.authenticate import authenticate
from mailrail.core.message_authentication.content import hash_content
from mailrail.core.message_authentication.verdict import AuthenticationRules, ClientIdentity, MessageVerdict
from mailrail.core.smtp.address import Address, parse_address

from testkit.dns_table import DnsTable
from testkit.signed_mail import ed25519_key, published, signed_naively

NOW = 1_767_225_600.0
MESSAGE = b"From: Ann <ann@example.com>\r\nTo: bob@example.net\r\nSubject: lunch\r\n\r\nAt one?\r\n"
CLIENT = "192.0.2.1"
ELSEWHERE = "198.51.100.9"
SEALERS = EnforcementRules(trusted_sealers=frozenset({"lists.example"}))


def signed(message: bytes = MESSAGE, domain: str = "example.com") -> bytes:
    return signed_naively(message, {"d": domain}, ed25519_key())


def usual_dns() -> DnsTable:
    """example.com has SPF for CLIENT, a key and p=reject; mail.example.com is the client's name."""
    dns = DnsTable()
    dns.add("example.com", "TXT", f"v=spf1 ip4:{CLIENT} -all")
    dns.add("mail.example.com", "TXT", f"v=spf1 ip4:{CLIENT} -all")
    dns.add("sel._domainkey.example.com", "TXT", published(ed25519_key()))
    dns.add("_dmarc.example.com", "TXT", "v=DMARC1; p=reject")
    dns.add(ip_address(CLIENT).reverse_pointer, "PTR", "mail.example.com")
    dns.add("mail.example.com", "A", CLIENT)
    return dns


@dataclass
class Scene:
    """One message on its way in."""

    message: bytes = field(default_factory=signed)
    client: str = CLIENT
    helo: str = "mail.example.com"
    sender: str = "ann@example.com"
    rules: AuthenticationRules = field(default_factory=lambda: AuthenticationRules("mx.here.example"))
    dns: DnsTable = field(default_factory=usual_dns)

    @property
    def identity(self) -> ClientIdentity:
        sender: Address | None = parse_address(self.sender) if self.sender else None
        return ClientIdentity(ip_address(self.client), self.helo, sender)

    def judged(self) -> MessageVerdict:
        """The verdict."""
        return answered(authenticate(self.identity, hash_content(self.message, NOW), self.rules), self.dns)
