"""Settings of the operator: `MAILRAIL_OPERATOR_*` in the environment."""

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from mailrail.core.resources.status import CONTROLLER_NAME_LIMIT
from mailrail.kit.settings import BadSettings, ServiceSettings, port_number
from mailrail_operator.model import CONTROLLER_NAME


@dataclass(frozen=True, kw_only=True)
class OperatorSettings(ServiceSettings):
    """What the operator needs besides what every service does."""

    kubeconfig: Path | None = None
    """File with the API server and credentials; absent: the pod's service account, else $KUBECONFIG."""
    namespaces: tuple[str, ...] = ()
    """Namespaces whose resources count; empty = all, which needs cluster-wide rights."""
    controller_name: str = CONTROLLER_NAME
    """Who judges an object, and the field manager of what is written into its status (CFG-11); a second installation
    in one cluster needs another. At most 128 printable characters."""
    former_controller_names: tuple[str, ...] = ()
    """Names of controllers that are gone for good, after a change of the name or an uninstallation: this one judges
    their objects from now on."""
    leader_election: bool = True
    """Lead only while holding a Lease. Off for a single replica with strategy Recreate."""
    lease_name: str = "mailrail-operator"
    """The Lease; two installations in one namespace need two names."""
    lease_namespace: str = ""
    """Where the Lease is; empty = the pod's own namespace."""
    lease_seconds: float = 15.0
    """A lease that was not renewed for so long may be taken over."""
    renew_seconds: float = 10.0
    """A leader that could not renew for so long stops; less than `lease_seconds`."""
    retry_seconds: float = 2.0
    """How often the lease is renewed, or tried for."""
    quiet_seconds: float = 0.05
    """A change is compiled once nothing else came for so long (CFG-06)."""
    debounce_seconds: float = 0.2
    """... and at the latest after so long, or after as long as the last round took (CFG-06: at most 200 ms)."""
    arrival_seconds: float = 5.0
    """How long a new object may miss another before that is said: what is applied together arrives one by one."""
    resync_seconds: float = 300.0
    """How often all objects are listed anew, whatever the watches said."""
    count_seconds: float = 5.0
    """How often the number of objects is compared with the API server's: a watch gap can hide deletions."""
    consumers_seconds: float = 1.0
    """How often the config service is asked who runs what."""
    retry_publish_seconds: float = 2.0
    """When the config service could not be reached, how soon it is tried again."""
    secrets_poll_seconds: float = 15.0
    """How often referenced Secrets are read when they may not be watched."""
    keys_seconds: float = 10.0
    """How often the folder of sealing keys is looked at."""
    status_writers: int = 16
    """Statuses that are written at a time."""
    port_map: tuple[str, ...] = ()
    """What ingress is told under this name (`25=2525`): two listeners that end at one real port are in conflict."""
    ingress_ports: tuple[str, ...] = ()
    """Ports that ingress itself listens on, as PORT=USE (`9100=metrics`): no listener may have them."""
    egress_addresses: tuple[str, ...] = ()
    """Addresses that the world sees of direct delivery: SPF must cover them, and each needs a PTR."""
    dns_check: bool = True
    """Look up the DNS records that domains need (condition DNSConfigured)."""
    dns_seconds: float = 600.0
    """How often each domain is looked up; a changed one is at once."""
    resolver: str = ""
    """HOST:PORT of a DNS server; empty = the system's."""
    mail_probe_target: str = ""
    """HOST:PORT of an MX listener that the leader sends a probe through each minute (decision 20); empty = none."""
    mail_probe_seconds: float = 60.0
    """How often a probe is sent."""
    mail_probe_timeout: float = 45.0
    """Seconds from the connection until a probe must have arrived."""
    queue_target: str = ""
    """Target of the queue, which is asked whether a probe arrived and which transports fail: HOST:PORT or any gRPC
    target; empty: it is not asked, and no probe is sent."""
    transports_seconds: float = 15.0
    """How often the queue is asked which transports fail (condition Healthy of MailTransport)."""
    probe_listen: str = ""
    """HOST:PORT of /livez and /readyz (HTTP); empty = none."""

    def require_controller_names(self) -> None:
        """Raises BadSettings when a name cannot be a field manager, or when this one is gone for good."""
        for name in (self.controller_name, *self.former_controller_names):
            if not (0 < len(name) <= CONTROLLER_NAME_LIMIT and name.isprintable()):
                most = f"takes 1 to {CONTROLLER_NAME_LIMIT} printable characters"
                raise BadSettings(f"MAILRAIL_OPERATOR_CONTROLLER_NAME: {name!r}: {most}")
        if self.controller_name in self.former_controller_names:
            name = self.controller_name
            raise BadSettings(f"MAILRAIL_OPERATOR_FORMER_CONTROLLER_NAMES: remove {name}, which is the name now")

    def checked_ingress_ports(self) -> dict[int, str]:
        """`ingress_ports`: what each is for. Raises BadSettings when one is none."""
        found: dict[int, str] = {}
        for pair in self.ingress_ports:
            digits, _, use = pair.partition("=")
            port = port_number(digits)
            if not port or not use:
                raise BadSettings(f"MAILRAIL_OPERATOR_INGRESS_PORTS: {pair!r}: takes PORT=USE, as 9100=metrics")
            found[port] = use
        return found

    def checked_egress_addresses(self) -> tuple[str, ...]:
        """`egress_addresses`. Raises BadSettings when one is none."""
        for address in self.egress_addresses:
            try:
                ip_address(address)
            except ValueError as error:
                raise BadSettings(f"MAILRAIL_OPERATOR_EGRESS_ADDRESSES: {error}") from None
        return self.egress_addresses
