"""A Postfix of one's own: queue, configuration and port in a temporary folder, up in a second, stopped by its pid.

It serves three parts: a smarthost (with or without authentication, over STARTTLS or implicit TLS), the destination
that keeps what it gets in a Maildir, and the yardstick of the bench.
"""

import email
import email.message
import email.policy
import os
import pwd
import shutil
import smtplib
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from testkit.ca import Certificate
from testkit.peers import program, require_peer
from testkit.ports import free_port, loopback_address
from testkit.processes import Program, run

_MASTER = """\
{endpoint} inet n - n - - smtpd{options}
pickup    unix n - n 60    1 pickup
cleanup   unix n - n -     0 cleanup
qmgr      unix n - n 300   1 qmgr
tlsmgr    unix - - n 1000? 1 tlsmgr
rewrite   unix - - n -     - trivial-rewrite
bounce    unix - - n -     0 bounce
defer     unix - - n -     0 bounce
trace     unix - - n -     0 bounce
verify    unix - - n -     1 verify
flush     unix n - n 1000? 0 flush
proxymap  unix - - n -     - proxymap
proxywrite unix - - n -    1 proxymap
smtp      unix - - n -     - smtp
relay     unix - - n -     - smtp
showq     unix n - n -     - showq
error     unix - - n -     - error
retry     unix - - n -     - error
discard   unix - - n -     - discard
virtual   unix - n n -     - virtual
lmtp      unix - - n -     - lmtp
anvil     unix - - n -     1 anvil
scache    unix - - n -     1 scache
postlog   unix-dgram n - n - 1 postlogd
"""

_OWN_RESOLVER = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'

_QUEUE_FOLDERS = {
    # name: (owner is root, group is postdrop, mode), as Postfix's own check wants them
    **dict.fromkeys(
        ("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private", "saved", "trace"),
        (False, False, 0o700),
    ),
    "maildrop": (False, True, 0o730),
    "public": (False, True, 0o710),
    "pid": (True, False, 0o755),
}


