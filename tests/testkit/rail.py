"""All of Mailrail as a user runs it: `mailrail local` on folders and ports of its own.

    with Rail(documents=[*basics(), transport("hop", smtp={"host": sink.address, "port": sink.port}), ...]) as rail:
        swaks(*rail.mx, "--to", "someone@example.net")
        rail.kill("outbound")
        rail.queue()               # what `mailrail queue list --json` says

Captive as by default: only loopback addresses are dialled, which the fakes and peers of the testkit have.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import grpc
import psutil
import psycopg
import yaml
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mailrail.local.postgres.server import DATABASE, SUPERUSER
from mailrail.pb.queue.v1 import admin_pb2, admin_pb2_grpc, mailbox_pb2, mailbox_pb2_grpc

from testkit.conditions import wait_until
from testkit.ports import accepts, free_offset, release_offset
from testkit.processes import Program, frozen, run

API_VERSION = "mailrail.dev/v1alpha1"
GATEWAY = "local"
POSTMASTER = "postmaster@example.org"
LOGIN = "alice@example.org"
PASSWORD = "correct horse battery"

SERVICES = ("ingress", "queue", "outbound", "config")
_PORTS = {
    "mx": 1025,
    "proxied": 1026,
    "submission": 1587,
    "submissions": 1465,
    "console": 1080,
    "metrics": 1081,
    "policies": 1082,
}
_INTERNAL_PORTS = tuple(range(1083, 1110))

Document = dict[str, Any]


def document(kind: str, name: str, spec: Mapping[str, Any]) -> Document:
    """A resource as people write it."""
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": dict(spec)}


def secret(name: str, **values: str) -> Document:
    """A Secret; underscores in keys stand for the dots and dashes of usual keys."""
    keys = {"tls_crt": "tls.crt", "tls_key": "tls.key", "ca_crt": "ca.crt"}
    data = {keys.get(key, key): value for key, value in values.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


def gateway(**changes: Any) -> Document:
    """The gateway of local mode, with a retry schedule of seconds instead of minutes unless told otherwise."""
    spec: dict[str, Any] = {
        "hostname": "rail.example.org",
        "listeners": [
            {"name": "mx", "protocol": "MX", "port": 1025, "tls": {"certificateSecretRef": {"name": "local-tls"}}},
            {
                "name": "submission",
                "protocol": "Submission",
                "port": 1587,
                "tls": {"certificateSecretRef": {"name": "local-tls"}},
            },
            {
                "name": "submissions",
                "protocol": "Submissions",
                "port": 1465,
                "tls": {"certificateSecretRef": {"name": "local-tls"}},
            },
        ],
        "postmaster": {"accountRef": {"name": "postmaster"}},
        "retry": {"delaysSeconds": [1, 1, 1, 1, 2], "lifetimeSeconds": 600},
    }
    return document("MailGateway", GATEWAY, spec | changes)


def domain(name: str, domain_name: str, delivery: Document | None = None, **more: Any) -> Document:
    """A MailDomain; without a `delivery` it has mailboxes."""
    how = {"mailbox": {}} if delivery is None else delivery
    return document(
        "MailDomain", name, {"domainName": domain_name, "gatewayRef": {"name": GATEWAY}, "delivery": how} | more
    )


def by_transport(name: str, recipients: str = "Listed", **more: Any) -> Document:
    """The `delivery` of a domain that a transport delivers."""
    return {"transport": {"ref": {"name": name}, "recipients": recipients} | more}


def account(name: str, domain_name: str, *addresses: str, credentials: str | None = None, **more: Any) -> Document:
    """A MailAccount; `credentials` names its Secret."""
    spec: dict[str, Any] = {"domainRef": {"name": domain_name}, "addresses": list(addresses)}
    if credentials is not None:
        spec["credentialsSecretRef"] = {"name": credentials}
    return document("MailAccount", name, spec | more)


def transport(name: str, **member: Any) -> Document:
    """A MailTransport: exactly one member (`smtp={...}`), and perhaps `limits`."""
    return document("MailTransport", name, member)


def route(name: str, parent: tuple[str, str], *rules: Mapping[str, Any], **more: Any) -> Document:
    """A MailRoute on a parent (kind, name) with rules (see `rule`)."""
    kind, parent_name = parent
    return document(
        "MailRoute",
        name,
        {"parentRefs": [{"kind": kind, "name": parent_name}], "rules": [dict(one) for one in rules]} | more,
    )


def rule(
    name: str,
    transport_name: str | None,
    *,
    to: Sequence[str] = (),
    sender: Sequence[str] = (),
    minimum_attempts: int = 0,
) -> Document:
    """One rule of a route; without a transport it says `direct`."""
    match: dict[str, Any] = {}
    if to:
        match["toDomains"] = list(to)
    if sender:
        match["fromDomains"] = list(sender)
    if minimum_attempts:
        match["minimumAttempts"] = minimum_attempts
    one: dict[str, Any] = {"name": name}
    if match:
        one["matches"] = [match]
    return one | ({"transportRef": {"name": transport_name}} if transport_name is not None else {"direct": {}})


def basics() -> list[Document]:
    """A gateway, the domain example.org with mailboxes, alice who may log in, and the postmaster."""
    return [
        gateway(),
        domain("example-org", "example.org"),
        account("alice", "example-org", "alice", credentials="alice-login"),
        account("postmaster", "example-org", "postmaster"),
        secret("alice-login", password=PASSWORD),
    ]


def everything_through(host: str, port: int) -> list[Document]:
    """A smarthost `hop` there, and a global rule that sends all mail to it."""
    return [
        transport("hop", smtp={"host": host, "port": port}),
        route("all", ("MailGateway", "local"), rule("everything", "hop")),
    ]


_HAND_ON = """
from mailrail.local.environments import Environments

