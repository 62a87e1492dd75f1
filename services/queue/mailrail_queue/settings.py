"""Settings of the queue service: `MAILRAIL_QUEUE_*` in the environment."""

from dataclasses import dataclass

from mailrail.kit.settings import DatabaseSettings


@dataclass(frozen=True, kw_only=True)
class QueueSettings(DatabaseSettings):
    """What the queue needs besides what every service does. Every default starts a working service."""

    unsafe: bool = False
    """Serve although Postgres runs with fsync or full_page_writes off, so that accepted mail may be lost (ACC-06)."""
    peer_host: str = ""
    """Name or IP address under which other queue replicas reach this one; empty: that of `grpc_listen`."""
    admin_connections: int = 6
    """Most database connections of administration and mailbox calls; the message path has some seventeen of its own."""

    batch_messages: int = 256
    """Most messages that share one commit."""
    batch_bytes: int = 4 * 1024 * 1024
    """Most octets of content that share one commit (ACC-03)."""
    linger: float = 0.001
    """Seconds that a commit waits for company while mail comes in steadily; none when idle (performance rule 2)."""
    stream_credit: int = 32 * 1024 * 1024
    """Octets that a caller of Enqueue may have under way on one stream (ACC-07)."""

    upload_octets: int = 4 * 1024 * 1024 * 1024
    """Octets of large messages that are stored and not committed, over all queue processes: each takes its part of it.
    Those given up count for a minute more. New ones hear 452 4.3.1 from three quarters on, those under way from all of
    it on; small messages never. What those still lack by their SIZE that will be whole sooner is kept for them, up to
    half of it. Half of the smallest volume that the chart makes (ACC-07)."""

    lease_seconds: float = 120.0
    """How long a lease lasts (LSE-01)."""
    handout_seconds: float = 60.0
    """A lease with less left is not handed on (LSE-01)."""
    born_leased_bytes: int = 64 * 1024 * 1024
    """Content in memory that waits for outbound; past it mail is stored due (LSE-06)."""
    pending_deliveries: int = 20_000
    """Deliveries in memory that wait for outbound, some 4 KiB each besides their content; past it mail is stored due
    (LSE-06)."""
    born_leased_rounds: int = 30
    """Windows full of fresh mail that may wait in memory for one site; past it mail is stored due."""

    look_seconds: float = 1.0
    """An owner looks for due work this often, whatever it was told (SHD-02)."""
    heartbeat_seconds: float = 2.0
    """How often a queue process says that it lives, and looks who else does."""
    dead_seconds: float = 10.0
    """A process silent for so long loses its shards (SHD-01)."""
    sweep_seconds: float = 10.0
    """How often leases that ran out are looked for; within 30 s by contract (LSE-04)."""
    goodbye_seconds: float = 3.0
    """How long an outbound process that is back may take to list what it works on; the rest is due again (LSE-02)."""
    history_days: int = 14
    """Days for which the history keeps a recipient that is final (FIN-03)."""
    keep_content_seconds: float = 600.0
    """Content outlives its last recipient by at least this (FIN-02)."""
    keep_upload_seconds: float = 3600.0
    """Bodies whose commit never came are swept after this (ACC-02)."""
    upkeep_seconds: float = 30.0
    """How often the sweepers run."""
    count_seconds: float = 15.0
    """How often due mail is counted for the metrics of the backlog."""
    named_sites: int = 10
    """Sites in backoff that a metric names, with what waits for each. Their names are recipient domains; 0: none."""
