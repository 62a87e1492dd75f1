"""A whole Mailrail in a namespace, configured and serving, with partners around it: the stage of the chart's scenarios.

alice@example.org   may submit, and has a mailbox
first, second, third    partners that take mail in (`Partner`); `first` also sends
*.partner.test      domains of ours that are delivered to `first` whatever the local part, so that strangers may
                    send there and every message can be counted
"""

import base64
import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from cluster.addons import ADDONS
from cluster.conftest import Kubectl
from cluster.ledger import LEASE, Break, Verdict, judge
from cluster.partner import Partner, Run, Talk, tls_secret
from cluster.release import NAME, Release, image
from cluster.stage import manifest

from testkit.ca import Authority
from testkit.conditions import wait_until

LOGIN = "alice@example.org"
PASSWORD = "correct horse battery"
COUNTED = tuple(f"{one}.partner.test" for one in ("kills", "upgrade", "alone", "certificates", "scaled", "release"))
_SMALL = {"resources": {"requests": {"cpu": "0", "memory": "32Mi"}}}
VALUES: dict[str, Any] = {
    # Nothing is asked of the node beforehand, so that the scenarios share a small one with an installation of defaults;
    # what the chart does is the same.
    "toolbox": {"enabled": True, **_SMALL},
    "crds": {"enabled": False},  # they are there, and other tests have use for them
    **dict.fromkeys(("config", "queue", "ingress", "outbound", "operator"), _SMALL),
    "postgres": {"bundled": _SMALL},
    "keys": _SMALL,
    "migrations": _SMALL,
    "operator": {**_SMALL, "dnsCheck": False},
    "podMonitor": {"enabled": "prometheus-operator" in ADDONS},
    "prometheusRule": {"enabled": "prometheus-operator" in ADDONS},
}

UNCHECKED: Final = {"authentication": {"mode": "Disabled"}}
"""Of a gateway: the mail of these tests is from domains that no DNS knows."""


