"""A Mailrail that delivers by MX into a small world: signed and unsigned domains, their policy hosts, scripted servers.

    with TlsWorld() as world:
        world.domain("good.test", Mx(), policy=policy("enforce", "mx1.good.test"))
        world.domain("strange.test", Mx(of_a_stranger, tlsa=(OWN_KEY,)), signed=True)
        rail = world.deliver(documents)
        ...
        world.peers["good.test"][0].messages

DNS and certificates are those of `signed_world`. The system's trust, for Mailrail, is the world's authority alone.
"""

import contextlib
import ssl
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from testkit.background import background
from testkit.ca import Authority, Certificate
from testkit.policy_hosts import PolicyHosts
from testkit.ports import free_port, loopback_address
from testkit.rail import Document, Rail
from testkit.signed_world import SignedWorld, tlsa
from testkit.signed_zones import Signed
from testkit.smtp_peer import SmtpPeer, Step

OWN_KEY: Final = "own 3 1 1"
"""For the TLSA record of the key that a host has; other numbers as well."""
ANOTHER_KEY: Final = "another 3 1 1"
"""For one of a key that no host has."""
ISSUER: Final = "issuer 2 0 1"
"""For one of the authority."""
UNUSABLE: Final = "1 1 1 " + 64 * "0"
"""A TLSA record that SMTP cannot use."""


Shows = Callable[[Authority, str], Certificate]
"""Makes the certificate of a host, by the authority that is trusted and its name."""


def valid(authority: Authority, name: str) -> Certificate:
    """A certificate that proves the name."""
    return authority.issue(name)


def expired(authority: Authority, name: str) -> Certificate:
    """One that did until yesterday."""
    return authority.issue_expired(name)


def for_another_name(authority: Authority, name: str) -> Certificate:
    """One of another host."""
    return authority.issue(f"not-{name}")


def with_its_issuer(made: Certificate, authority: Authority) -> Certificate:
    """The same certificate, and that of the authority is sent along."""
    return Certificate(made.names, made.chain_pem + authority.pem, made.key_pem)


def of_a_stranger(_: Authority, name: str) -> Certificate:
    """One that nobody vouches for."""
    return Authority().issue(name)


@dataclass(frozen=True)
class Mx:
    """A scripted MX host."""

    shows: Shows | None = valid
    """Its certificate; None: it does not offer STARTTLS."""
    inside: Sequence[str] = ("PIPELINING", "REQUIRETLS")
    """What it offers inside TLS."""
    clear: Sequence[str] = ("PIPELINING",)
    """What it offers without, beside STARTTLS."""
    tlsa: Sequence[str] = ()
    """Records in presentation form, or OWN_KEY, ANOTHER_KEY, ISSUER."""
    broken_tlsa: bool = False
    """Their signature is wrong."""
    context: Callable[[], ssl.SSLContext] | None = None
    """In place of what follows from `shows`."""
    replies: dict[str, Step] = field(default_factory=dict)
    lmtp: bool = False
    serves: bool = True
    """False: nobody listens at its address."""


def policy(mode: str, *mx: str, max_age: int = 86_400) -> str:
    """The text of a policy."""
    return "".join(
        f"{line}\r\n"
        for line in ("version: STSv1", f"mode: {mode}", *(f"mx: {one}" for one in mx), f"max_age: {max_age}")
    )


@contextlib.contextmanager
def trusting(authority: Authority) -> Iterator[dict[str, str]]:
    """The environment of a program for which this is the only authority of the system."""
    with tempfile.TemporaryDirectory(prefix="mailrail-trust-") as made:
        folder = Path(made)
        folder.chmod(0o755)
        yield {"SSL_CERT_FILE": str(authority.write(folder)), "SSL_CERT_DIR": str(folder / "none")}


def _record(text: str, certificates: Mapping[str, bytes]) -> str:
    whose, *numbers = text.split()
    if whose not in certificates:
        return text
    usage, selector, matching = map(int, numbers)
    return tlsa(certificates[whose], usage, selector, matching)


