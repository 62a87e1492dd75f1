"""The public suffix mode of RFC 7489 3.2, kept as a setting (DMRC-20a): a list instead of the walk says where an
organization begins."""

from functools import cache
from io import BytesIO
from typing import Protocol

from publicsuffixlist import PublicSuffixList

LIST_LIMIT = 4 * 1024 * 1024
"""Octets of a list that replaces ours, which has 300 KiB."""


class SuffixListError(ValueError):
    """The list that was given cannot be used; the text says why."""


class SuffixList(Protocol):
    """Knows the public suffixes."""

    def organizational_domain(self, domain: str) -> str:
        """The public suffix of the domain with one label more; the domain itself if it is a public suffix."""
        ...


class _List:
    def __init__(self, rules: PublicSuffixList) -> None:
        self._rules = rules

    def organizational_domain(self, domain: str) -> str:
        found: str | None = self._rules.privatesuffix(domain)
        return domain if found is None else found


@cache
def packaged_list() -> SuffixList:
    """The list that the package publicsuffixlist brings; read when it is first asked for, since that takes a second
    and most installations never need it."""
    return _List(PublicSuffixList())


def read_list(octets: bytes) -> SuffixList:
    """A list in the form of publicsuffix.org that replaces the packaged one. Raises SuffixListError."""
    if len(octets) > LIST_LIMIT:
        raise SuffixListError(f"the list has more than {LIST_LIMIT} octets; get it from publicsuffix.org")
    try:
        text = octets.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SuffixListError("the list is not UTF-8; get it from publicsuffix.org") from error
    rules = [line.strip() for line in text.splitlines()]
    if not any(line and not line.startswith("//") for line in rules):
        raise SuffixListError("the list has no rules; get it from publicsuffix.org")
    try:
        return _List(PublicSuffixList(source=BytesIO(octets)))
    except (ValueError, UnicodeError) as error:
        raise SuffixListError("the list has a rule that is no domain name; get it from publicsuffix.org") from error