class Rail(Release):
    """The installation, and how a test uses it."""

    def __init__(
        self,
        kubectl: Kubectl,
        folder: Path,
        values: dict[str, Any] = VALUES,
        *,
        gateway: Mapping[str, Any] = UNCHECKED,
    ) -> None:
        """`values` are the chart's; the toolbox has to be among them. `gateway` is added to the spec of its gateway."""
        super().__init__(kubectl, folder)
        self._values, self._gateway = values, dict(gateway)
        self.authority = Authority()
        self.partners: dict[str, Partner] = {}

    def begin(self) -> None:
        """Install it if it is not there, configure it and start the partners."""
        for name in ("first", "second", "third"):
            self.partners[name] = Partner(
                self.kubectl, name, image(), authority=self.authority if name == "first" else None
            )
        if self.helm("status", NAME).returncode != 0:
            self.install(self._values)
        tls_secret(self.kubectl, "mx-tls", self.authority.issue(*self.smtp_hosts))
        self.kubectl.apply(self._documents())
        self.ready("mgw,mdom,macct,mtrans", "--all", within=120)
        for partner in self.partners.values():
            partner.wait_until_open()

    # --- mail ---

    @property
    def first(self) -> Partner:
        """The partner that sends, too."""
        return self.partners["first"]

    @property
    def mx(self) -> tuple[str, int]:
        """Where strangers hand mail over, as seen in the cluster."""
        return self.smtp_hosts[0], 25

    @property
    def submission(self) -> tuple[str, int]:
        """Where our own users do."""
        return self.smtp_hosts[1], 587

    @property
    def smtp_hosts(self) -> tuple[str, str]:
        """The names of the two Services."""
        return tuple(f"{NAME}-{one}.{self.kubectl.namespace}.svc.cluster.local" for one in ("mx", "submission"))  # type: ignore[return-value]

    def submit(self, *recipients: str, password: str = PASSWORD, **more: Any) -> Talk:
        """Alice sends a message."""
        more = {"sender": LOGIN, "login": LOGIN, "password": password, "tls": "starttls"} | more
        return self.first.talk(*self.submission, recipients, **more)

    @contextlib.contextmanager
    def traffic(self, recipient: str, **more: Any) -> Iterator[Run]:
        """Strangers hand mail over while the context lasts; `more` are arguments of `testkit.traffic.Sender`."""
        more = {"sessions": 4, "pace": 0.2} | more
        run = self.first.send(*self.mx, messages=100_000, recipient=recipient, **more)
        try:
            yield run
        finally:
            run.enough()

    def counted(
        self, run: Run, domain: str, breaks: Sequence[Break], *, prefix: str = "", within: float = 180.0
    ) -> Verdict:
        """Wait for the end of a run, `within` seconds for what is still handed over, and judge what arrived.

        `prefix`: of the run's local parts, where other runs have the domain, too. Raises AssertionError.
        """
        run.finish(within)
        self.wait_until_empty(LEASE + 90)
        its = [one for one in self.first.seen(domain) if one.recipients[0].startswith(prefix)]
        return judge(run.tries(), its, run.messages, breaks)

    def recipient(self, address: str) -> dict[str, Any]:
        """A recipient in the queue. Raises LookupError when it is not there."""
        for one in self.cli_json("queue", "list", "--to", address):
            return dict(one)
        raise LookupError(f"{address} is not in the queue")

    def mailbox(self, account: str = "alice") -> list[str]:
        """Subjects in a mailbox, in order of the alphabet."""
        listed = self.cli_json("mailbox", "list", "--account", f"{self.kubectl.namespace}/{account}")
        return sorted(str(one["subject"]) for one in listed)

    # --- routes ---

    def explain(self, recipient: str) -> tuple[str, int]:
        """The transport that alice's mail to a recipient would take now, "" if none is named; and by which revision."""
        answer = self.cli_json("explain", "--from", LOGIN, "--to", recipient, "--account", LOGIN)
        return str((answer["decision"].get("transport") or {}).get("name", "")), int(answer["config_revision"])

    def wait_until_goes_to(self, transport: str, recipient: str, within: float = 60.0) -> None:
        """Wait until alice's mail to a recipient would take a transport, wherever in the queue it is decided."""

        def decided() -> int:
            name, revision = self.explain(recipient)
            return revision if name == transport else 0

        revision = wait_until(decided, within, lambda: f"mail for {recipient} goes to {transport}\n{self.tails()}")
        # One queue has answered, and the other may decide about the next message.
        self.wait_until_live_everywhere("--revision", str(revision))

    def wait_until_live_everywhere(self, *options: str) -> None:
        """Wait until every replica of every service runs the revision in force: one that behaves so is not all."""
        self.cli("config", "wait", "--timeout", "60s", *options)

    # --- resources ---

    def apply(self, *manifests: str) -> None:
        """`kubectl apply`."""
        self.kubectl.apply("".join(manifests))

    def smtp(self, partner: str) -> str:
        """A transport of a partner's name that leads to it."""
        return manifest("MailTransport", partner, {"smtp": {"host": self.partners[partner].host}})

    def set_secret(self, name: str, **values: str) -> None:
        """Write a Secret, over an older one if there is one."""
        data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}
        self.kubectl.apply(yaml.safe_dump(body))

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """An object."""
        body: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "-o", "json"))
        return body

    def condition(self, kind: str, name: str, condition: str) -> dict[str, Any]:
        """A condition of an object at its newest generation. Raises LookupError while it has none."""
        body = self.get(kind, name)
        for row in body.get("status", {}).get("conditions", ()):
            if row["type"] == condition and row.get("observedGeneration") == body["metadata"]["generation"]:
                return dict(row)
        raise LookupError(f"{kind} {name} has no condition {condition} of its newest generation")

    @contextlib.contextmanager
    def without_operator(self) -> Iterator[None]:
        """No operator runs while the context lasts."""
        name = f"deployment/{NAME}-operator"
        self.kubectl("scale", name, "--replicas=0")
        self.kubectl("wait", "--for=delete", "pod", "-l", "app.kubernetes.io/component=operator", "--timeout=120s")
        try:
            yield
        finally:
            self.kubectl("scale", name, "--replicas=1")
            self.wait_until_ready()

    def _documents(self) -> str:
        tls = {"tls": {"certificateSecretRef": {"name": "mx-tls"}}}
        ports = {"MX": 25, "Submission": 587, "Submissions": 465}
        gateway = {
            "hostname": "mx1.example.org",
            "listeners": [{"name": p.lower(), "protocol": p, "port": port} | tls for p, port in ports.items()],
            "postmaster": {"accountRef": {"name": "postmaster"}},
            "retry": {"delaysSeconds": [1, 1, 1, 1, 2], "lifetimeSeconds": 900},
        } | self._gateway
        login = {"credentialsSecretRef": {"name": "alice-login"}}
        self.set_secret("alice-login", password=PASSWORD)
        documents = [
            manifest("MailGateway", "mx1", gateway),
            self._domain("org", "example.org", {"mailbox": {}}),
            manifest("MailAccount", "postmaster", {"domainRef": {"name": "org"}, "addresses": ["postmaster"]}),
            manifest("MailAccount", "alice", {"domainRef": {"name": "org"}, "addresses": ["alice"]} | login),
            self.smtp("first"),
        ]
        for name in COUNTED:
            delivery = {"transport": {"ref": {"name": "first"}, "recipients": "Any"}}
            documents.append(self._domain(name.replace(".", "-"), name, delivery))
        return "".join(documents)

    def _domain(self, name: str, domain: str, delivery: dict[str, Any]) -> str:
        spec = {"domainName": domain, "gatewayRef": {"name": "mx1"}, "delivery": delivery}
        return manifest("MailDomain", name, spec)