class TlsWorld:
    """See the module. Use as a context manager."""

    def __init__(self) -> None:
        self.world = SignedWorld(port=free_port(loopback_address()))
        self.peers: dict[str, list[SmtpPeer]] = {}
        """The servers of each domain, the first of its MX records first."""
        self._open = contextlib.ExitStack()
        self.policies = self._open.enter_context(PolicyHosts(self.world.authority))
        self._serving: list[SmtpPeer] = []

    def domain(
        self,
        name: str,
        *hosts: Mx,
        signed: bool = False,
        policy: str | bytes | None = None,
        record: Sequence[str] = ("v=STSv1; id=1;",),
        broken_record: bool = False,
        **answer: Any,
    ) -> None:
        """A domain below `test.`, before `deliver`. `policy`: what its policy host serves; `answer`: how (see
        PolicyHosts.publish); `record`: TXT records, where there is a policy, or where they are no usual ones."""
        zone = self.world.zone(name, Signed.SECURE if signed or broken_record else Signed.INSECURE)
        self.peers[name] = [self._host(name, number, host) for number, host in enumerate(hosts, 1)]
        if policy is not None or broken_record or record != ("v=STSv1; id=1;",):
            zone.add(f"_mta-sts.{name}", "TXT", *(f'"{one}"' for one in record), broken=broken_record)
            zone.add(f"mta-sts.{name}", "A", self.policies.address)
        if policy is not None:
            self.policies.publish(name, policy, **answer)

    def same_hosts(self, name: str, other: str, *, policy: str) -> None:
        """A domain whose mail goes to the hosts of another one."""
        zone = self.world.zone(name, Signed.INSECURE)
        zone.add(name, "MX", *(f"{10 * n} mx{n}.{other}." for n in range(1, len(self.peers[other]) + 1)))
        self.peers[name] = self.peers[other]
        zone.add(f"_mta-sts.{name}", "TXT", '"v=STSv1; id=1;"')
        zone.add(f"mta-sts.{name}", "A", self.policies.address)
        self.policies.publish(name, policy)

    def _host(self, domain: str, number: int, mx: Mx) -> SmtpPeer:
        zone, name = self.world.zones[domain], f"mx{number}.{domain}"
        zone.add(domain, "MX", f"{10 * number} {name}.")
        self.world.host(zone, name)
        made = mx.shows(self.world.authority, name) if mx.shows is not None else None
        context = mx.context() if mx.context is not None else made.server_context() if made is not None else None
        if mx.tlsa:
            certificates = {
                "own": (made or self.world.certificates[name]).chain_pem,
                "another": Authority().issue(name).chain_pem,
                "issuer": self.world.authority.pem,
            }
            records = [_record(one, certificates) for one in mx.tlsa]
            zone.add(self.world.tlsa_name(name), "TLSA", *records, broken=mx.broken_tlsa)
        peer = SmtpPeer(
            host=self.world.addresses[name],
            port=self.world.port,
            tls=context,
            extensions=mx.clear,
            extensions_after_tls=mx.inside,
            replies=mx.replies,
            lmtp=mx.lmtp,
        )
        if mx.serves:
            self._serving.append(peer)
        return peer

    def change_policy(self, name: str, policy: str, identifier: str) -> None:
        """The domain serves another policy from now on, and its record says so."""
        self.policies.publish(name, policy)
        self.world.zones[name].set(f"_mta-sts.{name}", "TXT", f'"v=STSv1; id={identifier};"')
        self.world.publish()

    def deliver(self, documents: Iterable[Document], **settings: str) -> Rail:
        """Serve all of it, and start a Mailrail that delivers into it. `settings`: further ones of outbound."""
        self._open.enter_context(self.world)
        self._open.callback(self._end_peers)
        for peer in self._serving:
            background().call(peer.__aenter__())
        trust = self._open.enter_context(trusting(self.world.authority))
        loopback = "127.0.0.0/8"
        values = {
            "direct_port": str(self.world.port),
            "private_networks": loopback,
            "fetch_networks": loopback,
            "fetch_port": str(self.policies.port),
            "dns_timeout": "60",  # on a busy machine, where no second attempt comes within the test
        }
        return self._open.enter_context(
            Rail(
                documents,
                options=("--deliver", "--resolver", self.world.resolver.endpoint, "--trust-ad"),
                settings={f"MAILRAIL_OUTBOUND_{key.upper()}": value for key, value in (values | settings).items()},
                env=trust,
            )
        )

    def _end_peers(self) -> None:
        for peer in self._serving:
            if peer.served:
                background().call(peer.__aexit__())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
