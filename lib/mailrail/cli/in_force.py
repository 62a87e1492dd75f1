"""The revision in force, for commands that speak of domains of ours."""

from dataclasses import dataclass
from typing import Any

from mailrail.cli import output
from mailrail.cli.connection import TIMEOUT
from mailrail.core.mtasts.own import own_policies, own_record
from mailrail.core.mtasts.record import record_name
from mailrail.core.revision.revision import Revision, Role, UnreadableRevision, decode
from mailrail.pb.config.v1 import config_pb2, config_pb2_grpc


@dataclass(frozen=True, slots=True)
class InForce:
    """What the config service has published last."""

    revision: Revision
    """Empty before the first one."""
    policy_served: bool
    """Every policy process that runs has it, so what it says of MTA-STS is what others fetch."""

    def mta_sts(self) -> list[dict[str, Any]]:
        """The MTA-STS policies of our domains as others see them, by the domain's name, with the record to publish.

        `record` is None until every policy process serves the policy: published earlier, it would keep others on the
        old one (STS-23).
        """
        return [
            {
                "domain": name,
                "mode": policy.mode.value,
                "max_age": policy.max_age,
                "mx": list(policy.mx),
                "policy": str(policy),
                "record": f'{record_name(name)}. IN TXT "{own_record(policy)}"' if self.policy_served else None,
            }
            for name, policy in sorted(own_policies(self.revision).items())
        ]


async def in_force(channel: Any) -> InForce:
    """Ask the config service. Ends the command where this version cannot read the revision."""
    stub: config_pb2_grpc.ConfigServiceAsyncStub = config_pb2_grpc.ConfigServiceStub(channel)
    found = await stub.GetRevision(config_pb2.GetRevisionRequest(), timeout=TIMEOUT)
    consumers = await stub.ListConsumers(config_pb2.ListConsumersRequest(), timeout=TIMEOUT)
    try:
        revision = decode(found.body) if found.body else Revision()
    except UnreadableRevision as error:
        output.stop(f"revision {found.info.revision} cannot be read by this command: {error}")
    running = [c.revision for c in consumers.consumers if c.live and c.role == Role.POLICY]
    return InForce(revision, bool(running) and min(running) >= found.info.revision)
