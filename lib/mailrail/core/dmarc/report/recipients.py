"""Who gets the aggregate report of a domain: the addresses of its record, those of others only with their consent
(RFC 9990 4; DAGG-14, DAGG-15, DAGG-16, DMRC-18a).

Without that, anybody could have the reports of the world sent to an address that never asked for them.
"""

from dataclasses import dataclass

from mailrail.core.dmarc.discovery import Discoverer
from mailrail.core.dmarc.record import DmarcRecord, read_records
from mailrail.core.lookups import NAME_LIMIT, Asking, DnsOutcome, DnsQuestion, remembering, together
from mailrail.core.reports.addresses import DESTINATIONS_LIMIT, MailDestination, SkippedUri, destinations, mailto


@dataclass(frozen=True, slots=True)
class ReportRecipients:
    """Where the report goes."""

    addresses: tuple[MailDestination, ...]
    """In the order of the record, each once. DAGG-12: a size that one names is kept for those who look, and kept by
    nobody (RFC 9989 4.8)."""
    left_out: tuple[SkippedUri, ...]
    """With reasons, which the report may tell those who get it (DAGG-20)."""
    trouble: bool = False
    """The DNS did not answer about some, who may get the report later (DAGG-15)."""


@dataclass(frozen=True, slots=True)
class _Consent:
    """Whether the host of an address wants reports on the domain."""

    reason: str = ""
    """Why not; empty: it does."""
    trouble: bool = False
    instead: tuple[MailDestination, ...] = ()
    """Its own addresses, which take the place of the one in the record."""


def report_recipients(domain: str, record: DmarcRecord, discoverer: Discoverer) -> Asking[ReportRecipients]:
    """Ask who gets the report. `domain`: where the record was found, in lower-case A-labels.

    DMRC-18a: a record without `rua` has nobody, and addresses of mail alone count.
    """
    said = destinations(record.rua, post=False)
    mail = [one for one in said.found if isinstance(one, MailDestination)]
    hosts = list(dict.fromkeys(one.address.domain for one in mail))
    consents = yield from remembering(together([_consent(domain, host, discoverer) for host in hosts]))
    by_host = dict(zip(hosts, consents, strict=True))
    found: dict[str, MailDestination] = {}
    left_out = list(said.skipped)
    for one in mail:
        consent = by_host[one.address.domain]
        if consent.reason:
            left_out.append(SkippedUri(mailto(one.address), consent.reason))
        for each in (consent.instead or (one,)) if not consent.reason else ():
            if str(each.address) in found or len(found) < DESTINATIONS_LIMIT:
                found.setdefault(str(each.address), each)
    return ReportRecipients(tuple(found.values()), tuple(left_out), any(consent.trouble for consent in consents))


def _consent(domain: str, host: str, discoverer: Discoverer) -> Asking[_Consent]:
    """DAGG-14: within an organization nobody is asked. The host of another says in its own DNS that it wants them."""
    if host == domain:
        return _Consent()
    ours, theirs = yield from together([discoverer.organization(domain), discoverer.organization(host)])
    if ours.domain is not None and ours.domain == theirs.domain:
        return _Consent()
    name = f"{domain}._report._dmarc.{host}"
    if len(name) > NAME_LIMIT:
        return _Consent(f"{host} cannot confirm that it wants reports: the name of its record would be too long")
    (answer,) = yield (DnsQuestion(name, "TXT"),)
    if answer.outcome is DnsOutcome.TROUBLE:
        return _Consent(f"the DNS did not answer whether {host} wants reports on {domain}", trouble=True)
    # Several may be there: each begins with the version, as a record of DMARC does, or is somebody else's.
    records = [record for text in answer.texts if (record := read_records([text])) is not None]
    if not records:
        if ours.domain is None or theirs.domain is None:
            about = domain if ours.domain is None else host
            return _Consent(f"the DNS did not answer where the organization of {about} begins", trouble=True)
        return _Consent(f"{host} does not confirm that it wants reports on {domain}: there is no record at {name}")
    own = [uri for record in records for uri in record.rua]
    if not own:
        return _Consent()
    # DAGG-16: its address counts, if it is at the same host: it must not hand reports on to a third one.
    instead = tuple(
        one
        for one in destinations(own, post=False).found
        if isinstance(one, MailDestination) and one.address.domain == host
    )
    if not instead:
        return _Consent(f"{host} has reports on {domain} sent to another host, which it may not: see {name}")
    return _Consent(instead=instead)
