"""SPF (RFC 7208): a receiver must let every address pass that the domain's mail can leave from."""

from collections.abc import Iterable, Iterator
from ipaddress import ip_address

from mailrail.core.dnscheck.answers import Ask, DnsAnswer, DnsAnswers, Record, RecordState, judge
from mailrail.core.dnscheck.needs import Egress, Needs
from mailrail.core.spf.evaluation import SpfReceiver, check_host
from mailrail.core.spf.record import records_among
from mailrail.core.spf.result import SpfIdentity, SpfResult, SpfScope, SpfVerdict


def spf(needs: Needs, answers: DnsAnswers) -> list[Record]:
    """The record, and whether it passes each egress address. Raises Ask."""
    mechanisms = " ".join(_ip_terms(e.address for e in needs.egress)) or "mx"
    value = f'"v=spf1 {mechanisms} -all"'
    answer = answers.of("TXT", needs.domain)
    published = records_among([text.encode("utf-8", "replace") for text in answer.values])
    found = DnsAnswer(answer.values if published else (), answer.failed)
    record = judge("SPF", "TXT", needs.domain, value, found, True, "")
    if record.state is not RecordState.MATCH:
        return [record]

    def judged(state: RecordState, message: str) -> list[Record]:
        return [Record("SPF", "TXT", needs.domain, value, state, message)]

    if len(published) > 1:
        message = "there is more than one v=spf1 record; receivers treat that as an error (RFC 7208 4.5)"
        return judged(RecordState.MISMATCH, message)
    uncovered: list[str] = []
    waiting = False
    for egress in needs.egress:
        try:
            verdict = _verdict(egress, needs.domain, answers)
        except Ask:
            waiting = True
            continue
        if verdict.result is SpfResult.TEMPERROR:
            return judged(RecordState.UNKNOWN, verdict.reason)
        if verdict.result in (SpfResult.PERMERROR, SpfResult.NONE):
            return judged(RecordState.MISMATCH, verdict.reason)
        if verdict.result is not SpfResult.PASS and verdict.local_part_counted:
            return judged(
                RecordState.UNKNOWN, f"whether it passes {egress.address} depends on the local part of the sender"
            )
        if verdict.result is not SpfResult.PASS:
            uncovered.append(egress.address)
    if waiting:
        raise Ask
    if uncovered:
        return judged(
            RecordState.MISMATCH, f"it does not pass {', '.join(uncovered)}; add {' '.join(_ip_terms(uncovered))}"
        )
    return [record]


def _ip_terms(addresses: Iterable[str]) -> Iterator[str]:
    for address in map(ip_address, addresses):
        yield f"ip{address.version}:{address}"


def _verdict(egress: Egress, domain: str, answers: DnsAnswers) -> SpfVerdict:
    """What a receiver makes of mail from this address. Raises Ask."""
    identity = SpfIdentity(SpfScope.MAIL_FROM, "postmaster", domain)
    client = ip_address(egress.address)
    asking = check_host(identity, client, egress.hostname, SpfReceiver(explains=False))
    try:
        questions = next(asking)
        while True:
            questions = asking.send(answers.of_lookups(questions, client))
    except StopIteration as done:
        verdict: SpfVerdict = done.value
        return verdict
