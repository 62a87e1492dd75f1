"""An unbound of one's own: the validating resolver, which trusts what a test makes and asks nobody else."""

import os
import re
import secrets
import signal
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Self

import dns.message
import dns.query

from testkit.conditions import wait_until
from testkit.peers import program, require_peer
from testkit.ports import free_port, loopback_address
from testkit.processes import Program

_CONFIG = """\
server:
  interface: {address}@{port}
  access-control: 127.0.0.0/8 allow
  do-not-query-localhost: no
  do-ip6: no
  num-threads: 1
  do-daemonize: no
  chroot: ""
  username: ""
  directory: "{folder}"
  pidfile: ""
  use-syslog: no
  logfile: ""
  log-queries: yes
  val-log-level: 2
  ede: yes
  module-config: "validator iterator"
  local-zone: "test." nodefault
  qname-minimisation: no
  trust-anchor-signaling: no
  root-key-sentinel: no
{anchors}
remote-control:
  control-enable: no
"""
_STUB = """\
stub-zone:
  name: "{zone}"
  stub-addr: {address}@{port}
  stub-no-cache: no
"""
_STARTED = "start of service"
_QUERY = re.compile(r"info: 127\.\d+\.\d+\.\d+ (\S+)\. (\S+) IN$")


class Question(NamedTuple):
    """What somebody asked it for."""

    name: str  # lower case, without the final dot
    kind: str


class Unbound:
    """A running unbound. Use as a context manager, or call `stop()`."""

    def __init__(self, anchors: Iterable[str], zones: Mapping[str, tuple[str, int]], port: int | None = None) -> None:
        """Trust `anchors` (DS records as a master file has them), and ask for each of `zones` (without the final dot,
        "" for the root) the name server at (address, port)."""
        require_peer("unbound")
        self.address = loopback_address()
        self.port = port or free_port(self.address, udp=True)
        self._temporary = tempfile.TemporaryDirectory(prefix="mailrail-unbound-")
        folder = Path(self._temporary.name)
        config = folder / "unbound.conf"
        config.write_text(
            _CONFIG.format(
                address=self.address,
                port=self.port,
                folder=folder,
                anchors="\n".join(f'  trust-anchor: "{anchor}"' for anchor in anchors),
            )
            + "".join(_STUB.format(zone=f"{zone}.", address=at[0], port=at[1]) for zone, at in zones.items())
        )
        self._program = Program([program("unbound"), "-d", "-c", config], name="unbound")
        try:
            self._program.wait_for_line(_STARTED, 60)
        except AssertionError:
            self.stop()
            raise

    @property
    def endpoint(self) -> str:
        """`HOST:PORT`, as settings name it."""
        return f"{self.address}:{self.port}"

    def questions(self) -> list[Question]:
        """What it was asked for so far, oldest first."""
        last = f"seen-{secrets.token_hex(8)}"
        self._ask(last)
        wait_until(lambda: any(one.name == last for one in self._logged()), 60, "unbound has logged what it was asked")
        return [one for one in self._logged() if not one.name.startswith("seen-")]

    def asked(self, name: str, kind: str) -> int:
        """How often it was asked for these records."""
        return self.questions().count(Question(name, kind))

    def forget(self) -> None:
        """Empty its caches: of answers, of keys, and of which servers are slow."""
        before = self._starts()
        os.kill(self._program.pid, signal.SIGHUP)
        wait_until(lambda: self._starts() > before, 60, "unbound has started afresh")

    def logged(self) -> str:
        """The tail of its log, which says why an answer is bogus."""
        return self._program.tail()

    def _starts(self) -> int:
        return sum(_STARTED in line for line in list(self._program.lines))

    def _logged(self) -> list[Question]:
        found = map(_QUERY.search, list(self._program.lines))
        return [Question(one[1].lower(), one[2]) for one in found if one is not None]

    def _ask(self, name: str) -> None:
        dns.query.udp(dns.message.make_query(name, "NULL"), self.address, port=self.port, timeout=60)

    def stop(self) -> None:
        """Stop it and remove its folder."""
        self._program.stop()
        self._temporary.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
