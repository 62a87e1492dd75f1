"""Settings of the dmarc service: `MAILRAIL_DMARC_*` in the environment."""

from dataclasses import dataclass

from mailrail.kit.settings import DatabaseSettings


@dataclass(frozen=True, kw_only=True)
class DmarcSettings(DatabaseSettings):
    """What dmarc needs besides what every service does. Every default starts a working service."""

    grpc_listen: str = "127.0.0.1:7006"
    """HOST:PORT of the gRPC server; where other services look for it by default."""
    queue_target: str = "127.0.0.1:7002"
    """Target of the queue, which reports are handed to."""
    resolver: str = "system"
    """HOST:PORT of the DNS server that records and consents are looked up at, or `system`; empty: nothing is looked up,
    and no report is sent."""
    dns_timeout: float = 20.0
    """Seconds for all questions about one report together."""
    reports: bool = True
    """Evaluations are kept and aggregate reports sent. Off: what ingress brings is taken and forgotten."""
    schedule: bool = True
    """Reports go out by themselves, each UTC hour. Off: `mailrail dmarc send` alone sends them."""
    short_intervals: bool = True
    """A domain whose record asks by `ri` for more than one report a day gets them. Off: one a day for all."""
    form: str = "rfc9990"
    """`rfc9990` or `rfc7489`: which RFC reports are written by."""
    form_7489: tuple[str, ...] = ()
    """Domains of report addresses that get the form of RFC 7489 whatever `form` says."""
    honour_sizes: bool = False
    """An address with a size limit in the record gets no larger report, as RFC 7489 wanted. Off: as RFC 9989 has it,
    the limit is ignored."""
    most_octets: int = 700 * 1024
    """Of a packed report, some 20,000 different records. A larger one is sent to nobody: its mail would not come to the
    queue whole, and the queue could not sign it."""
    records: int = 5_000_000
    """Different records that are kept, some 500 octets each; what comes beyond is counted as dropped."""
    zone_records: int = 1_500_000
    """Of these for one zone (the last two labels of a domain), which may be a stranger's own."""
    keep_days: int = 7
    """Days after its period for which a report waits for a DNS, a queue or a signing key that it lacks."""
    list_days: int = 30
    """Days for which reports that are done are listed."""
    organization: str = ""
    """The organization that reports name; empty: the host name of the gateway."""
    extra_contact: str = ""
    """How else to reach it; empty: the report does not say."""
    read: bool = True
    """Reports of others are read from the mailboxes for reports (`reports` of a MailDomain)."""
    read_every: float = 30.0
    """Seconds between looks whether there are new ones."""
    read_any_sender: bool = False
    """Reports count whose sender is not proven, too: anybody can make them up."""
    received_per_hour: int = 1000
    """Reports of one sender (the last two labels of its domain) that are read in an hour; further ones wait."""
    received_days: int = 400
    """Days for which reports of others are kept. The mails with them stay in their mailbox."""
    received_rows: int = 2_000_000
    """Records of all reports of others that are kept, some 400 octets each; of what comes beyond only the sums are."""
