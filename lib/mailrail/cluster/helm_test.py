"""A message through the whole of an installation, for `helm test`: from custom resources to the reading of a mailbox.

Where the bundled Postgres has a volume it first waits for that, for nothing works without. It makes a MailDomain with a
built-in mailbox and a MailAccount, and a MailGateway where the namespace has none; waits until each says Ready; sends a
message by SMTP to the Service of the MX, as a stranger; and looks for it in the mailbox by the administrators' API.
What it made goes again, whatever happens. Its own pod stays, for its log, and goes with the release: it gives itself to
the Role of its name.
"""

import asyncio
import secrets
import smtplib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.message import EmailMessage
from typing import Any

import grpc

from mailrail.core.resources.crd import GROUP, VERSION
from mailrail.kit import rpc
from mailrail.kit.kubernetes import Api, ApiError, core_path, resource_path
from mailrail.pb.queue.v1 import mailbox_pb2, mailbox_pb2_grpc

GATEWAY, DOMAIN, ACCOUNT = "MailGateway", "MailDomain", "MailAccount"
_MX = "MX"
_RBAC = "rbac.authorization.k8s.io"
_PAUSE = 0.5
"""Seconds between looks."""


class Failed(Exception):
    """The message did not arrive; the text says how far it came."""


@dataclass(frozen=True, kw_only=True)
class HelmTest:
    """What to try."""

    namespace: str
    name: str
    """Name of the objects that are made."""
    domain: str
    """A domain that nobody owns."""
    mx: tuple[str, int]
    """Where the MX is."""
    queue: str
    """gRPC target of the queue."""
    within: float
    """Seconds for all of it."""
    claim: str = ""
    """PersistentVolumeClaim of the bundled Postgres; empty: it has none."""

    def documents(self, gateway: str | None) -> list[tuple[str, dict[str, Any]]]:
        """What is made, for an existing gateway or with one."""
        name = gateway or self.name
        account: dict[str, Any] = {"domainRef": {"name": self.name}, "addresses": ["test", "postmaster"]}
        domain: dict[str, Any] = {"domainName": self.domain, "gatewayRef": {"name": name}, "delivery": {"mailbox": {}}}
        specs = [(DOMAIN, domain), (ACCOUNT, account)]
        if gateway is None:
            listener = {"name": "mx", "protocol": _MX, "port": 25}
            postmaster = {"accountRef": {"name": self.name}}
            specs.insert(0, (GATEWAY, {"hostname": self.domain, "listeners": [listener], "postmaster": postmaster}))
        return [
            (
                kind,
                {
                    "apiVersion": f"{GROUP}/{VERSION}",
                    "kind": kind,
                    "metadata": {"name": self.name, "namespace": self.namespace},
                    "spec": spec,
                },
            )
            for kind, spec in specs
        ]


