"""The partners of a scenario: mail servers and clients in pods (`post_office.py`), as a test sees them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml
from cluster.conftest import ROOT, Kubectl

from testkit.ca import Authority, Certificate
from testkit.conditions import wait_until

_PROGRAM = Path(__file__).with_name("post_office.py")
_TESTKIT = ("__init__", "background", "conditions", "next_hop", "ports", "smtp_peer", "traffic", "transcripts")
_FILES = "post-office"  # the ConfigMap with the program
_CONTROL = 8080


@dataclass(frozen=True)
class Arrival:
    """One message that a partner took in; `at` is in seconds since 1970."""

    try_id: str | None
    subject: str | None
    sender: str
    recipients: tuple[str, ...]
    at: float
    tls: str
    """The version of TLS, or empty."""


@dataclass(frozen=True)
class Talk:
    """What came of handing over one message."""

    code: int
    text: str
    certificate: str  # PEM of what the server presented; empty without TLS
    extensions: tuple[str, ...]

    @property
    def accepted(self) -> bool:
        """Whether 250 was read after the final dot."""
        return self.code == 250


class Partner:
    """One pod with a Service of the same name; deleted with its namespace, or by `close()`."""

    def __init__(
        self,
        kubectl: Kubectl,
        name: str,
        image: str,
        *,
        authority: Authority | None = None,
        starttls: Certificate | None = None,
    ) -> None:
        """Start it. With an authority it also takes submissions at port 465, under a certificate for `host`. With
        `starttls` it offers STARTTLS at port 25 and shows that certificate."""
        self.kubectl, self.name = kubectl, name
        files = {_PROGRAM.name: _PROGRAM} | {f"testkit.{one}.py": ROOT / f"tests/testkit/{one}.py" for one in _TESTKIT}
        data = {key: path.read_text(encoding="utf-8") for key, path in files.items()}
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": _FILES}, "data": data}
        kubectl.apply(yaml.safe_dump(body))
        self.close()  # one of an earlier session, where a namespace is kept
        certificates = {"submissions": authority.issue(self.host) if authority is not None else None, "mx": starttls}
        shown = [use for use, certificate in certificates.items() if certificate is not None]
        for use, certificate in certificates.items():
            if certificate is not None:
                tls_secret(kubectl, f"{name}-{use}", certificate)
        kubectl.apply(yaml.safe_dump_all(self._manifests(image, shown)))

    @property
    def host(self) -> str:
        """Its name in the cluster's DNS."""
        return f"{self.name}.{self.kubectl.namespace}.svc.cluster.local"

    def wait_until_open(self, within: float = 180.0) -> "Partner":
        """Wait until it serves."""
        wait_until(
            lambda: self.kubectl.try_("get", "--raw", self._path("seen")).returncode == 0,
            within,
            lambda: f"{self.name} serves\n{self.kubectl.try_('describe', 'pod', self.name).stdout[-2000:]}",
        )
        return self

    def seen(self, domain: str = "") -> list[Arrival]:
        """What came at port 25 so far, in order; only for recipients of a domain, if one is named."""
        return [
            Arrival(one["try"], one["subject"], one["sender"], tuple(one["recipients"]), one["at"], one["tls"])
            for one in self._get("seen")["receipts"]
            if not domain or any(recipient.endswith(f"@{domain}") for recipient in one["recipients"])
        ]

    def wait_for(self, recipient: str, within: float = 60.0, tails: Any = "") -> Arrival:
        """Wait until a message for a recipient came; answers the first."""

        def came() -> Arrival | None:
            return next((one for one in self.seen() if recipient in one.recipients), None)

        def words() -> str:
            said = tails() if callable(tails) else tails
            return (
                f"mail for {recipient} at {self.name}; there came {[a.recipients for a in self.seen()][-10:]}\n{said}"
            )

        return wait_until(came, within, words)

    def submitted(self) -> list[dict[str, Any]]:
        """What came at port 465: recipients, login and mechanism of each."""
        return list(self._get("submitted"))

    def refuse(self, recipient: str, reply: str) -> None:
        """Answer RCPT for `recipient` (or `@domain`) with `reply` from now on."""
        self._post("refuse", {"recipient": recipient, "reply": reply})

    def accept(self, recipient: str) -> None:
        """Undo `refuse`."""
        self._post("accept", {"recipient": recipient})

    def slow(self, seconds: float) -> None:
        """Let each reply to a final dot come so many seconds later, from now on."""
        self._post("slow", {"seconds": seconds})

    def logins(self, **passwords: str) -> None:
        """Who may submit at port 465 from now on."""
        self._post("logins", passwords)

    def talk(
        self,
        address: str,
        port: int,
        recipients: Iterable[str] = (),
        *,
        sender: str = "someone@elsewhere.test",
        subject: str = "a test",
        **more: Any,
    ) -> Talk:
        """Hand over one message. `more`: tls ("starttls" or "implicit"), ca (PEM), login and password."""
        content = f"From: <{sender}>\nTo: <someone@elsewhere.test>\nSubject: {subject}\n\nHello.\n"
        body = {"address": address, "port": port, "sender": sender, "recipients": list(recipients), "content": content}
        said = self._post("talk", body | more)
        return Talk(said["code"], said["text"], said.get("certificate", ""), tuple(said.get("extensions", ())))

    def send(self, address: str, port: int, *, messages: int, recipient: str, **more: Any) -> "Run":
        """Start a run of traffic; `more` are arguments of `testkit.traffic.Sender`."""
        body = {"address": address, "port": port, "messages": messages, "recipient": recipient}
        return Run(self, self._post("send", body | more)["id"], messages)

    def close(self) -> None:
        """Delete it."""
        self.kubectl("delete", "pod,service", self.name, "--grace-period=0", "--force", "--ignore-not-found")

    # --- how ---

    def _path(self, what: str) -> str:
        return f"/api/v1/namespaces/{self.kubectl.namespace}/pods/{self.name}:{_CONTROL}/proxy/{what}"

    def _get(self, what: str, **query: object) -> Any:
        return json.loads(self.kubectl("get", "--raw", self._path(what) + (f"?{urlencode(query)}" if query else "")))

    def _post(self, what: str, body: Mapping[str, Any]) -> Any:
        return json.loads(self.kubectl("create", "--raw", self._path(what), "-f", "-", stdin=json.dumps(body)))

    def _manifests(self, image: str, certificates: Iterable[str]) -> list[dict[str, Any]]:
        labels = {"app": self.name}
        files = [{"key": _PROGRAM.name, "path": _PROGRAM.name}]
        files += [{"key": f"testkit.{one}.py", "path": f"testkit/{one}.py"} for one in _TESTKIT]
        volumes: list[dict[str, Any]] = [{"name": "files", "configMap": {"name": _FILES, "items": files}}]
        mounts = [{"name": "files", "mountPath": "/post-office", "readOnly": True}]
        for use in certificates:
            volumes.append({"name": use, "secret": {"secretName": f"{self.name}-{use}"}})
            mounts.append({"name": use, "mountPath": f"/certificates/{use}", "readOnly": True})
        container = {
            "name": "post-office",
            "image": image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["python", "-B", f"/post-office/{_PROGRAM.name}"],
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": mounts,
        }
        security = {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
            # Policies let outbound dial the ports of mail alone, so it has to be 25 in the pod too.
            "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}],
        }
        spec = {
            "containers": [container],
            "volumes": volumes,
            "securityContext": security,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 1,
        }
        ports = [{"name": "smtp", "port": 25}, {"name": "submissions", "port": 465}]
        return [
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": self.name, "labels": labels}, "spec": spec},
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": self.name},
                "spec": {"selector": labels, "ports": ports},
            },
        ]


