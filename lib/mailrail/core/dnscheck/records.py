"""DKIM (RFC 6376, 8463), DMARC (RFC 9989), MX, TLSRPT (RFC 8460), and the PTR of each address that mail leaves from."""

from ipaddress import ip_address

from mailrail.core.dnscheck.answers import DnsAnswer, DnsAnswers, Record, RecordState, judge, shown, tagged, tags
from mailrail.core.dnscheck.needs import Egress, Needs


def dkim(needs: Needs, answers: DnsAnswers) -> list[Record]:
    """The record of each key that signs. Raises Ask."""
    records: list[Record] = []
    for selector, wanted in needs.dkim:
        name = f"{selector}._domainkey.{needs.domain}"
        answer = answers.of("TXT", name)
        key = tags(wanted)["p"]
        published = ["".join(tags(v).get("p", "").split()) for v in answer.values]
        wrong = "the key is revoked (p= is empty)" if published == [""] else "it is not the key that signs"
        records.append(
            judge("DKIM", "TXT", name, f'"{wanted}"', answer, published == [key], f"{name}: {wrong}; publish {wanted}")
        )
    return records


def dmarc(needs: Needs, answers: DnsAnswers) -> list[Record]:
    """The record of the domain or of a parent. Raises Ask."""
    name = f"_dmarc.{needs.domain}"
    value = f'"v=DMARC1; p=none; rua=mailto:postmaster@{needs.domain}"'
    labels = needs.domain.split(".")
    failed = False
    for start in range(max(1, len(labels) - 1)):
        answer = tagged(answers.of("TXT", "_dmarc." + ".".join(labels[start:])), "v=DMARC1")
        failed = failed or answer.failed
        if len(answer.values) > 1:
            return [judge("DMARC", "TXT", name, value, answer, False, "there is more than one v=DMARC1 record")]
        if answer.values:
            policy = tags(answer.values[0]).get("p", "")
            there = start > 0 or policy in ("none", "quarantine", "reject")
            return [judge("DMARC", "TXT", name, value, answer, there, f"p={shown([policy])} is not a policy")]
    return [judge("DMARC", "TXT", name, value, DnsAnswer((), failed), False, "")]


def mx(needs: Needs, answers: DnsAnswers) -> list[Record]:
    """Whether mail comes to the gateway. Raises Ask."""
    if not needs.receives:
        return []
    answer = answers.of("MX", needs.domain)
    hosts = {value.split()[-1].rstrip(".").casefold() for value in answer.values if value.split()}
    wrong = f"it leads to {shown(sorted(hosts))}, not to {needs.hostname}"
    value = f"10 {needs.hostname}."
    return [judge("MX", "MX", needs.domain, value, answer, needs.hostname.casefold() in hosts, wrong)]


def tls_reports(needs: Needs, answers: DnsAnswers) -> list[Record]:
    """The record that says where reports about TLS go. Raises Ask."""
    if not needs.receives:
        return []
    name = f"_smtp._tls.{needs.domain}"
    answer = tagged(answers.of("TXT", name), "v=TLSRPTv1")
    there = len(answer.values) == 1 and bool(tags(answer.values[0]).get("rua"))
    value = f'"v=TLSRPTv1; rua=mailto:postmaster@{needs.domain}"'
    return [judge("TLSRPT", "TXT", name, value, answer, there, "there must be one record with rua= (RFC 8460 3)")]


def ptr(egress: Egress, answers: DnsAnswers) -> Record:
    """The name of the address must lead back to it; that it is the EHLO name is better, and said."""
    name = ip_address(egress.address).reverse_pointer
    value = f"{egress.hostname}."
    answer = answers.of("PTR", egress.address)
    hosts = [v.rstrip(".").casefold() for v in answer.values][:10]
    if answer.failed or not hosts:
        return judge("PTR", "PTR", name, value, answer, False, "")
    address = ip_address(egress.address)
    back = {host: answers.of("A", host) for host in hosts}
    confirmed = [h for h in hosts if any(ip_address(v) == address for v in back[h].values)]
    if not confirmed:
        if any(a.failed for a in back.values()):
            return Record("PTR", "PTR", name, value, RecordState.UNKNOWN, "the lookup of its name failed")
        wrong = f"{egress.address} is called {shown(hosts)}, which does not resolve back to it"
        return Record("PTR", "PTR", name, value, RecordState.MISMATCH, wrong)
    note = "" if egress.hostname.casefold() in confirmed else f"it is {confirmed[0]}; the EHLO name would be better"
    return Record("PTR", "PTR", name, value, RecordState.MATCH, note)
