"""A mail server and client in a pod, told by HTTP what to do: what the scenarios on a cluster have for a partner.

It runs inside the cluster, on our own image, with the testkit mounted beside it (`partner.py` puts it there), so that
a scenario needs nothing of the machine that pytest runs on but `kubectl`. It takes mail in at port 25, with STARTTLS if
it was given a certificate for that, and submissions at port 465 if it was given one for those; it sends mail to
wherever it is told. At port 8080:

    GET  /seen              what came at port 25, and how many connections there were
    GET  /submitted         what came at port 465, and as whom
    GET  /traffic?id=N      what became of each try of one run
    POST /refuse, /accept   {"recipient": "a@b" or "@b", "reply": "451 ..."}
    POST /slow              {"seconds": 0.5}: from each final dot at port 25 to its reply
    POST /logins            {"user": "password", ...}: who may submit from now on
    POST /send              arguments of `testkit.traffic.Sender`; answers {"id": N}
    POST /enough            {"id": N}: begin no further message
    POST /talk              one message by smtplib, over TLS and with a login if told so; answers what was said

Times are seconds since 1970 by the node's clock.
"""

import json
import smtplib
import socket
import ssl
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from testkit.background import background
from testkit.next_hop import NextHop
from testkit.smtp_peer import SmtpPeer
from testkit.traffic import Sender

CONTROL_PORT = 8080
CERTIFICATES = Path("/certificates")  # a folder with tls.crt and tls.key for each use that has one


def wall(monotonic: float) -> float:
    """The moment of a monotonic clock reading, in seconds since 1970."""
    return time.time() - time.monotonic() + monotonic


def server_context(use: str) -> ssl.SSLContext | None:
    """The server's context for `mx` or `submissions`; None without a certificate."""
    folder = CERTIFICATES / use
    if not (folder / "tls.crt").exists():
        return None
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    return made