before = Environments.of
Environments.of = lambda self, name: before(self, name) | {settings!r}
"""


class Rail:
    """A running `mailrail local`. Use as a context manager, or call `stop()`."""

    def __init__(
        self,
        documents: Iterable[Document] | None = None,
        *,
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        files: Mapping[str, bytes] | None = None,
        wait: bool = True,
        python: str = sys.executable,
        settings: Mapping[str, str] | None = None,
        state: Path | None = None,
    ) -> None:
        """Start it with these documents in one file (default: `basics()`; None of them at all: its own example).

        `options` are further ones of `mailrail local`, `files` lie beside the documents; `python` and a PYTHONPATH in
        `env` run another Mailrail than this one. `settings` are variables for the services, such as
        MAILRAIL_QUEUE_LEASE_SECONDS, which `mailrail local` would keep from them. `state` is a state folder of the
        caller's, who removes it.

        Waits for its line with `ready`, unless told not to.
        """
        # Not below pytest's own folder: as root, Postgres runs as a user that must be able to pass through.
        self.folder = Path(tempfile.mkdtemp(prefix="mailrail-rail-"))
        self.folder.chmod(0o755)
        self.state = state or self.folder / "state"
        self.resources = self.folder / "mail.d"
        self.offset = free_offset((*_PORTS.values(), *_INTERNAL_PORTS))
        self._options = list(options)
        self._python = python
        self._env = dict(env or {})
        if settings:
            self._hand_on(settings)
        if documents is not None:
            self.resources.mkdir()
            for name, content in (files or {}).items():
                (self.resources / name).write_bytes(content)
            self.write("all.yaml", documents)
        self.program = self._start()
        try:
            if wait:
                self.wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def _hand_on(self, settings: Mapping[str, str]) -> None:
        """Give settings to every process of it: local mode passes no MAILRAIL_ variable on, but Python imports this."""
        folder = self.folder / "settings"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(_HAND_ON.format(settings=dict(settings)))
        paths = [str(folder), self._env.get("PYTHONPATH") or os.environ.get("PYTHONPATH", "")]
        self._env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))

    # --- where it is ---

    @property
    def mx(self) -> tuple[str, int]:
        """Address and port of SMTP, as strangers use it."""
        return self._where("mx")

    @property
    def proxied(self) -> tuple[str, int]:
        """Address and port of SMTP behind a proxy, where a gateway has a listener at port 1026."""
        return self._where("proxied")

    @property
    def submission(self) -> tuple[str, int]:
        """Address and port of submission with STARTTLS."""
        return self._where("submission")

    @property
    def submissions(self) -> tuple[str, int]:
        """Address and port of submission with TLS from the first byte."""
        return self._where("submissions")

    @property
    def policies(self) -> tuple[str, int]:
        """Address and port of the MTA-STS policies of its domains, by HTTP."""
        return self._where("policies")

    @property
    def metrics(self) -> str:
        """`HOST:PORT` of the metrics of all services."""
        return "{}:{}".format(*self._where("metrics"))

    def _where(self, name: str) -> tuple[str, int]:
        return "127.0.0.1", _PORTS[name] + self.offset

    # --- its life ---

    def _start(self) -> Program:
        command = [self._python, "-m", "mailrail.cli", "local", "--state", str(self.state)]
        command += ["--resources", str(self.resources), "--port-offset", str(self.offset)]
        return Program([*command, *self._options], name="mailrail", env=self._env)

    def wait_until_ready(self, within: float = 90.0) -> None:
        """Wait for its line with `ready`."""
        self.program.wait_for_line(r"\bready\b: ", within)

    def restart(self) -> None:
        """Stop it cleanly and start it again on the same folders and ports."""
        self.program.stop(within=60)
        self.start_again()

    def upgrade(self, python: str = sys.executable) -> None:
        """Stop it cleanly and start another Mailrail, this one by default, on the same folders and ports."""
        self.program.stop(within=60)
        self._python = python
        self.start_again()

    def start_again(self) -> None:
        """Start it on the same folders and ports after it ended."""
        self.program.stop()  # it ended; this lets go of its output
        self.program = self._start()
        self.wait_until_ready()

    def pid(self, service: str) -> int:
        """The process id of a service, or of `postgres` (its postmaster)."""
        return int((self.state / "run" / f"{service}.pid").read_text())

    def kill(self, service: str) -> int:
        """SIGKILL to a service (`postgres`: to the postmaster and every backend). Answers the process id it had."""
        pid = self.pid(service)
        victims = [psutil.Process(pid)]
        if service == "postgres":
            victims += victims[0].children(recursive=True)
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGKILL)
        return pid

    def wait_until_back(self, service: str, after: int, within: float = 60.0) -> None:
        """Wait until a killed service runs as another process, and ingress accepts connections again."""
        wait_until(
            lambda: self.pid(service) != after and psutil.pid_exists(self.pid(service)) and accepts(*self.mx),
            within,
            lambda: f"{service} is back\n{self.program.tail()}",
        )

    def stop(self) -> None:
        """Stop it and remove its folders."""
        self.program.stop(within=60)
        release_offset(self.offset)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @contextlib.contextmanager
    def frozen(self, service: str) -> Iterator[None]:
        """SIGSTOP to a service (`postgres`: to the postmaster and every backend), and SIGCONT at the end."""
        with frozen(self.pid(service), descendants=service == "postgres"):
            yield

    # --- its database ---

    def sql(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Rows of a query of the superuser in the services' database."""
        with psycopg.connect(self.superuser_url(), autocommit=True, connect_timeout=10) as connection:
            cursor = connection.execute(query.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def superuser_url(self) -> str:
        """The URL of the embedded Postgres for its superuser."""
        folder = self.state / "postgres"
        password = json.loads((folder / "passwords.json").read_text())[SUPERUSER]
        port = json.loads((folder / "postgres.json").read_text())["port"]
        return f"postgresql://{SUPERUSER}:{quote(password, safe='')}@127.0.0.1:{port}/{DATABASE}"

    # --- its resources ---

    def write(self, name: str, documents: Iterable[Document]) -> Path:
        """Write documents into a file of the resource folder, at once as editors do (a new file renamed over)."""
        return self.write_text(name, yaml.safe_dump_all(list(documents), sort_keys=False))

    def write_text(self, name: str, text: str) -> Path:
        """Write a file of the resource folder as it is."""
        path = self.resources / name
        fresh = self.folder / f"{name}.new"
        fresh.write_text(text)
        fresh.replace(path)
        return path

    # --- its command line ---

    def cli(self, *arguments: str, status: int | None = 0, within: float = 60.0) -> str:
        """Run `mailrail ARGUMENTS` against it; answers what it printed. Raises AssertionError on another status."""
        command = [self._python, "-m", "mailrail.cli", *arguments]
        return run(command, env=self._env | {"MAILRAIL_STATE": str(self.state)}, status=status, within=within)

    def cli_json(self, *arguments: str) -> Any:
        """Run a command with `--json` and parse its answer."""
        return json.loads(self.cli(*arguments, "--json"))

    def versions(self) -> set[str]:
        """What the processes that run say of themselves."""
        return {str(one["version"]) for one in self.cli_json("config", "status")["consumers"] if one["live"]}

    # --- its gRPC API, for waiting without starting a command each time ---

    def channel(self, service: str) -> grpc.Channel:
        """A channel to a service with the rights of the command line; to be closed."""
        client = json.loads((self.state / "client.json").read_text())
        keys = Path(client["tls_dir"])
        credentials = grpc.ssl_channel_credentials(
            (keys / "ca.crt").read_bytes(), (keys / "tls.key").read_bytes(), (keys / "tls.crt").read_bytes()
        )
        options = [("grpc.ssl_target_name_override", f"{service}.mailrail.internal"), ("grpc.enable_http_proxy", 0)]
        return grpc.secure_channel(client["targets"][service], credentials, options)

    def serving(self, service: str, name: str = "") -> bool:
        """What the health service of a service says."""
        with self.channel(service) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=60)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def stats(self) -> admin_pb2.GetStatsResponse:
        """Counts of the queue."""
        with self.channel("queue") as channel:
            return admin_pb2_grpc.QueueAdminServiceStub(channel).GetStats(admin_pb2.GetStatsRequest(), timeout=60)

    def queued(self) -> int:
        """Recipients in the queue that are not final."""
        return int(self.stats().queued)

    def recipients(self, address: str = "") -> list[dict[str, Any]]:
        """Recipients in the queue whose address holds this text, as the API names their fields."""
        request = admin_pb2.ListRecipientsRequest(filter=admin_pb2.Filter(to=address), page_size=1000)
        with self.channel("queue") as channel:
            answer = admin_pb2_grpc.QueueAdminServiceStub(channel).ListRecipients(request, timeout=60)
        return [
            MessageToDict(one, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
            for one in answer.recipients
        ]

    def history(self, address: str = "") -> list[dict[str, Any]]:
        """Finished recipients whose address holds this text, the newest first, as the API names their fields."""
        request = admin_pb2.ListHistoryRequest(filter=admin_pb2.Filter(to=address), page_size=1000)
        with self.channel("queue") as channel:
            answer = admin_pb2_grpc.QueueAdminServiceStub(channel).ListHistory(request, timeout=60)
        return [
            MessageToDict(one, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
            for one in answer.recipients
        ]

    def counted(self, metric: str, *labels: str) -> Counter[tuple[str, ...]]:
        """What a metric counts, by the values of these labels; what is 0 is left out."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        found: Counter[tuple[str, ...]] = Counter()
        for line in lines:
            if (series := re.fullmatch(rf"{metric}\{{(.*)\}} (\S+)", line)) is not None:
                values = dict(re.findall(r'(\w+)="([^"]*)"', series[1]))
                found[tuple(values[one] for one in labels)] += int(float(series[2]))
        return +found

    def wait_for_recipient(
        self, address: str, condition: Callable[[dict[str, Any]], object], within: float = 60.0
    ) -> dict[str, Any]:
        """Wait until a queued recipient fulfils a condition; answers it."""
        return wait_until(
            lambda: next((one for one in self.recipients(address) if condition(one)), None),
            within,
            lambda: f"{address} in the queue as wanted; there is\n{self.recipients(address)}\n{self.program.tail()}",
            ignoring=(OSError, AssertionError, LookupError, grpc.RpcError),
        )

    def mailbox(self, login: str, path: str = "") -> list[dict[str, Any]]:
        """Messages in a built-in mailbox (all mailboxes of the account without `path`), newest first."""
        request = mailbox_pb2.ListMessagesRequest(account=login, path=path, page_size=500)
        with self.channel("queue") as channel:
            answer = mailbox_pb2_grpc.MailboxServiceStub(channel).ListMessages(request, timeout=60)
        return [
            MessageToDict(one, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
            for one in answer.messages
        ]

    def read(self, message: Mapping[str, Any]) -> bytes:
        """The content of a message in a built-in mailbox."""
        request = mailbox_pb2.ReadMessageRequest(id=int(message["id"]))
        with self.channel("queue") as channel:
            parts = mailbox_pb2_grpc.MailboxServiceStub(channel).ReadMessage(request, timeout=60)
            return b"".join(part.data for part in parts)

    def wait_for_mail(
        self, login: str, condition: Callable[[dict[str, Any]], object], within: float = 60.0
    ) -> dict[str, Any]:
        """Wait until a message in a mailbox of the account fulfils a condition; answers it."""
        return wait_until(
            lambda: next((one for one in self.mailbox(login) if condition(one)), None),
            within,
            lambda: f"mail for {login} as wanted; there is\n{self.mailbox(login)}\n{self.program.tail()}",
            ignoring=(OSError, AssertionError, LookupError, grpc.RpcError),
        )

    def wait_until_empty(self, within: float = 60.0) -> None:
        """Wait until no recipient is left in the queue."""
        wait_until(
            lambda: self.queued() == 0,
            within,
            lambda: f"the queue is empty; it holds\n{self.cli('queue', 'list', status=None)}\n{self.program.tail()}",
            ignoring=(OSError, AssertionError, LookupError, grpc.RpcError),
        )