class Postfix:
    """A running Postfix. Use as a context manager, or call `stop()`.

    Without `relay_to` it keeps every message for any recipient in one Maildir (`messages()`); with it, it hands
    everything on to that address, as a smarthost does.
    """

    def __init__(
        self,
        hostname: str = "postfix.test",
        *,
        relay_to: tuple[str, int] | None = None,
        certificate: Certificate | None = None,
        implicit_tls: bool = False,
        sasl: tuple[str, int] | None = None,
        refuse: Mapping[str, str] | None = None,
        settings: Mapping[str, str] | None = None,
        address: str | None = None,
        port: int | None = None,
        resolver: str | None = None,
    ) -> None:
        """Start it and wait until it accepts connections.

        `sasl` is where a Dovecot answers authentication (then only the authenticated may send, and only over TLS if
        there is a certificate); `refuse` maps recipient addresses or domains to replies such as `550 5.1.1 who?`;
        `settings` are further lines of main.cf; `resolver` is the address of a DNS server at port 53 that it asks in
        place of the system's, in a mount namespace of its own.
        """
        require_peer("postfix")
        self.hostname = hostname
        self.address = address or loopback_address()
        self.port = port or free_port(self.address)
        # Not below pytest's own folder: its parents are closed to the user that Postfix's processes run as.
        self.folder = Path(tempfile.mkdtemp(prefix="mailrail-postfix-"))
        self.folder.chmod(0o755)
        self.log = self.folder / "mail.log"
        self._mail = self.folder / "mail"
        self._implicit = implicit_tls
        self._make_folders()
        lines = self._main(relay_to, certificate, implicit_tls, sasl, refuse or {}) | dict(settings or {})
        (self._config / "main.cf").write_text("".join(f"{key} = {value}\n" for key, value in lines.items()))
        # A file of the last seconds might still be written to, thinks Postfix, and waits.
        os.utime(self._config / "main.cf", (1, 1))
        options = "\n  -o smtpd_tls_wrappermode=yes" if implicit_tls else ""
        (self._config / "master.cf").write_text(_MASTER.format(endpoint=f"{self.address}:{self.port}", options=options))
        daemons = run([program("postconf"), "-dh", "daemon_directory"]).strip()
        # -d: stays in the session that we made for it, so that it and its children can be stopped by pid.
        command = [f"{daemons}/master", "-c", str(self._config), "-d"]
        if resolver is not None:
            file = self.folder / "resolv.conf"
            file.write_text(f"nameserver {resolver}\n")
            # Each execs the next, so the process id stays that of the master.
            own = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _OWN_RESOLVER, str(file)]
            command = [*own, *command]
        self._program = Program(command, name=hostname)
        try:
            self._program.wait_until(self._serves, 60, f"accepts connections at {self.address}:{self.port}")
        except AssertionError as error:
            log = self.log.read_text() if self.log.exists() else "(no log)"
            self.stop()
            raise AssertionError(f"{error}\n{log}") from error

    @property
    def pid(self) -> int:
        """The process id of its master."""
        return self._program.pid

    @property
    def endpoint(self) -> str:
        """`HOST:PORT`."""
        return f"{self.address}:{self.port}"

    @property
    def _config(self) -> Path:
        return self.folder / "config"

    @property
    def _queue(self) -> Path:
        return self.folder / "queue"

    def messages(self) -> list[email.message.EmailMessage]:
        """What it keeps, oldest first. Postfix adds Return-Path, X-Original-To and Delivered-To on top."""
        found = sorted((self._mail / "all" / "new").glob("*"), key=lambda path: (path.stat().st_mtime_ns, path.name))
        messages = []
        for path in found:
            with path.open("rb") as file:
                messages.append(email.message_from_binary_file(file, policy=email.policy.default))
        return messages

    def count(self) -> int:
        """How many messages it keeps."""
        folder = self._mail / "all" / "new"
        return sum(1 for _ in folder.iterdir()) if folder.exists() else 0

    def logged(self) -> str:
        """Its log so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def queued(self) -> int:
        """How many messages wait in its queue."""
        listed = run([program("postqueue"), "-c", self._config, "-j"])
        return sum(line.startswith("{") for line in listed.splitlines())

    def stop(self) -> None:
        """Stop it and remove its folder."""
        self._program.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _serves(self) -> bool:
        with smtplib.SMTP(self.address, self.port, timeout=10) if not self._implicit else self._plain():
            return True

    def _plain(self) -> socket.socket:
        return socket.create_connection((self.address, self.port), timeout=10)

    def _make_folders(self) -> None:
        owner = pwd.getpwnam("postfix")
        postdrop = run([program("postconf"), "-dh", "setgid_group"]).strip()
        for folder in (self._config, self._queue, self.folder / "data", self._mail):
            folder.mkdir()
        for folder in (self.folder / "data", self._mail):
            shutil.chown(folder, owner.pw_uid, owner.pw_gid)
        for name, (root, drop, mode) in _QUEUE_FOLDERS.items():
            folder = self._queue / name
            folder.mkdir()
            if not root:
                os.chown(folder, owner.pw_uid, -1)
            if drop:
                shutil.chown(folder, group=postdrop)
            folder.chmod(mode)

    def _main(
        self,
        relay_to: tuple[str, int] | None,
        certificate: Certificate | None,
        implicit_tls: bool,
        sasl: tuple[str, int] | None,
        refuse: Mapping[str, str],
    ) -> dict[str, str]:
        owner = pwd.getpwnam("postfix")
        main = {
            "compatibility_level": "3.6",
            "queue_directory": str(self._queue),
            "data_directory": str(self.folder / "data"),
            "maillog_file": str(self.log),
            "maillog_file_prefixes": str(self.folder),
            "myhostname": self.hostname,
            "mydestination": "",
            "local_recipient_maps": "",
            "alias_maps": "",
            "alias_database": "",
            "inet_interfaces": "loopback-only",  # 127.0.0.1; master.cf names the address that it listens on
            "inet_protocols": "ipv4",
            "mynetworks": "" if sasl is not None else "127.0.0.0/8",
            "biff": "no",
            "smtputf8_enable": "yes",
            "smtp_dns_support_level": "disabled",
            "smtp_host_lookup": "native",
            "smtpd_tls_security_level": "none",
            "smtpd_peername_lookup": "no",
            "smtpd_relay_restrictions": "permit_mynetworks, permit_sasl_authenticated, reject",
            "smtpd_client_connection_count_limit": "0",
        }
        if relay_to is not None:
            main["relayhost"] = f"[{relay_to[0]}]:{relay_to[1]}"
        else:
            main |= {
                "virtual_mailbox_domains": "static:all",
                "virtual_mailbox_maps": "static:all/",
                "virtual_mailbox_base": str(self._mail),
                "virtual_uid_maps": f"static:{owner.pw_uid}",
                "virtual_gid_maps": f"static:{owner.pw_gid}",
                "virtual_minimum_uid": "1",
            }
        if certificate is not None:
            main |= {
                "smtpd_tls_security_level": "encrypt" if sasl is not None or implicit_tls else "may",
                "smtpd_tls_chain_files": str(certificate.write(self._config)),
                "smtpd_tls_received_header": "yes",
                "smtpd_tls_loglevel": "1",
            }
        if sasl is not None:
            main |= {
                "smtpd_sasl_auth_enable": "yes",
                "smtpd_sasl_type": "dovecot",
                "smtpd_sasl_path": f"inet:{sasl[0]}:{sasl[1]}",
                "smtpd_sasl_authenticated_header": "yes",
                "smtpd_sasl_security_options": "noanonymous",
            }
        if refuse:
            table = ", ".join(f"{{ {recipient} = {reply} }}" for recipient, reply in refuse.items())
            main["smtpd_recipient_restrictions"] = f"check_recipient_access inline:{{ {table} }}"
        return main

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def postfix_processes(postfix: Postfix) -> Iterator[int]:
    """The process ids of its master and everything below, for measuring."""
    yield postfix.pid
    yield from (process.pid for process in postfix._program.descendants())
