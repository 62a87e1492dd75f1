"""The unbound that the chart puts beside outbound, with the chart's configuration, asked as outbound asks it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailrail.core.outbound.targets import Mx
from mailrail.kit.resolver import DnsResolver, LookupFailed
from mailrail_outbound.settings import OutboundSettings

from testkit.chart import needs_helm, rendered
from testkit.peers import program
from testkit.ports import free_port, loopback_address
from testkit.processes import started
from testkit.signed_world import SignedWorld

pytestmark = [needs_helm, pytest.mark.peer("nsd"), pytest.mark.peer("unbound")]


@contextlib.contextmanager
def chart_unbound(world: SignedWorld, anchor: str, folder: Path) -> Iterator[str]:
    """HOST:PORT of one that trusts `anchor` and asks the world's resolver."""
    unbound = {
        "enabled": True,
        "image": {"repository": "unbound", "tag": "1"},
        "trustAnchors": [anchor],
        "forwardTo": [f"{world.resolver.address}@{world.resolver.port}"],
        # The world is on this machine, and it is called `test`.
        "extraConfig": 'do-not-query-localhost: no\nlocal-zone: "test." nodefault',
    }
    text = rendered({"unbound": unbound}, folder)["ConfigMap", "mailrail-unbound"]["data"]["unbound.conf"]
    address = loopback_address()
    port = free_port(address, udp=True)
    for where, instead in (
        ("0.0.0.0@5335", f"{address}@{port}"),
        ('directory: "/tmp"', f'directory: "{folder}"'),
        ('pidfile: "/tmp/unbound.pid"', f'pidfile: "{folder}/unbound.pid"'),
        ("verbosity: 0", "verbosity: 1"),  # it says when it is up
    ):
        assert text.count(where) == 1, where
        text = text.replace(where, instead)
    config = folder / "unbound.conf"
    config.write_text(text)
    with started([program("unbound"), "-d", "-c", config], ready="start of service", name="the chart's unbound"):
        yield f"{address}:{port}"


async def test_outbound_is_told_what_is_proven_and_gets_no_bogus_answer_DANE_25(tmp_path: Path) -> None:
    with SignedWorld() as world, chart_unbound(world, f". IN DS {world.zones[''].ds[0]}", tmp_path) as endpoint:
        resolver = DnsResolver(endpoint, trust_ad=True)
        mx = await resolver.mx_answer("secure.test")
        assert (mx.records, mx.secure) == ((Mx(10, "mx.secure.test"),), True)
        assert not (await resolver.mx_answer("unsigned.test")).secure
        probe = await resolver.answer(OutboundSettings().resolver_probe, "SOA")
        assert (len(probe.records), probe.secure) == (1, True), "it is seen to validate"
        with pytest.raises(LookupFailed) as failed:
            await resolver.mx_answer("bogus.test")
        assert failed.value.rcode == "SERVFAIL"


async def test_it_validates_by_itself_whatever_the_servers_that_it_forwards_to_believe(tmp_path: Path) -> None:
    with SignedWorld() as world, SignedWorld() as other:
        anchor = f". IN DS {other.zones[''].ds[0]}"
        with chart_unbound(world, anchor, tmp_path) as endpoint:
            for domain in ("secure.test", "unsigned.test"):
                with pytest.raises(LookupFailed):
                    await DnsResolver(endpoint, trust_ad=True).mx_answer(domain)
