"""What proof costs: DANE and MTA-STS with warm caches, beside Postfix with the same names, certificates and resolver.

Mail goes by MX in a small signed world. Postfix does with `smtp_tls_security_level = dane` what our DANE does, and with
`secure`, which is told the host names, what MTA-STS comes to. Whoever asks the DNS or a policy host is counted there: a
run of ours that asked anything was not warm, and is refused.
"""

import argparse
import contextlib
import http.server
import itertools
import re
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bench import report
from bench.load import Load, OwnSink, own_sink, send
from bench.systems import Mailrail, System, mailrail, postfix

from testkit.ca import Certificate
from testkit.peers import missing
from testkit.ports import free_port, loopback_address
from testkit.signed_world import SignedWorld, tlsa
from testkit.signed_zones import Signed

DANE, MTA_STS = "DANE", "MTA-STS"
SENDER: Final = "source@none.test"
"""Of the signed world, too: we take no mail from a domain that does not exist."""
DOMAINS: Final = {DANE: "dane-bench.test", MTA_STS: "sts-bench.test"}
_LABELS: Final = {DANE: "dane", MTA_STS: "mta_sts"}
_POLICY: Final = "version: STSv1\r\nmode: enforce\r\nmx: mx.{domain}\r\nmax_age: 604800\r\n"


@dataclass(frozen=True)
class Way:
    """How connections and TLS sessions are used, on the way out."""

    name: str
    reuse: bool
    resumption: bool


WAYS: Final = (
    Way("connections kept", True, True),
    Way("a connection each, sessions resumed", False, True),
    Way("a connection each, full handshakes", False, False),
)


