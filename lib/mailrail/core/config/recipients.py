"""Which recipients our domains have, and where aliases and catch-alls lead: no cycle reaches ingress (design 5).

Resolution order, as ingress follows it: an account's address, then an alias, then both again for the part before a
separator, then what the domain says of recipients it does not list, then an account that owns `@`, then its catch-all.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from mailrail.core.config.revision import Delivery, Domain, Recipients

POSTMASTER: Final = "postmaster"


class End(Enum):
    """Where following an address ends."""

    ACCOUNT = auto()
    FOREIGN = auto()  # not a domain that we receive for
    BEHIND = auto()  # the delivery transport's business
    POSTMASTER = auto()
    NOBODY = auto()


@dataclass(frozen=True, slots=True, order=True)
class Node:
    """An alias, or (with `local` None) a catch-all."""

    domain: str
    local: str | None

    def __str__(self) -> str:
        return f"{self.local}@{self.domain}" if self.local is not None else f"the catch-all of {self.domain}"


class Directory:
    """Domains by name with the addresses that exist in them. `addresses` are full and lower case."""

    def __init__(self, domains: Iterable[Domain], addresses: frozenset[str]) -> None:
        self.domains: Mapping[str, Domain] = {d.name: d for d in domains}
        self._addresses = addresses
        self._aliases = {(d.name, a.local): a.targets for d in self.domains.values() for a in d.aliases}
        self._listed = {(d.name, local) for d in self.domains.values() for local in d.listed}

    def lookup(self, address: str) -> Node | End:
        """The next step from an address: an alias or catch-all to follow, or an end."""
        local, _, name = address.rpartition("@")
        domain = self.domains.get(name)
        if domain is None or domain.delivery is Delivery.NONE:
            return End.FOREIGN
        local = local.casefold()
        cut = min((at for at in (local.find(mark, 1) for mark in domain.separators) if at > 0), default=0)
        for part in (local, local[:cut]) if cut else (local,):
            if f"{part}@{name}" in self._addresses:
                return End.ACCOUNT
            if (name, part) in self._aliases:
                return Node(name, part)
            if (name, part) in self._listed:
                return End.BEHIND
        if local == POSTMASTER:
            return End.POSTMASTER
        if domain.delivery is Delivery.TRANSPORT and domain.recipients is not Recipients.LISTED:
            return End.BEHIND
        if f"@{name}" in self._addresses:
            return End.ACCOUNT
        return Node(name, None) if domain.catch_all is not None else End.NOBODY

    def targets(self, node: Node) -> tuple[str, ...]:
        """The addresses that a node stands for."""
        if node.local is not None:
            return self._aliases[(node.domain, node.local)]
        catch_all = self.domains[node.domain].catch_all
        return (catch_all,) if catch_all is not None else ()

    def nodes(self) -> list[Node]:
        """Every alias and catch-all, sorted."""
        nodes = [Node(name, local) for name, local in self._aliases]
        nodes += [Node(d.name, None) for d in self.domains.values() if d.catch_all is not None]
        return sorted(nodes, key=lambda n: (n.domain, n.local or ""))

    def cycle(self) -> tuple[Node, ...]:
        """One way that leads back to where it began, each node once; empty when there is none.

        Depth first with an explicit stack: chains of aliases may be long, and Python's stack is not.
        """
        done: set[Node] = set()
        for start in self.nodes():
            if start in done:
                continue
            path: list[Node] = [start]
            on_path: dict[Node, int] = {start: 0}
            waiting = [iter(self.targets(start))]
            while path:
                target = next(waiting[-1], None)
                if target is None:
                    waiting.pop()
                    finished = path.pop()
                    del on_path[finished]
                    done.add(finished)
                    continue
                step = self.lookup(target)
                if isinstance(step, End) or step in done or (step == path[-1] and step.local is None):
                    continue  # a catch-all whose own target does not exist leads nowhere, not in a circle
                if step in on_path:
                    return tuple(path[on_path[step] :])
                on_path[step] = len(path)
                path.append(step)
                waiting.append(iter(self.targets(step)))
        return ()