def ready(body: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether an object says Ready of its present generation, and what it says."""
    for condition in (body.get("status") or {}).get("conditions") or ():
        if condition["type"] == "Ready":
            current = condition.get("observedGeneration") == body["metadata"].get("generation")
            words = f"{condition['status']}, {condition.get('reason', '')}: {condition.get('message', '')}"
            return current and condition["status"] == "True", words
    return False, "it says nothing yet; does the operator run?"


def bound(claim: Mapping[str, Any] | None, name: str) -> str:
    """What keeps a PersistentVolumeClaim from being a volume, and what to do; nothing when it is one."""
    phase = (claim or {}).get("status", {}).get("phase", "")
    if phase == "Bound":
        return ""
    if claim is None:
        return f"PersistentVolumeClaim {name} of the bundled Postgres does not exist"
    if phase == "Lost":
        return (
            f"PersistentVolumeClaim {name} of the bundled Postgres has lost its volume: bring the PersistentVolume back"
        )
    kind = claim["spec"].get("storageClassName")
    if kind:
        cause = f"StorageClass {kind} gives it none (kubectl describe pvc {name})"
    else:
        cause = "the cluster has no default StorageClass: mark one as the default"
    return (
        f"PersistentVolumeClaim {name} is Pending, so the bundled Postgres has no volume; {cause}, or uninstall, delete"
        " the claim and install with postgres.bundled.persistence.storageClassName (see kubectl get storageclass)"
    )


async def run(test: HelmTest, api: Api, identity: rpc.Identity, say: Callable[[str], None]) -> float:
    """Try it; the seconds that the message took from 250 to the mailbox. Raises Failed, or ApiError."""
    deadline = time.monotonic() + test.within
    await _belong(test, api)
    if test.claim:
        await _until(lambda: _bound(test, api), deadline)
    await _clear(test, api)  # what an interrupted one left
    gateways, _ = await api.list(resource_path(GATEWAY, test.namespace))
    serving = [g for g in gateways if any(li["protocol"] == _MX for li in g["spec"]["listeners"])]
    gateway = str(serving[0]["metadata"]["name"]) if serving else None
    say(f"using MailGateway {gateway}" if gateway else "there is no MailGateway with an MX listener: making one")
    documents = test.documents(gateway)
    try:
        for kind, body in documents:
            await api.call("POST", resource_path(kind, test.namespace), body)
        for kind, _ in documents:
            await _until(lambda kind=kind: _ready(test, api, kind), deadline)  # type: ignore[misc]
            say(f"{kind} {test.name} is Ready")
        subject = f"mailrail test {secrets.token_hex(8)}"
        host, port = test.mx
        await _until(lambda: asyncio.to_thread(_send, test, subject), deadline)
        sent = time.monotonic()
        say(f"{host}:{port} took the message")
        await _until(lambda: _find_message(test, identity, subject), deadline)
        return time.monotonic() - sent
    finally:
        await _clear(test, api)


def owned_by(role: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch after which an object goes when a Role does."""
    metadata = role["metadata"]
    owner = {"apiVersion": f"{_RBAC}/v1", "kind": "Role", "name": metadata["name"], "uid": metadata["uid"]}
    return {"metadata": {"ownerReferences": [owner]}}


async def _belong(test: HelmTest, api: Api) -> None:
    """Give the pod of this name to the Role of this name, where both are and we may: Helm forgets pods of its tests."""
    try:
        role = await api.get(f"/apis/{_RBAC}/v1/namespaces/{test.namespace}/roles/{test.name}")
        if role is not None:
            pod = core_path("pods", test.namespace, test.name)
            await api.call("PATCH", pod, owned_by(role), content_type="application/merge-patch+json")
    except ApiError as error:
        if error.code not in (403, 404):
            raise


async def _until(look: Callable[[], Awaitable[str]], deadline: float) -> None:
    """Look until it answers nothing; Failed with its last answer when the time is up."""
    while answer := await look():
        if time.monotonic() > deadline:
            raise Failed(answer)
        await asyncio.sleep(_PAUSE)


async def _bound(test: HelmTest, api: Api) -> str:
    path = f"/api/v1/namespaces/{test.namespace}/persistentvolumeclaims/{test.claim}"
    try:
        return bound(await api.get(path), test.claim)
    except ApiError as error:
        if error.code == 403:  # the installation gave no right to look at it
            return ""
        raise


async def _ready(test: HelmTest, api: Api, kind: str) -> str:
    body = await api.get(resource_path(kind, test.namespace, test.name))
    good, words = ready(body) if body is not None else (False, "it is gone")
    return "" if good else f"{kind} {test.name} is not Ready: {words}"


def _send(test: HelmTest, subject: str) -> str:
    message = EmailMessage()
    message["From"] = "test@mailrail.invalid"
    message["To"] = f"test@{test.domain}"
    message["Subject"] = subject
    message.set_content("If you can read this, mail arrives.\n")
    host, port = test.mx
    try:
        with smtplib.SMTP(host, port, local_hostname="test.mailrail.invalid", timeout=10) as client:
            # The null sender: it needs no domain that a cluster without DNS of the world could not find.
            client.send_message(message, from_addr="", to_addrs=[f"test@{test.domain}"])
    except (OSError, smtplib.SMTPException) as error:
        return f"{host}:{port} did not take the message: {error}"
    return ""


async def _find_message(test: HelmTest, identity: rpc.Identity, subject: str) -> str:
    async with rpc.identity_channel(identity, test.queue, "queue") as channel:
        stub: mailbox_pb2_grpc.MailboxServiceAsyncStub = mailbox_pb2_grpc.MailboxServiceStub(channel)
        request = mailbox_pb2.ListMessagesRequest(account=f"{test.namespace}/{test.name}", page_size=50)
        try:
            answer = await stub.ListMessages(request, timeout=10)
            found = [m.id for m in answer.messages if m.subject == subject]
            if found:
                await stub.DeleteMessages(mailbox_pb2.DeleteMessagesRequest(ids=found), timeout=10)
                return ""
        except grpc.aio.AioRpcError as error:
            return f"the queue at {test.queue} does not answer: {error.details()}"
    return "the message was accepted and is not in the mailbox yet; `mailrail queue list` shows what it waits for"


async def _clear(test: HelmTest, api: Api) -> None:
    for kind in (ACCOUNT, DOMAIN, GATEWAY):
        try:
            await api.call("DELETE", resource_path(kind, test.namespace, test.name))
        except ApiError as error:
            if error.code != 404:
                raise