class PolicyHost:
    """Serves one policy by HTTPS, and counts who asks."""

    def __init__(self, address: str, certificate: Certificate, policy: str) -> None:
        self.asked = 0
        host = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.asked += 1
                self.send_response(200)
                self.send_header("Content-Type", "text/plain")
                self.send_header("Content-Length", str(len(policy)))
                self.end_headers()
                self.wfile.write(policy.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer((address, 0), Handler)
        self._server.socket = certificate.server_context().wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> "PolicyHost":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()


@dataclass(frozen=True)
class World:
    """The names, and whoever is asked for them."""

    signed: SignedWorld
    policies: PolicyHost
    roots: Path
    """PEM of the authority that the world trusts."""

    def asked(self, domain: str) -> tuple[int, int]:
        """Questions to the DNS for names of a domain, and requests for policies, so far."""
        names = [one.name for one in self.signed.resolver.questions()]
        return sum(name == domain or name.endswith(f".{domain}") for name in names), self.policies.asked


@contextlib.contextmanager
def made_world() -> Iterator[World]:
    """Raises AssertionError where the resolver may not have port 53, the only one that Postfix knows."""
    world = SignedWorld(port=free_port(loopback_address()), resolver_port=53)
    for proof, name in DOMAINS.items():
        zone = world.zone(name, Signed.SECURE if proof == DANE else Signed.INSECURE)
        zone.add(name, "MX", f"10 mx.{name}.")
        certificate = world.host(zone, f"mx.{name}")
        if proof == DANE:
            zone.add(world.tlsa_name(f"mx.{name}"), "TLSA", tlsa(certificate.chain_pem, 3, 1, 1))
        else:
            zone.add(f"_mta-sts.{name}", "TXT", '"v=STSv1; id=1;"')
            host = f"mta-sts.{name}"
            policy_certificate = world.host(zone, host)
    domain = DOMAINS[MTA_STS]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mailrail-bench-roots-")))
        folder.chmod(0o755)
        roots = folder / "roots.pem"
        roots.write_bytes(world.authority.pem)
        roots.chmod(0o644)
        served = PolicyHost(world.addresses[f"mta-sts.{domain}"], policy_certificate, _POLICY.format(domain=domain))
        policies = stack.enter_context(served)
        yield World(stack.enter_context(world), policies, roots)


@contextlib.contextmanager
def ours(world: World, proof: str, way: Way) -> Iterator[System]:
    """Mailrail, which finds out by itself what each domain has."""
    settings = {
        "SSL_CERT_FILE": str(world.roots),
        # Captive, it would look for no policy. The resolver knows the signed world alone: nothing leaves this machine.
        "MAILRAIL_OUTBOUND_CAPTIVE": "false",
        "MAILRAIL_OUTBOUND_DIRECT_PORT": str(world.signed.port),
        "MAILRAIL_OUTBOUND_PRIVATE_NETWORKS": "127.0.0.0/8",
        "MAILRAIL_OUTBOUND_FETCH_NETWORKS": "127.0.0.0/8",
        "MAILRAIL_OUTBOUND_FETCH_PORT": str(world.policies.port),
        "MAILRAIL_OUTBOUND_MESSAGES_PER_CONNECTION": "100" if way.reuse else "1",
        "MAILRAIL_OUTBOUND_TLS_SESSIONS": "512" if way.resumption else "0",
    }
    resolver = world.signed.resolver.endpoint
    with mailrail(None, settings=settings, resolver=resolver, options=("--trust-ad",)) as system:
        yield system


@contextlib.contextmanager
def theirs(world: World, proof: str, way: Way) -> Iterator[System]:
    """Postfix, which is told by its level what to do."""
    changes = {
        "smtp_tcp_port": str(world.signed.port),
        "smtp_dns_support_level": "dnssec",
        "smtp_tls_security_level": "dane" if proof == DANE else "secure",
        "smtp_tls_CAfile": str(world.roots),
        "smtp_connection_cache_on_demand": "yes" if way.reuse else "no",
        **({} if way.resumption else {"smtp_tls_session_cache_database": ""}),
    }
    with postfix(None, changes, resolver=world.signed.resolver.address) as system:
        yield system


SYSTEMS: Final[Mapping[str, Callable[[World, str, Way], contextlib.AbstractContextManager[System]]]] = {
    report.OURS: ours,
    report.YARDSTICK: theirs,
}


def check(run: report.Proven) -> None:
    """Raises RuntimeError where ours asked anything although all was known, or sent mail without the proof."""
    if run.system != report.OURS:
        return
    if run.questions or run.fetches:
        raise RuntimeError(
            f"caches were warm, and {run.questions} questions went to the DNS and {run.fetches} to a policy host; there"
            " must be none"
        )
    if run.proven != run.messages:
        raise RuntimeError(f"{run.proven} of {run.messages} messages went proven by {run.proof}; all must")


def taken(system: System, proof: str) -> int:
    """Messages that hosts took from ours with this proof, so far; 0 of any other system."""
    if not isinstance(system, Mailrail):
        return 0
    with urllib.request.urlopen(f"http://{system.rail.metrics}/metrics", timeout=30) as page:
        text = page.read().decode()
    series = rf'^mailrail_outbound_tls_messages_total{{[^}}]*proof="{_LABELS[proof]}"[^}}]*}} (\S+)$'
    return int(sum(map(float, re.findall(series, text, re.M))))


def measure(
    chosen: argparse.Namespace,
    result: report.Result,
    load: Load,
    throughput: Callable[[System, OwnSink, Load], report.Throughput],
) -> None:
    """Each proof in each way by each system. What cannot be measured is noted in the result."""
    for peer in ("nsd", "unbound"):
        if reason := missing(peer):
            result.failures.append(f"DANE and MTA-STS: the bench {reason}")
            return
    systems = [name for name in SYSTEMS if name.lower() in chosen.systems]
    with report.noting(result, "DANE and MTA-STS"), made_world() as world:
        for proof, domain in DOMAINS.items():
            certificate = world.signed.certificates[f"mx.{domain}"]
            at = (world.signed.addresses[f"mx.{domain}"], world.signed.port)
            with own_sink(at, tls=certificate) as sink:
                for way, name in itertools.product(WAYS, systems):
                    what = f"{proof}, {way.name}: {name}"
                    sent = replace(load, reuse=way.reuse, sender=SENDER, recipient=f"sink@{domain}")
                    with report.noting(result, what), SYSTEMS[name](world, proof, way) as system:
                        warm = sent.with_messages(max(10, -(-load.messages // 5)))
                        send(warm, system.address, system.port, sink, within=120)
                        for _ in range(max(1, chosen.runs - 1)):
                            before = (*sink.handshakes(), *world.asked(domain), taken(system, proof))
                            run = throughput(system, sink, sent)
                            after = (*sink.handshakes(), *world.asked(domain), taken(system, proof))
                            counts = [now - then for now, then in zip(after, before, strict=True)]
                            measured = report.Proven(
                                name, proof, way.name, load.messages, run.delivered_per_s, run.cpu_ms, *counts
                            )
                            check(measured)
                            result.proven.append(measured)
