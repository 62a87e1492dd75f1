"""The DNS tree walk: the organizational domain of a name, and the record for mail of it (RFC 9989 4.10)."""

from dataclasses import dataclass
from typing import Final

from mailrail.core.dmarc.record import DmarcRecord, Psd, read_records, record_name
from mailrail.core.lookups import NAME_LIMIT, NO_NAME, Asking, DnsOutcome, DnsQuestion, LookupAnswer

QUERIES_LIMIT: Final = 8
"""Questions of one walk (DMRC-05)."""
_TAIL: Final = QUERIES_LIMIT - 1
"""Labels of the second name that is asked, if the first has more of them."""


@dataclass(frozen=True, slots=True)
class RecordAt:
    """What the DNS says of DMARC at one name."""

    domain: str
    record: DmarcRecord | None
    """The single valid one."""
    trouble: str | None = None
    """What went wrong, in words; None: the DNS answered."""
    permanent: bool = False
    """Of trouble: to ask again would not help."""


def ask(question: DnsQuestion) -> Asking[LookupAnswer]:
    """The answer to one question."""
    if len(question.name) > NAME_LIMIT:
        return NO_NAME  # no such name can be in the DNS
    (answer,) = yield (question,)
    return answer


def record_at(domain: str) -> Asking[RecordAt]:
    """What is published at one domain (DMRC-02)."""
    answer = yield from ask(DnsQuestion(record_name(domain), "TXT"))
    if answer.outcome is DnsOutcome.TROUBLE:
        return RecordAt(domain, None, answer.text or "the DNS did not answer", answer.permanent)
    return RecordAt(domain, read_records(answer.texts))


def names(domain: str) -> tuple[str, ...]:
    """The names of a walk that nothing stops: the domain, then what its last seven labels leave, one label less each
    time down to the last (DMRC-05)."""
    labels = domain.split(".")
    first = max(1, len(labels) - _TAIL)
    return (domain, *(".".join(labels[at:]) for at in range(first, len(labels))))


@dataclass(frozen=True, slots=True)
class TreeWalk:
    """What one walk found."""

    start: str
    found: tuple[RecordAt, ...]
    """Names with a single valid record, longest first."""
    trouble: RecordAt | None = None
    """Where the walk ended for want of an answer."""

    @property
    def organizational_domain(self) -> str:
        """DMRC-07. Says nothing about a walk with trouble."""
        for at in self.found:
            if at.record is not None and at.record.psd is Psd.NO:
                return at.domain
            if at.record is not None and at.record.psd is Psd.YES and at.domain != self.start:
                return below(at.domain, self.start)
        return self.found[-1].domain if self.found else self.start

    @property
    def policy(self) -> RecordAt | None:
        """DMRC-08: of the domain itself, else of its organizational domain, else of the public suffix above that. A
        record between them is not used."""
        organizational = self.organizational_domain
        by_domain = {at.domain: at for at in self.found}
        suffix = next((at for at in self.found if at.record is not None and at.record.psd is Psd.YES), None)
        return by_domain.get(self.start) or by_domain.get(organizational) or suffix


def below(parent: str, domain: str) -> str:
    """The name one label below `parent` on the way to `domain`, which lies below it."""
    labels = domain.split(".")
    return ".".join(labels[len(labels) - len(parent.split(".")) - 1 :])


def is_at_or_below(domain: str, parent: str) -> bool:
    """Whether a name is `parent` or lies below it."""
    return domain == parent or domain.endswith(f".{parent}")


def walk(domain: str) -> Asking[TreeWalk]:
    """Walk from a domain to the top of the tree, one name after the other, since each may be the last (DMRC-06)."""
    found: list[RecordAt] = []
    for name in names(domain):
        at = yield from record_at(name)
        if at.trouble is not None:
            return TreeWalk(domain, tuple(found), at)
        if at.record is not None:
            found.append(at)
            if at.record.psd is not Psd.UNKNOWN:
                break
    return TreeWalk(domain, tuple(found))
