"""What the TXT records of MTA-STS and of TLS reports have in common: a domain has one, which begins with its version.

RFC 8461 3.1 and RFC 8460 3 say it in the same words (STS-01, TRPT-01): the strings of a record are joined without
blanks; records that do not begin with the version are those of others; exactly one must remain.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

RECORD_LIMIT: Final = 4096
"""Octets of a record that is read; the records of real domains have less than 100."""


@dataclass(frozen=True, slots=True)
class NoRecord:
    """The DNS has answered, and by its answer the domain has no such record."""

    reason: str
    faulty: bool = False
    """Somebody meant to publish one."""


def faulty(reason: str) -> NoRecord:
    """Somebody meant to publish one, and `reason` is what is wrong with it."""
    return NoRecord(reason, faulty=True)


def only_record(
    answer: Sequence[Sequence[bytes]], version: re.Pattern[bytes], words: str, meant: bytes
) -> bytes | NoRecord:
    """The one record that begins with `version`, of which people say `words`: for each record its strings, in any order
    of records. `meant`: in lower case, what a faulty one begins with. Never raises."""
    joined = [b"".join(strings) for strings in answer]
    ours = [text for text in joined if version.match(text)]
    if not ours:
        wrong = any(text[: len(meant)].lower() == meant for text in joined)
        return NoRecord(f"no TXT record starts with {words}" if joined else "there is no TXT record", wrong)
    if len(ours) > 1:
        return faulty(f"{len(ours)} TXT records start with {words} where one may: they count as none")
    if len(ours[0]) > RECORD_LIMIT:
        return faulty(f"the record has {len(ours[0])} octets; more than {RECORD_LIMIT} are not read")
    return ours[0]
