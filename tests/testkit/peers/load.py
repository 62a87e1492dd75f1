"""smtp-source and smtp-sink, Postfix's generator and sink: load that is not ours, for the bench and the scenarios."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from testkit.peers import program, require_peer
from testkit.ports import accepts, free_port, loopback_address
from testkit.processes import Program, run


@dataclass(frozen=True)
class Sink:
    """A running smtp-sink."""

    address: str
    port: int
    program: Program


@contextlib.contextmanager
def smtp_sink(*options: str, backlog: int = 1024) -> Iterator[Sink]:
    """smtp-sink, which accepts everything and throws it away; `options` are its own."""
    require_peer("smtp-sink")
    address = loopback_address()
    port = free_port(address)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options = ("-u", "nobody", *options)  # it refuses to stay root
    with Program([program("smtp-sink"), *options, f"{address}:{port}", str(backlog)], name="smtp-sink") as running:
        running.wait_until(lambda: accepts(address, port), 60, f"accepts connections at {address}:{port}")
        yield Sink(address, port, running)


def source_command(
    address: str,
    port: int,
    *,
    messages: int,
    sessions: int = 20,
    size: int = 2048,
    reuse: bool = False,
    sender: str = "source@source.test",
    recipient: str = "sink@sink.test",
    numbered: bool = False,
) -> list[str]:
    """The command line of smtp-source. `reuse` sends a session's messages over one connection (-d); `numbered` prefixes
    the recipient's local part with a serial number (-N)."""
    require_peer("smtp-source")
    command = [program("smtp-source"), "-m", str(messages), "-s", str(sessions), "-l", str(size), "-f", sender]
    command += ["-t", recipient, "-M", "source.test"]
    if reuse:
        command.append("-d")
    if numbered:
        command.append("-N")
    return [*command, f"inet:{address}:{port}"]


def smtp_source(address: str, port: int, *, within: float = 300.0, **options: object) -> str:
    """Run smtp-source to its end; `options` as in `source_command`. Raises AssertionError when one was refused."""
    return run(source_command(address, port, **options), within=within)  # type: ignore[arg-type]
