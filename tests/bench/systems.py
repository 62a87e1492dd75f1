"""What is measured: Mailrail whole, and Postfix as the yardstick, each as a running system with named parts."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from bench.load import CountingSink

from testkit.peers.postfix import Postfix


@dataclass(frozen=True)
class System:
    """A running mail system that hands everything on to the sink."""

    name: str
    address: str
    port: int
    parts: Callable[[], Mapping[str, list[int]]]  # name of each part: its root processes, as they are now
    sender: str = "source@source.test"
    recipient: str = "sink@sink.test"


@contextlib.contextmanager
def postfix(sink: CountingSink) -> Iterator[System]:
    """Postfix as it comes, relaying to the sink, without its limit of connections a client.

    `in_flow_delay = 0` and higher destination concurrency were tried: no faster than the defaults, within the noise.
    """
    with Postfix("postfix.test", relay_to=(sink.address, sink.port)) as running:
        yield System("Postfix", running.address, running.port, lambda: {"postfix": [running.pid]})