class PostOffice:
    """The servers, and the runs of traffic."""

    def __init__(self) -> None:
        name = f"{socket.gethostname()}.test"
        self.hop = NextHop(hostname=name, address="0.0.0.0", port=25, tls=server_context("mx"))
        self.senders: list[Sender] = []
        self.peer: SmtpPeer | None = None
        if server_context("submissions") is not None:
            background().call(self._serve_submissions({}))

    async def _serve_submissions(self, accounts: dict[str, str]) -> None:
        before = self.peer
        if before is not None:
            await before.__aexit__()
        extensions = ["PIPELINING", "8BITMIME", "AUTH PLAIN SCRAM-SHA-256"]
        tls = server_context("submissions")
        peer = SmtpPeer(host="0.0.0.0", port=465, tls=tls, implicit_tls=True, extensions=extensions, accounts=accounts)
        if before is not None:
            peer.sessions, peer.messages = before.sessions, before.messages
        self.peer = await peer.__aenter__()

    # --- GET -------------------------------------------------------------------------------------------------------

    def seen(self, _: dict[str, str]) -> Any:
        """What came at port 25."""
        receipts = [
            {
                "try": one.header("X-Try"),
                "subject": one.header("Subject"),
                "sender": one.sender,
                "recipients": one.recipients,
                "helo": one.hello,
                "from": one.client,
                "tls": one.tls,
                "at": wall(one.at),
            }
            for one in self.hop.messages
        ]
        return {"connections": self.hop.connections, "receipts": receipts}

    def submitted(self, _: dict[str, str]) -> Any:
        """What came at port 465, and as whom."""
        assert self.peer is not None, "no certificate was mounted"
        return [
            {"recipients": one.rcpts, "login": one.session.login, "mechanism": one.session.mechanism}
            for one in self.peer.messages
        ]

    def traffic(self, query: dict[str, str]) -> Any:
        """What became of each try of one run."""
        sender = self.senders[int(query["id"])]
        tries = [[one.id, one.fate.value, one.reply, wall(one.at)] for one in list(sender.traffic.tries)]
        return {"messages": sender.messages, "given_up": sender.traffic.given_up, "tries": tries}

    # --- POST ------------------------------------------------------------------------------------------------------

    def refuse(self, body: dict[str, Any]) -> Any:
        """Answer RCPT for a recipient with a reply from now on."""
        self.hop.refuse(body["recipient"], body["reply"])

    def accept(self, body: dict[str, Any]) -> Any:
        """Undo it."""
        self.hop.accept(body["recipient"])

    def slow(self, body: dict[str, Any]) -> Any:
        """Let each reply to a final dot come later."""
        self.hop.answers.delays["END"] = body["seconds"]

    def logins(self, body: dict[str, Any]) -> Any:
        """Who may submit from now on; connections that are open are cut."""
        background().call(self._serve_submissions(body))

    def send(self, body: dict[str, Any]) -> Any:
        """Start a run."""
        self.senders.append(Sender(**body))
        return {"id": len(self.senders) - 1}

    def enough(self, body: dict[str, Any]) -> Any:
        """End a run as soon as what it has begun is handed over."""
        self.senders[body["id"]].enough()

    def talk(self, body: dict[str, Any]) -> Any:
        """Hand over one message, or find out how far one gets."""
        context = ssl.create_default_context(cadata=body["ca"]) if body.get("ca") else ssl._create_unverified_context()
        client: smtplib.SMTP
        said: dict[str, Any] = {}
        try:
            if body.get("tls") == "implicit":
                client = smtplib.SMTP_SSL(body["address"], body["port"], timeout=60, context=context)
            else:
                client = smtplib.SMTP(body["address"], body["port"], timeout=60)
            with client:
                client.ehlo("client.test")
                if body.get("tls") == "starttls":
                    client.starttls(context=context)
                    client.ehlo("client.test")
                if isinstance(client.sock, ssl.SSLSocket):
                    presented = client.sock.getpeercert(binary_form=True) or b""
                    said["certificate"] = ssl.DER_cert_to_PEM_cert(presented)
                said["extensions"] = sorted(client.esmtp_features)
                if body.get("login"):
                    client.login(body["login"], body["password"])
                if body.get("recipients"):
                    client.sendmail(body["sender"], body["recipients"], body["content"].replace("\n", "\r\n"))
                said["code"], said["text"] = 250, "accepted"
        except smtplib.SMTPRecipientsRefused as refused:
            code, text = next(iter(refused.recipients.values()))
            said["code"], said["text"] = code, text.decode("utf-8", "replace")
        except smtplib.SMTPResponseException as refused:
            words = refused.smtp_error
            said["code"] = refused.smtp_code
            said["text"] = words.decode("utf-8", "replace") if isinstance(words, bytes) else words
        except OSError as error:  # SMTPException is one
            said["code"], said["text"] = 0, repr(error)
        return said


OFFICE: PostOffice


class Control(BaseHTTPRequestHandler):
    """The HTTP side; see the module."""

    def do_GET(self) -> None:
        """Look."""
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self._answer({"/seen": OFFICE.seen, "/submitted": OFFICE.submitted, "/traffic": OFFICE.traffic}, query)

    def do_POST(self) -> None:
        """Do."""
        body = json.loads(self._content() or b"{}")
        actions = (OFFICE.refuse, OFFICE.accept, OFFICE.slow, OFFICE.logins, OFFICE.send, OFFICE.enough, OFFICE.talk)
        self._answer({f"/{one.__name__}": one for one in actions}, body)

    def _content(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []  # as the API server hands it on
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        return b"".join(parts)

    def _answer(self, known: dict[str, Any], argument: dict[str, Any]) -> None:
        action = known.get(urlsplit(self.path).path)
        status, answer = 404, json.dumps({"error": f"only {sorted(known)} are here"})
        if action is not None:
            try:
                status, answer = 200, json.dumps(action(argument))
            except Exception as error:  # told to whoever asked, who is a test
                status, answer = 500, json.dumps({"error": repr(error)})
        octets = answer.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(octets)))
        self.end_headers()
        self.wfile.write(octets)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


if __name__ == "__main__":
    OFFICE = PostOffice()
    print("open", file=sys.stderr, flush=True)
    ThreadingHTTPServer(("0.0.0.0", CONTROL_PORT), Control).serve_forever()