class Run:
    """One run of traffic from a partner."""

    def __init__(self, partner: Partner, number: int, messages: int) -> None:
        self.partner, self.number, self.messages = partner, number, messages

    def tries(self) -> list[tuple[str, str, str, float]]:
        """Each try so far: its id, what the client knows (`accepted`, `refused`, `uncertain`), the reply, when."""
        return [tuple(one) for one in self.partner._get("traffic", id=self.number)["tries"]]

    def accepted(self) -> int:
        """How many messages were accepted so far."""
        return sum(fate == "accepted" for _, fate, _, _ in self.tries())

    def wait_for(self, count: int, within: float = 120.0) -> None:
        """Wait until so many were accepted."""
        wait_until(lambda: self.accepted() >= count, within, lambda: f"{count} accepted; the last: {self.tries()[-3:]}")

    def enough(self) -> None:
        """Begin no further message."""
        self.partner._post("enough", {"id": self.number})
        self.messages = int(self.partner._get("traffic", id=self.number)["messages"])

    def finish(self, within: float = 300.0) -> None:
        """Wait until every message was accepted; none may have been given up."""
        self.wait_for(self.messages, within)


def tls_secret(kubectl: Kubectl, name: str, certificate: Certificate) -> None:
    """Write a Secret of type kubernetes.io/tls, over an older one if there is one."""
    data = {"tls.crt": certificate.chain_pem.decode(), "tls.key": certificate.key_pem.decode()}
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": "kubernetes.io/tls"}
    kubectl.apply(yaml.safe_dump(body | {"stringData": data}))
