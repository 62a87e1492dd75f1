"""A DNS of a table for the tests of DMARC, which remembers what it was asked."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mailrail.core.dmarc.authors import AuthorDomains
from mailrail.core.dmarc.evaluate import DmarcEvaluation, DmarcVerdict, evaluate
from mailrail.core.dmarc.facts import NO_SPF, DkimFact, SpfFact
from mailrail.core.dmarc.psl import SuffixList
from mailrail.core.lookups import NO_DATA, NO_NAME, DnsOutcome, DnsQuestion, LookupAnswer, answered

TROUBLE = LookupAnswer(DnsOutcome.TROUBLE, text="SERVFAIL")


@dataclass
class Zone:
    """Records by name: texts for `_dmarc.` names, or an answer for any."""

    texts: Mapping[str, str | list[str] | LookupAnswer]
    existing: frozenset[str] = frozenset()
    """Names that have records of other types."""
    asked: list[DnsQuestion] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Of the TXT questions, in their order."""
        return [question.name for question in self.asked if question.kind == "TXT"]

    def answer(self, question: DnsQuestion) -> LookupAnswer:
        self.asked.append(question)
        found = self.texts.get(question.name)
        if isinstance(found, LookupAnswer):
            return found
        if found is not None and question.kind == "TXT":
            texts = [found] if isinstance(found, str) else found
            return LookupAnswer(DnsOutcome.FOUND, tuple(text.encode("latin-1") for text in texts))
        known = [*self.texts, *self.existing]
        if any(name == question.name or name.endswith(f".{question.name}") for name in known):
            return NO_DATA
        return NO_NAME


def at(**domains: str | list[str] | LookupAnswer) -> dict[str, Any]:
    """DMARC records by domain, with `_` for a dot."""
    return {f"_dmarc.{name.replace('_', '.')}": value for name, value in domains.items()}


def judged(
    zone: Zone,
    *authors: str,
    spf: SpfFact = NO_SPF,
    dkim: Iterable[DkimFact] = (),
    suffixes: SuffixList | None = None,
) -> DmarcEvaluation:
    """The evaluation of a message of these author domains."""
    return answered(evaluate(AuthorDomains(authors), spf, tuple(dkim), suffixes=suffixes), zone.answer)


def verdict(
    zone: Zone,
    author: str,
    *,
    spf: SpfFact = NO_SPF,
    dkim: Iterable[DkimFact] = (),
    suffixes: SuffixList | None = None,
) -> DmarcVerdict:
    """The one verdict of a message of one author domain."""
    (found,) = judged(zone, author, spf=spf, dkim=dkim, suffixes=suffixes).verdicts
    return found
