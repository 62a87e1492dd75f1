"""The mail probe: a message through the whole installation each minute (decision 20).

The leader speaks SMTP to the MX listeners' Service as strangers do, with STARTTLS where it is offered, and asks the
queue whether the message arrived. So listeners, TLS, the stream to the queue, Postgres, the owner of a shard and the
writing of results have worked, or the metric says which did not.
"""

import asyncio
import smtplib
import ssl
import time
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Final

import grpc

from mailrail.core.probe import probe_address
from mailrail.core.revision.sealing import Keyring
from mailrail.kit import log, rpc
from mailrail.kit.settings import BadSettings, host_port
from mailrail.pb.queue.v1 import probe_pb2, probe_pb2_grpc
from mailrail_operator import metrics
from mailrail_operator.model import Observed
from mailrail_operator.settings import OperatorSettings

_REPLY_WITHIN: Final = 15.0
"""Seconds for the connection, and for each reply."""
_ASK_EVERY: Final = 0.5
"""Seconds between two questions whether it has arrived."""
_ASK_WITHIN: Final = 5.0
"""Seconds for one such question."""


class ProbeResult(StrEnum):
    """How far a probe came."""

    ARRIVED = "arrived"
    UNREACHABLE = "unreachable"  # no connection, no greeting, or it was lost
    TLS_FAILED = "tls_failed"
    REFUSED = "refused"  # 4yz or 5yz
    NOT_ARRIVED = "not_arrived"  # answered 250, and not there in time
    QUEUE_UNREACHABLE = "queue_unreachable"  # answered 250, and the queue could not be asked


class NotAccepted(Exception):
    """Ingress did not take the probe."""

    def __init__(self, result: ProbeResult, words: str) -> None:
        super().__init__(words)
        self.result = result


def send(target: str, address: str) -> bytes:
    """Send a probe to HOST:PORT; the id under which it was accepted. Raises NotAccepted."""
    host, port = host_port(target)
    try:
        with smtplib.SMTP(host, port, local_hostname="operator.probe.invalid", timeout=_REPLY_WITHIN) as client:
            client.ehlo()
            if client.has_extn("starttls"):
                _start_tls(client)
            for code, text in (client.mail(address), client.rcpt(address)):
                if code // 100 != 2:
                    raise NotAccepted(ProbeResult.REFUSED, _words(code, text))
            code, text = client.data(f"From: <{address}>\r\nTo: <{address}>\r\nSubject: probe\r\n\r\nprobe\r\n")
    except smtplib.SMTPResponseException as error:
        raise NotAccepted(ProbeResult.REFUSED, _words(error.smtp_code, error.smtp_error)) from error
    except (OSError, smtplib.SMTPException) as error:
        raise NotAccepted(ProbeResult.UNREACHABLE, str(error) or type(error).__name__) from error
    if code != 250:
        raise NotAccepted(ProbeResult.REFUSED, _words(code, text))
    try:
        return bytes.fromhex(text.split()[-1].decode("ascii"))
    except (IndexError, ValueError) as error:
        raise NotAccepted(ProbeResult.REFUSED, f"not a reply of ours: {_words(code, text)}") from error


def _start_tls(client: smtplib.SMTP) -> None:
    """Encrypt, whatever the certificate: its alerts look at that, and the name dialled is that of a Service."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        client.starttls(context=context)
    except (ssl.SSLError, smtplib.SMTPException) as error:
        raise NotAccepted(ProbeResult.TLS_FAILED, str(error)) from error
    client.ehlo()


def _words(code: int, text: bytes | str) -> str:
    said = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return f"{code} {said}"[:500]


def has_mx_listener(objects: Iterable[Observed]) -> bool:
    """Whether a gateway has a listener that a probe can come in by."""
    return any(
        listener.get("protocol") == "MX" and not listener.get("proxyProtocol")
        for seen in objects
        if seen.ref.kind == "MailGateway"
        for listener in seen.spec.get("listeners") or ()
    )


class MailProbe:
    """Sends probes and counts what becomes of them. One at a time."""

    def __init__(self, settings: OperatorSettings, keys: Callable[[], Keyring], wanted: Callable[[], bool]) -> None:
        """`wanted`: whether there is a listener that a probe could come in by."""
        self._settings, self._keys, self._wanted = settings, keys, wanted
        self._log = log.get_logger()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            began = time.monotonic()
            if self._wanted():
                await self.once()
            await asyncio.sleep(max(0.0, self._settings.mail_probe_seconds - (time.monotonic() - began)))

    async def once(self) -> ProbeResult:
        """Send one and wait for it."""
        began = time.monotonic()
        words = ""
        try:
            address = probe_address(self._keys(), time.time())
            message_id = await asyncio.to_thread(send, self._settings.mail_probe_target, address)
            result = await self._arrival(message_id, began + self._settings.mail_probe_timeout)
        except NotAccepted as error:
            result, words = error.result, str(error)
        metrics.MAIL_PROBES.labels(result.value).inc()
        if result is ProbeResult.ARRIVED:
            metrics.MAIL_PROBE_SECONDS.observe(time.monotonic() - began)
            metrics.LAST_MAIL_PROBE.set(time.time())
        else:
            self._log.warning("mail probe failed", result=result.value, error=words)
        return result

    async def _arrival(self, message_id: bytes, until: float) -> ProbeResult:
        """Ask until it is there or time is up. A queue that does not answer meanwhile may be one that restarts."""
        result = ProbeResult.NOT_ARRIVED
        request = probe_pb2.TakeProbeRequest(message_id=message_id)
        while time.monotonic() < until:
            try:
                async with rpc.channel(self._settings, self._settings.queue_target, "queue") as channel:
                    stub: probe_pb2_grpc.ProbeServiceAsyncStub = probe_pb2_grpc.ProbeServiceStub(channel)
                    while time.monotonic() < until:
                        if (await stub.TakeProbe(request, timeout=_ASK_WITHIN)).arrived:
                            return ProbeResult.ARRIVED
                        result = ProbeResult.NOT_ARRIVED
                        await asyncio.sleep(_ASK_EVERY)
            except (grpc.aio.AioRpcError, BadSettings):
                result = ProbeResult.QUEUE_UNREACHABLE
                await asyncio.sleep(_ASK_EVERY)
        return result
