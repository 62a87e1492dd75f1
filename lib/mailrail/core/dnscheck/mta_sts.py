"""MTA-STS (RFC 8461): the record of a policy, its host, and whether a policy of ours names the MX hosts.

The record of an MTA-STS policy that we serve is told once the policy is served, and not before (STS-23b): whoever saw
the new id too early would keep the old policy under it.
"""

from typing import Final

from mailrail.core.dnscheck.answers import DnsAnswer, DnsAnswers, Record, RecordState, judge, shown, tagged
from mailrail.core.dnscheck.needs import Needs
from mailrail.core.mtasts.own import own_record
from mailrail.core.mtasts.policy import Mode, Policy
from mailrail.core.mtasts.record import POLICY_LABEL, StsRecord, read_records, record_name

NOT_SERVED: Final = "the policy is not served yet by every policy process; the record is told once it is"


def mta_sts(needs: Needs, answers: DnsAnswers) -> list[Record]:
    """The record and its policy host; of a policy of ours, also whether it names the MX hosts. Raises Ask."""
    if not needs.receives and needs.policy is None:
        return []
    answer = tagged(answers.of("TXT", record_name(needs.domain)), "v=STSv1")
    record = _sts_record(needs, answer)
    records = [record]
    host = f"{POLICY_LABEL}.{needs.domain}"
    policy = answers.of("A", host)
    if (record.state is RecordState.MATCH or needs.policy is not None) and not policy.values:
        missing = "its policy host has no address (RFC 8461 3.3)"
        state = RecordState.UNKNOWN if policy.failed else RecordState.MISSING
        records.append(Record("MTA-STS", "A", host, "the address of a web server with the policy", state, missing))
    if needs.policy is not None and needs.policy.mode is not Mode.NONE:
        records += _hosts_outside(needs.domain, needs.policy, answers)
    return records


def _sts_record(needs: Needs, answer: DnsAnswer) -> Record:
    name = record_name(needs.domain)
    found = read_records([[value.encode()] for value in answer.values])
    if needs.policy is None:
        wrong = "there must be one record with an id of letters and digits (RFC 8461 3.1)"
        return judge("MTA-STS", "TXT", name, '"v=STSv1; id=1"', answer, isinstance(found, StsRecord), wrong)
    wanted = own_record(needs.policy)
    if not needs.policy_served and found != wanted and not answer.failed:
        # STS-23b: the record that is there belongs to the policy that is served still.
        if isinstance(found, StsRecord):
            return Record("MTA-STS", "TXT", name, f'"{found}"', RecordState.MATCH, f"a new policy: {NOT_SERVED}")
        return Record("MTA-STS", "TXT", name, "(not yet)", RecordState.UNKNOWN, NOT_SERVED, held_back=True)
    wrong = f"{name}: it is not the record of the policy that is served; publish {wanted}"
    return judge("MTA-STS", "TXT", name, f'"{wanted}"', answer, found == wanted, wrong)


def _hosts_outside(domain: str, policy: Policy, answers: DnsAnswers) -> list[Record]:
    """The MX hosts that the policy keeps others from: with `enforce` they get no mail."""
    answer = answers.of("MX", domain)
    hosts = {value.split()[-1].rstrip(".").casefold() for value in answer.values if value.split()}
    outside = sorted(host for host in hosts if host and not policy.matches(host))
    if not outside:
        return []
    wrong = f"the policy does not name {shown(outside)}; add it to spec.mtaSts.mx, or take it out of the MX records"
    return [Record("MTA-STS", "MX", domain, ", ".join(policy.mx)[:4096], RecordState.MISMATCH, wrong)]
