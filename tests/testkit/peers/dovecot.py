"""A Dovecot of one's own: the SASL server that is not ours.

It answers Postfix's authentication questions (`auth`), and can serve submission itself (587 with STARTTLS and 465 with
implicit TLS), handing accepted mail on to `relay_to`. Mechanisms: SCRAM-SHA-256, SCRAM-SHA-1, CRAM-MD5, PLAIN, LOGIN,
each switchable.
"""

import contextlib
import os
import pwd
import shutil
import smtplib
import tempfile
from pathlib import Path
from typing import Self

from testkit.ca import Authority, Certificate
from testkit.peers import program, require_peer
from testkit.ports import accepts, free_port, loopback_address
from testkit.processes import Program

MECHANISMS = ("scram-sha-256", "scram-sha-1", "cram-md5", "plain", "login")

_CONFIG = """\
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/dovecot.log
auth_verbose = yes
protocols = {protocols}
listen = {address}
hostname = {hostname}
login_trusted_networks =
default_login_user = nobody
default_internal_user = nobody
default_internal_group = nogroup
first_valid_uid = 1
mail_location = maildir:~/mail
disable_plaintext_auth = {demand_tls}
auth_mechanisms = {mechanisms}
auth_failure_delay = 0
ssl = {ssl}
ssl_cert = <{folder}/server.pem
ssl_key = <{folder}/server.pem
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%u {folder}/users
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={folder}/home/%u
}}
service anvil {{
  chroot =
  # no growing delay for an address that failed before: every test comes from the same one
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service auth {{
  user = root
  inet_listener {{
    address = {address}
    port = {auth_port}
  }}
}}
service stats {{
  chroot =
}}
"""
_SUBMISSION = """\
submission_relay_host = {relay_host}
submission_relay_port = {relay_port}
submission_relay_trusted = yes
submission_max_mail_size = 50M
service submission-login {{
  chroot =
  inet_listener submission {{
    port = {submission_port}
  }}
  inet_listener submissions {{
    port = {submissions_port}
    ssl = yes
  }}
}}
"""


class Dovecot:
    """A running Dovecot. Use as a context manager, or call `stop()`."""

    def __init__(
        self,
        users: dict[str, str],
        *,
        mechanisms: tuple[str, ...] = MECHANISMS,
        certificate: Certificate | None = None,
        demand_tls: bool = True,
        relay_to: tuple[str, int] | None = None,
        hostname: str = "dovecot.test",
    ) -> None:
        """Start it and wait until it serves.

        `users` maps logins to passwords. With `relay_to` it serves submission at `submission` and `submissions`;
        without a `certificate` a throw-away one is made. `demand_tls`: PLAIN and LOGIN only over TLS.
        """
        require_peer("dovecot")
        self.address = loopback_address()
        self.auth = (self.address, free_port(self.address))
        """Where Postfix asks: `Postfix(sasl=dovecot.auth)`."""
        self.submission = (self.address, free_port(self.address))
        self.submissions = (self.address, free_port(self.address))
        self.folder = Path(tempfile.mkdtemp(prefix="mailrail-dovecot-"))
        self.folder.chmod(0o755)
        (certificate or Authority().issue(hostname)).write(self.folder)
        nobody = pwd.getpwnam("nobody")
        for login in users:
            home = self.folder / "home" / login
            home.mkdir(parents=True)
            os.chown(home, nobody.pw_uid, nobody.pw_gid)
        secrets = self.folder / "users"
        secrets.write_text("".join(f"{login}:{{PLAIN}}{password}\n" for login, password in users.items()))
        secrets.chmod(0o600)
        text = _CONFIG.format(
            folder=self.folder,
            address=self.address,
            hostname=hostname,
            protocols="submission" if relay_to is not None else "none",
            demand_tls="yes" if demand_tls else "no",
            mechanisms=" ".join(mechanisms),
            ssl="yes" if relay_to is not None else "no",
            uid=nobody.pw_uid,
            gid=nobody.pw_gid,
            auth_port=self.auth[1],
        )
        if relay_to is not None:
            text += _SUBMISSION.format(
                relay_host=relay_to[0],
                relay_port=relay_to[1],
                submission_port=self.submission[1],
                submissions_port=self.submissions[1],
            )
        config = self.folder / "dovecot.conf"
        config.write_text(text)
        self._program = Program([program("dovecot"), "-F", "-c", config], name=hostname)
        try:
            self._program.wait_until(lambda: accepts(*self.auth), 60, "answers authentication")
            if relay_to is not None:
                self._program.wait_until(self._greets, 60, "greets on submission")
        except AssertionError as error:
            log = self.logged()
            self.stop()
            raise AssertionError(f"{error}\n{log}") from error

    def logged(self) -> str:
        """Its log so far."""
        log = self.folder / "dovecot.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def stop(self) -> None:
        """Stop it and remove its folder."""
        self._program.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _greets(self) -> bool:
        with contextlib.suppress(smtplib.SMTPException), smtplib.SMTP(*self.submission, timeout=5):
            return True
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
