"""Which recipients our domains have, and where aliases and catch-alls lead (design 5).

No cycle reaches ingress, and no alias that leads to more addresses than ingress follows.

Resolution order, as ingress follows it: an account's address, then an alias, then both again for the part before a
separator, then what the domain says of recipients it does not list, then an account that owns `@`, then its catch-all.
A report address of the domain comes before all of them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from mailrail.core.limits import EXPANSION_LIMIT
from mailrail.core.revision.revision import Domain, DomainDelivery, Recipients
from mailrail.core.smtp.address import folded

POSTMASTER: Final = "postmaster"


class End(Enum):
    """Where following an address ends."""

    ACCOUNT = auto()
    REPORTS = auto()  # an address for reports
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


class AddressBook:
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
        if domain is not None and domain.reports is not None and folded(local) in domain.reports.locals:
            return End.REPORTS
        if domain is None or domain.delivery is DomainDelivery.NONE:
            return End.FOREIGN
        local = folded(local)
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
        if domain.delivery is DomainDelivery.TRANSPORT and domain.recipients is not Recipients.LISTED:
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

    def too_large(self, limit: int = EXPANSION_LIMIT) -> dict[Node, frozenset[str]]:
        """Every alias that leads to more than `limit` addresses, with the domains that it passes through.

        Those come first that others lead through. There must be no cycle. In most configurations one sum tells that
        there is none; else only those are walked whose lists are too long when what they share is counted twice.
        """
        if sum(len(targets) for targets in self._aliases.values()) <= limit:
            return {}
        bounds: dict[Node, int] = {}
        found: dict[Node, frozenset[str]] = {}
        for start in self.nodes():
            if start.local is not None and self.lookup(f"{start.local}@{start.domain}") != start:
                continue  # an account has the address, so nothing leads through the alias
            waiting = [start]
            while waiting:
                node = waiting[-1]
                if node in bounds:
                    waiting.pop()
                    continue
                steps = [step for t in self.targets(node) if isinstance(step := self.lookup(t), Node) and step != node]
                below = [step for step in steps if step not in bounds]
                if below:
                    waiting += below
                    continue
                waiting.pop()
                bounds[node] = len(self.targets(node)) + sum(bounds[step] for step in steps)
                if bounds[node] > limit:
                    bounds[node] = limit + 1
                    large = [step for step in steps if step in found]
                    if large:
                        found[node] = frozenset((node.domain,)).union(*(found[step] for step in large))
                    elif (passed := self._passes(node, limit)) is not None:
                        found[node] = passed
        return found

    def _passes(self, node: Node, limit: int) -> frozenset[str] | None:
        """The domains on the way if a node leads to more than `limit` addresses; None if it does not."""
        seen: set[str] = set()
        domains = {node.domain}
        waiting = list(self.targets(node))
        while waiting:
            target = waiting.pop()
            if target in seen:
                continue
            seen.add(target)
            if len(seen) > limit:
                return frozenset(domains)
            step = self.lookup(target)
            if isinstance(step, Node):
                domains.add(step.domain)
                waiting.extend(self.targets(step))
        return None
