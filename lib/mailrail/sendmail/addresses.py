"""Who gets a message: words of a command line and fields of a header, with names, lists and local names resolved.

A recipient without a domain is a name of this machine, such as root. It goes where the configuration sends it: by its
alias, else to the default destination, else to the default domain; else it is unknown (SML-03).
"""

from collections.abc import Iterable, Mapping
from typing import Final

from mailrail.core.message.header import Field, HeaderError, mailboxes
from mailrail.core.smtp.address import Address, AddressError, parse_address
from mailrail.sendmail.status import ExitStatus, Stop

RECIPIENTS_LIMIT: Final = 10_000
"""Recipients of one message. Lists with more are the business of a mailing list manager."""
ALIAS_DEPTH: Final = 10
"""Aliases that follow each other; more of them lead in a circle."""
_BARE: Final = "bare.invalid"
"""Stands for the domain that a local name lacks; `.invalid` belongs to nobody (RFC 2606 2)."""


def read_recipients(text: str) -> list[Address]:
    """The addresses of one word of the command line: an address, one with a name, or a list of them. The domain of a
    local name is empty. Raises Stop."""
    if len(text) <= _WORD_LIMIT and "\n" not in text and "\r" not in text:
        try:
            return _of_field(Field(b"", 0, 0, text.encode("utf-8", "surrogateescape")), len(text))
        except HeaderError as error:
            raise Stop(ExitStatus.USAGE, f"the recipient {_shown(text)} is no address: {error}") from error
    raise Stop(ExitStatus.USAGE, f"the recipient {_shown(text)} is no address: it is too long or has several lines")


_WORD_LIMIT: Final = 128 * 1024  # octets of a word of the command line, as Linux takes it


def recipients_of_field(field: Field) -> list[Address]:
    """The addresses of a field. The domain of a local name is empty. Raises Stop: a list of which one address cannot be
    read is sent to nobody."""
    try:
        return _of_field(field, len(field.value))
    except HeaderError as error:
        name = field.name.decode("ascii").title()
        raise Stop(
            ExitStatus.DATA,
            f"the addresses of {name} cannot be read: {error}. Mend the header, or name them as arguments",
        ) from error


def _of_field(field: Field, size: int) -> list[Address]:
    found = mailboxes(field, _BARE, most=RECIPIENTS_LIMIT).addresses
    return [Address(each.local, "") if each.domain == _BARE else each for each in found]


def resolve(
    wanted: Iterable[Address], aliases: Mapping[str, tuple[str, ...]], default_destination: str, default_domain: str
) -> list[Address]:
    """The recipients, each once, in their order (SML-03). Raises Stop for a name that leads nowhere."""
    found: dict[str, Address] = {}
    for each in wanted:
        for final in _destinations(each, aliases, default_destination, default_domain):
            found.setdefault(final.key, final)
        if len(found) > RECIPIENTS_LIMIT:
            raise Stop(
                ExitStatus.USAGE,
                f"there are more than {RECIPIENTS_LIMIT} recipients: send the message in several parts",
            )
    return list(found.values())


def _destinations(
    address: Address, aliases: Mapping[str, tuple[str, ...]], default_destination: str, default_domain: str
) -> list[Address]:
    final: dict[str, Address] = {}
    waiting = [(address, 0)]
    seen: set[str] = set()
    while waiting:
        each, depth = waiting.pop(0)
        if each.domain:
            final.setdefault(each.key, each)
            continue
        name = each.local.lower()
        if name in seen:
            continue
        seen.add(name)
        targets = aliases.get(name)
        if targets is not None and depth < ALIAS_DEPTH:
            waiting += [(target, depth + 1) for text in targets for target in read_recipients(text)]
        elif default_destination:
            reached = completed(default_destination, default_domain)
            final.setdefault(reached.key, reached)
        elif default_domain:
            reached = Address(each.local, default_domain)
            final.setdefault(reached.key, reached)
        else:
            raise Stop(
                ExitStatus.NO_USER,
                f"nobody knows where mail to {_shown(each.local)} goes: set an alias for it, default_destination or"
                " default_domain in the configuration of sendmail",
            )
    return list(final.values())


def completed(text: str, default_domain: str) -> Address:
    """One address, with the default domain where it has none. Raises Stop."""
    text = text.strip().removeprefix("<").removesuffix(">")
    try:
        if "@" in text:
            return parse_address(text)
        if default_domain:
            return parse_address(f"{text}@{default_domain}")
    except AddressError as error:
        raise Stop(ExitStatus.USAGE, f"{_shown(text)} is no address: {error}") from error
    raise Stop(ExitStatus.USAGE, f"{_shown(text)} has no domain: write it as NAME@DOMAIN, or set default_domain")


def _shown(text: str) -> str:
    return repr("".join(c if c.isprintable() else "?" for c in text[:80]))
