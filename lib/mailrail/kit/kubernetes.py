"""The API server, as far as the operator needs it: list, get, watch of metadata, server-side apply, leases, events.

Thin on purpose: the official client costs more memory than the rest of the operator. Credentials come from the pod's
service account (the token file is read again, for it rotates) or from a kubeconfig with a certificate or a token.
"""

import asyncio
import base64
import binascii
import json
import os
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import yaml

from mailrail.core.resources import KINDS
from mailrail.core.resources.crd import GROUP, VERSION
from mailrail.kit.settings import BadSettings

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_SECONDS: Final = 60.0
"""How long a token that was read from a file is used; the kubelet replaces it well before it expires."""
PAGE: Final = 500
"""Objects a page of a list."""
_METADATA: Final = "application/json;as={};g=meta.k8s.io;v=v1"
_TIMEOUT: Final = aiohttp.ClientTimeout(total=30, sock_connect=5)
_RETRIES: Final = 4
WATCH_SECONDS: Final = 45
"""The server is asked to end a watch after so long. It is taken up where it was, which costs one request."""
SILENCE_SECONDS: Final = 60.0
"""A watch in which nothing came for so long is dead. More than WATCH_SECONDS: bookmarks are promised to nobody, and
none come before the first event of a kind after the API server's start, so a quiet watch shows its life by its end."""
_EVENT_LIMIT: Final = 4 * 1024 * 1024
"""Octets of one line of a watch."""


class ApiError(Exception):
    """The API server's answer was no. `code` is HTTP's."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        super().__init__(f"{code}: {message}")


@dataclass(frozen=True)
class ApiCredentials:
    """Where the API server is and how to prove who we are."""

    server: str
    ca: str = ""  # PEM
    namespace: str = "default"
    token: str = field(default="", repr=False)
    token_file: Path | None = None
    certificate: str = ""  # PEM
    key: str = field(default="", repr=False)  # PEM

    def current_token(self) -> str:
        """The token, read anew if it is in a file."""
        if self.token_file is None:
            return self.token
        return self.token_file.read_text(encoding="ascii").strip()

    def context(self) -> ssl.SSLContext | None:
        """TLS for the API server: its CA, and our certificate if we have one. None for plain HTTP."""
        if not self.server.startswith("https:"):
            return None
        context = ssl.create_default_context(cadata=self.ca or None)
        if self.certificate:
            # ssl reads certificates from files alone.
            with tempfile.TemporaryDirectory(prefix="mailrail-") as folder:
                path = Path(folder) / "client.pem"
                path.touch(mode=0o600)
                path.write_text(f"{self.certificate}\n{self.key}\n", encoding="ascii")
                context.load_cert_chain(path)
        return context


def find_credentials(kubeconfig: Path | None) -> ApiCredentials:
    """The pod's service account, or a kubeconfig. Raises BadSettings."""
    if kubeconfig is None:
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if host and (SERVICE_ACCOUNT / "token").exists():
            return ApiCredentials(
                f"https://{f'[{host}]' if ':' in host else host}:{port}",
                (SERVICE_ACCOUNT / "ca.crt").read_text(encoding="ascii"),
                (SERVICE_ACCOUNT / "namespace").read_text(encoding="ascii").strip(),
                token_file=SERVICE_ACCOUNT / "token",
            )
        named = os.environ.get("KUBECONFIG", "")
        kubeconfig = Path(named.split(os.pathsep)[0]) if named else Path.home() / ".kube/config"
    return _from_kubeconfig(kubeconfig)


def _from_kubeconfig(path: Path) -> ApiCredentials:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        context = _named(document, "contexts", document["current-context"])["context"]
        cluster = _named(document, "clusters", context["cluster"])["cluster"]
        user = _named(document, "users", context["user"])["user"]
        if "exec" in user or "auth-provider" in user:
            raise BadSettings(f"{path}: a user with exec is not supported; use a token or a certificate")
        token_file = user.get("tokenFile")
        return ApiCredentials(
            cluster["server"].rstrip("/"),
            _pem(path, cluster, "certificate-authority"),
            context.get("namespace") or "default",
            user.get("token", ""),
            path.parent / token_file if token_file else None,
            _pem(path, user, "client-certificate"),
            _pem(path, user, "client-key"),
        )
    except (OSError, KeyError, TypeError, ValueError, StopIteration, yaml.YAMLError) as error:
        raise BadSettings(f"{path} is not a usable kubeconfig: {type(error).__name__} {error}") from error


