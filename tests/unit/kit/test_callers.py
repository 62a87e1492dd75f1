"""Who may call which service: roles that have a process, or the administrator's command."""

from mailrail.cli.serve import SERVICES
from mailrail.kit.certificates import ROLES
from mailrail_config.rpc import ALLOWED
from mailrail_dmarc.rpc import CALLERS as DMARC
from mailrail_outbound.__main__ import _CALLERS as OUTBOUND
from mailrail_queue.__main__ import CALLERS as QUEUE


def test_no_service_lets_in_a_role_that_nobody_has() -> None:
    """A caller for other people, such as a console, must find no server that cannot check their rights."""
    assert set(ROLES) == {*SERVICES, "cli"}
    for service, roles in {**ALLOWED, **OUTBOUND, **QUEUE, **DMARC}.items():
        assert roles <= set(ROLES), service
