"""An nsd of one's own: the name server that has the zones of a test."""

import os
import pwd
import signal
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

import dns.exception
import dns.message
import dns.query
import dns.rdatatype

from testkit.conditions import wait_until
from testkit.peers import program, require_peer
from testkit.ports import free_port, loopback_address
from testkit.processes import Program

_CONFIG = """\
server:
  ip-address: {address}@{port}
  port: {port}
  server-count: 1
  zonesdir: "{folder}"
  database: ""
  pidfile: ""
  logfile: ""
  xfrdfile: "{state}/xfrd.state"
  xfrdir: "{state}"
  zonelistfile: "{state}/zone.list"
  chroot: ""
  username: "{user}"
  rrl-ratelimit: 0
remote-control:
  control-enable: no
"""
_ZONE = """\
zone:
  name: "{name}"
  zonefile: "{file}"
"""


def zone_file(name: str) -> str:
    """The name of the file of a zone, `name` without the final dot."""
    return f"{name or 'root'}.zone"


def configuration(zones: Iterable[str], address: str, port: int, *, folder: str, state: str, user: str = "") -> str:
    """nsd.conf for zones whose files are in `folder`; `state`: a folder that nsd writes to; `user`: who it becomes
    where root starts it."""
    server = _CONFIG.format(address=address, port=port, folder=folder, state=state, user=user)
    return server + "".join(_ZONE.format(name=f"{name}.", file=zone_file(name)) for name in zones)


class Nsd:
    """A running nsd. Use as a context manager, or call `stop()`."""

    def __init__(self, zones: Mapping[str, str]) -> None:
        """Serve `zones` (name without the final dot, "" for the root: text of the master file)."""
        require_peer("nsd")
        self.address = loopback_address()
        self.port = free_port(self.address, udp=True)
        self._temporary = tempfile.TemporaryDirectory(prefix="mailrail-nsd-")
        self._folder = Path(self._temporary.name)
        self._write(zones)
        config = self._folder / "nsd.conf"
        folder, user = self._temporary.name, pwd.getpwuid(os.geteuid()).pw_name
        config.write_text(configuration(zones, self.address, self.port, folder=folder, state=folder, user=user))
        self._program = Program([program("nsd"), "-d", "-c", config], name="nsd")
        try:
            self._program.wait_for_line("nsd started", 60)
        except AssertionError:
            self.stop()
            raise

    def load(self, zones: Mapping[str, str]) -> None:
        """Serve these texts of zones that it has, instead of what it served."""
        self._write(zones)
        os.kill(self._program.pid, signal.SIGHUP)
        wait_until(lambda: all(map(self._serves, zones.items())), 60, "nsd serves what it was given last")

    def _write(self, zones: Mapping[str, str]) -> None:
        for name, text in zones.items():
            (self._folder / zone_file(name)).write_text(text)

    def _serves(self, zone: tuple[str, str]) -> bool:
        name, text = zone
        question = dns.message.make_query(f"{name}.", dns.rdatatype.SOA)
        try:
            answer = dns.query.udp(question, self.address, port=self.port, timeout=5)
        except dns.exception.Timeout:
            return False
        return any(f" {record.to_text()}" in text for rrset in answer.answer for record in rrset)

    def stop(self) -> None:
        """Stop it and remove its folder."""
        self._program.stop()
        self._temporary.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
