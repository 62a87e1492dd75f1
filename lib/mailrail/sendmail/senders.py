"""Who a message is from: the sender of the envelope, and the author that a header without one gets."""

from dataclasses import dataclass

from mailrail.core.smtp.address import Address, AddressError, domain_to_ascii, parse_address
from mailrail.sendmail.addresses import completed
from mailrail.sendmail.settings import RewriteFrom, SubmissionSettings, wrong


@dataclass(frozen=True, slots=True)
class Senders:
    """The three addresses that a message may need."""

    envelope: str
    """Of MAIL; empty: the null reverse-path."""
    author: Address
    """Of a From that is missing."""
    replacement: Address
    """Of a From that is rewritten."""


def senders_of(given: str | None, settings: SubmissionSettings, *, user: str, host: str) -> Senders:
    """`given`: by -f; `user` and `host`: who calls, where. Raises Stop."""
    named = None
    if given and ("@" in given or settings.default_domain):
        named = completed(given, settings.default_domain)
    own = settings.author or _own(named, settings, user, host)
    if settings.rewrite_from is RewriteFrom.ALWAYS:
        named = own
    if given == "":
        return Senders("", own, own)
    # A sender without a domain is a name of this machine, such as root: nobody could answer to it.
    return Senders(str(named or own), named or own, own)


def _own(named: Address | None, settings: SubmissionSettings, user: str, host: str) -> Address:
    if named is not None:
        return named
    for text in (settings.login, f"{user}@{settings.default_domain}", f"{user}@{host}", f"{user}@localhost"):
        try:
            if "@" in text.rstrip("@"):
                return parse_address(text)
        except AddressError:
            continue
    raise wrong(f"the mail has no sender: set `from` in {settings.source}, or name one with -f")


def hello_name(settings: SubmissionSettings, host: str) -> str:
    """What EHLO says: the configured name, or this machine's where it is one."""
    if settings.hello:
        return settings.hello
    try:
        return domain_to_ascii(host)
    except AddressError:
        return "localhost"