def _named(document: Mapping[str, Any], section: str, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(entry for entry in document[section] if entry["name"] == name)
    return found


def _pem(path: Path, entry: Mapping[str, Any], name: str) -> str:
    if f"{name}-data" in entry:
        try:
            return base64.b64decode(entry[f"{name}-data"], validate=True).decode("ascii")
        except binascii.Error as error:
            raise ValueError(f"{name}-data is not base64") from error
    return (path.parent / entry[name]).read_text(encoding="ascii") if name in entry else ""


def resource_path(kind: str, namespace: str | None, name: str | None = None) -> str:
    """The path of our resources: of one object, of a namespace, or of all namespaces."""
    within = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/{GROUP}/{VERSION}{within}/{KINDS[kind].PLURAL}" + (f"/{name}" if name else "")


def core_path(plural: str, namespace: str | None, name: str | None = None) -> str:
    """The path of Kubernetes' own core objects."""
    within = f"/namespaces/{namespace}" if namespace else ""
    return f"/api/v1{within}/{plural}" + (f"/{name}" if name else "")


class Api:
    """Calls to the API server. Raises ApiError, or aiohttp.ClientError and TimeoutError when it is out of reach."""

    def __init__(self, credentials: ApiCredentials, session: aiohttp.ClientSession) -> None:
        self.credentials = credentials
        self._session = session
        self._token, self._token_read = "", float("-inf")

    def _headers(self) -> dict[str, str]:
        if time.monotonic() - self._token_read > TOKEN_SECONDS:
            self._token, self._token_read = self.credentials.current_token(), time.monotonic()
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    async def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> dict[str, Any]:
        """One request; again after a while when the server asks for it (429, 503 with Retry-After)."""
        data = None if body is None else json.dumps(body).encode()
        for attempt in range(_RETRIES):
            headers = self._headers() | {"Accept": accept} | ({"Content-Type": content_type} if data else {})
            async with self._session.request(
                method, self.credentials.server + path, data=data, params=params, headers=headers, timeout=_TIMEOUT
            ) as response:
                if response.status < 300:
                    answer: dict[str, Any] = await response.json(content_type=None)
                    return answer
                if response.status == 401:
                    self._token_read = float("-inf")  # rotated
                wait = _seconds(response.headers.get("Retry-After", ""))
                again = (response.status in (429, 503) and wait is not None) or response.status == 401
                if not again or attempt == _RETRIES - 1:
                    raise ApiError(response.status, await _reason(response))
            await asyncio.sleep(min(wait or 0, 5) + 0.05 * (attempt + 1))
        raise AssertionError("the last attempt returns or raises")

    async def get(self, path: str) -> dict[str, Any] | None:
        """An object; None when it is not there."""
        try:
            return await self.call("GET", path)
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    async def list(self, path: str, *, metadata: bool = False) -> tuple[list[dict[str, Any]], str]:
        """All objects, page by page, and the resource version of the whole."""
        accept = _METADATA.format("PartialObjectMetadataList") if metadata else "application/json"
        items: list[dict[str, Any]] = []
        params = {"limit": str(PAGE)}
        while True:
            page = await self.call("GET", path, params=params, accept=accept)
            kind, version = page.get("kind", "").removesuffix("List"), page.get("apiVersion")
            items += ({"kind": kind, "apiVersion": version} | item for item in page.get("items") or ())
            more = page["metadata"].get("continue")
            if not more:
                return items, page["metadata"]["resourceVersion"]
            params = {"limit": str(PAGE), "continue": more}

    async def count(self, path: str) -> int:
        """How many objects there are, without reading more than one of them."""
        accept = _METADATA.format("PartialObjectMetadataList")
        page = await self.call("GET", path, params={"limit": "1"}, accept=accept)
        return len(page.get("items") or ()) + int(page["metadata"].get("remainingItemCount") or 0)

    async def watch_metadata(self, path: str, version: str) -> AsyncIterator[dict[str, Any]]:
        """Events with the metadata of objects alone: never the content of a Secret. Ends when the server ends it."""
        params = {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true"}
        params["timeoutSeconds"] = str(WATCH_SECONDS)
        headers = self._headers() | {"Accept": _METADATA.format("PartialObjectMetadata")}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=SILENCE_SECONDS)
        async with self._session.get(
            self.credentials.server + path, params=params, headers=headers, timeout=timeout
        ) as response:
            if response.status >= 300:
                raise ApiError(response.status, await _reason(response))
            rest = b""
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > _EVENT_LIMIT:
                    raise ApiError(500, "an event of the watch is too large")
                for line in lines:
                    yield json.loads(line)

    async def apply_status(
        self,
        kind: str,
        namespace: str,
        name: str,
        uid: str,
        status: Mapping[str, Any],
        *,
        manager: str,
        version: str | None = None,
    ) -> dict[str, Any]:
        """Server-side apply of the part of the status that a field manager owns. Raises ApiError; 409 with another uid,
        for the object was made anew, or when `version` is given and is not its resourceVersion any more."""
        body = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": kind,
            "metadata": {"name": name, "namespace": namespace, "uid": uid}
            | ({"resourceVersion": version} if version else {}),
        }
        if status:  # an empty one would be owned as such
            body["status"] = status
        return await self.call(
            "PATCH",
            resource_path(kind, namespace, name) + "/status",
            body,
            params={"fieldManager": manager, "force": "true"},
            content_type="application/apply-patch+yaml",  # JSON is YAML
        )


def _seconds(retry_after: str) -> int | None:
    """None for a date, which is legal too, and for what is no number of seconds at all."""
    return int(retry_after) if retry_after.isascii() and retry_after.isdigit() and len(retry_after) <= 9 else None


async def _reason(response: aiohttp.ClientResponse) -> str:
    text = (await response.content.read(65_536)).decode("utf-8", "replace")
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text[:200]


@asynccontextmanager
async def connect(credentials: ApiCredentials) -> AsyncIterator[Api]:
    """An Api while the context lasts."""
    context = credentials.context()
    connector = aiohttp.TCPConnector(ssl=context if context is not None else True, limit=64)
    async with aiohttp.ClientSession(connector=connector, trust_env=False) as session:
        yield Api(credentials, session)
