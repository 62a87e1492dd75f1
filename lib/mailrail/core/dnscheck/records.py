"""DKIM (RFC 6376, 8463), DMARC (RFC 9989), MX, TLSRPT (RFC 8460), and the PTR of each address that mail leaves from."""

from ipaddress import ip_address

from mailrail.core.dkim.zone import zone_data
from mailrail.core.dnscheck.answers import DnsAnswer, DnsAnswers, Record, RecordState, judge, shown, tagged, tags
from mailrail.core.dnscheck.needs import Egress, Needs
from mailrail.core.reports.addresses import MailDestination, destinations, mailto
from mailrail.core.smtp.address import parse_address


def dkim(needs: Needs, answers: DnsAnswers) -> list[Record]:
    """The record of each key of ours. Raises Ask."""
    records: list[Record] = []
    for selector, wanted in needs.dkim:
        name = f"{selector}._domainkey.{needs.domain}"
        answer = answers.of("TXT", name)
        key = tags(wanted)["p"]
        published = ["".join(tags(v).get("p", "").split()) for v in answer.values]
        wrong = "the key is revoked (p= is empty)" if published == [""] else "it is not the key of this selector"
        records.append(
            judge(
                "DKIM", "TXT", name, zone_data(wanted), answer, published == [key], f"{name}: {wrong}; publish {wanted}"
            )
        )
    return records + [_some_key(f"{selector}._domainkey.{needs.domain}", answers) for selector in needs.selectors]


def _some_key(name: str, answers: DnsAnswers) -> Record:
    """The record of a key that is not known here."""
    answer = answers.of("TXT", name)
    found = [tags(value) for value in answer.values]
    there = len(found) == 1 and bool(found[0].get("p")) and found[0].get("v", "DKIM1") == "DKIM1"
    revoked = len(found) == 1 and found[0].get("p") == ""
    wrong = (
        "the key is revoked (p= is empty)" if revoked else "there must be one record with a key in p= (RFC 6376 3.6.1)"
    )
    return judge("DKIM", "TXT", name, '"v=DKIM1; k=...; p=..."', answer, there, wrong)


def dmarc(needs: Needs, answers: DnsAnswers) -> list[Record]:
    """The record of the domain or of a parent. Raises Ask."""
    name = f"_dmarc.{needs.domain}"
    value = f'"v=DMARC1; p=none; rua={_mailto(needs, needs.dmarc_reports)}"'
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
            wrong = f"p={shown([policy])} is not a policy"
            if there and start == 0 and not _named(needs.dmarc_reports, answer.values[0]):
                there, wrong = False, f"its rua does not name {needs.dmarc_reports}, where reports are read"
            return [judge("DMARC", "TXT", name, value, answer, there, wrong)]
    return [judge("DMARC", "TXT", name, value, DnsAnswer((), failed), False, "")]


def mx(needs: Needs, answers: DnsAnswers) -> list[Record]:
    """Whether mail comes to the gateway. Raises Ask."""
    if not needs.receives:
        return []
    answer = answers.of("MX", needs.domain)
    if not needs.hostname:
        return [_any_mx(needs.domain, answer, answers)]
    hosts = {value.split()[-1].rstrip(".").casefold() for value in answer.values if value.split()}
    wrong = f"it leads to {shown(sorted(hosts))}, not to {needs.hostname}"
    value = f"10 {needs.hostname}."
    return [judge("MX", "MX", needs.domain, value, answer, needs.hostname.casefold() in hosts, wrong)]


def _any_mx(domain: str, answer: DnsAnswer, answers: DnsAnswers) -> Record:
    """Whether mail for somebody else's domain goes anywhere."""
    value = "10 the host that takes its mail"
    if answer.failed or not answer.values:
        address = answers.of("A", domain)
        if not answer.failed and address.values:
            said = "there is none: mail goes to the address of the domain itself (RFC 5321 5.1)"
            return Record("MX", "MX", domain, value, RecordState.MATCH, said)
        return judge("MX", "MX", domain, value, DnsAnswer((), answer.failed or address.failed), False, "")
    hosts = [value.split()[-1].rstrip(".").casefold() for value in answer.values if value.split()]
    said = f"mail goes to {shown(hosts)}" if any(hosts) else "it accepts no mail (RFC 7505)"
    return Record("MX", "MX", domain, value, RecordState.MATCH, said)


def tls_reports(needs: Needs, answers: DnsAnswers) -> list[Record]:
    """The record that says where reports about TLS go. Raises Ask."""
    if not needs.receives:
        return []
    name = f"_smtp._tls.{needs.domain}"
    answer = tagged(answers.of("TXT", name), "v=TLSRPTv1")
    there = len(answer.values) == 1 and bool(tags(answer.values[0]).get("rua"))
    wrong = "there must be one record with rua= (RFC 8460 3)"
    if there and not _named(needs.tls_reports, answer.values[0]):
        there, wrong = False, f"its rua does not name {needs.tls_reports}, where reports are read"
    value = f'"v=TLSRPTv1; rua={_mailto(needs, needs.tls_reports)}"'
    return [judge("TLSRPT", "TXT", name, value, answer, there, wrong)]


def _mailto(needs: Needs, address: str) -> str:
    """The URI for reports: of the address that takes them, or of the postmaster."""
    return mailto(parse_address(address or f"postmaster@{needs.domain}"))


def _named(address: str, record: str) -> bool:
    """Whether a record sends reports to the address of ours; True: there is none of ours."""
    if not address:
        return True
    found = destinations(tags(record).get("rua", "").split(","), post=True).found
    wanted = parse_address(address).key
    return any(isinstance(one, MailDestination) and one.address.key == wanted for one in found)


def ptr(egress: Egress, answers: DnsAnswers) -> Record:
    """The name of the address must lead back to it; that it is the EHLO name is better, and said."""
    name = ip_address(egress.address).reverse_pointer
    value = f"{egress.hostname}." if egress.hostname else "a name that leads back to it"
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
    named = not egress.hostname or egress.hostname.casefold() in confirmed
    note = "" if named else f"it is {confirmed[0]}; the EHLO name would be better"
    return Record("PTR", "PTR", name, value, RecordState.MATCH, note)
