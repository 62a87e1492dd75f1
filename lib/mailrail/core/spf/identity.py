"""Which identities of a client are checked: its HELO name, and the domain of MAIL FROM (RFC 7208 2.3, 2.4)."""

from mailrail.core.smtp.address import Address
from mailrail.core.spf.evaluation import domain_of
from mailrail.core.spf.result import SpfIdentity, SpfScope

_NOBODY = "postmaster"


def helo_identity(helo: str) -> SpfIdentity | None:
    """The identity of a HELO or EHLO name, which is checked besides MAIL FROM. None for what is no domain name with
    a dot in it (SPF-11a): an address literal, or the name of a lone machine."""
    return SpfIdentity(SpfScope.HELO, _NOBODY, helo) if domain_of(helo) is not None else None


def mail_from_identity(sender: Address | None, helo: str) -> SpfIdentity:
    """The identity of MAIL FROM. A null reverse-path (None) is `postmaster` at the HELO name (SPF-10)."""
    if sender is None:
        return SpfIdentity(SpfScope.MAIL_FROM, _NOBODY, helo)
    return SpfIdentity(SpfScope.MAIL_FROM, sender.local or _NOBODY, sender.domain)
