"""From documents to one revision: pure, deterministic, and careful with what already works (CFG-01).

    compile(sources, previous, keys) → Compiled(revision, diagnostics, state, ...)

The work, in order:

1. `reading`: every document, with the typed models, and each object compiled by itself (`pieces`). A broken one is
   refused and its last accepted version takes its place. Objects of a file that cannot be read count as unchanged; so
   do those of a file that is gone, while one that cannot be read may be its new name.
2. `settling`, until nothing changes: who owns each domain name, address, login, port and hostname (`ownership`); that
   every gateway has its postmaster; that no alias leads back to itself. Who loses falls back to the last accepted
   version.
3. `building`: references are resolved. What is missing is named and its mail deferred, never sent by another way. The
   rules of each level are put in order: priority, then namespace/name, then position; hidden and ambiguous ones found.
4. `verdict`: conditions for each object, findings with file and line.

The order in which documents arrive has no influence: they are sorted first. The input of the next compilation is
`Compiled.state`, which the config service stores with each revision.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mailrail.core.config.building import Build, BuildOptions
from mailrail.core.config.diagnostics import ConditionType, Diagnostics, Reason, SourceLocation
from mailrail.core.config.ownership import next_change
from mailrail.core.config.reading import Candidate, Input, Remark, Sources
from mailrail.core.config.secret_uses import SecretUses, Value
from mailrail.core.config.settling import Settlement, settle
from mailrail.core.config.state import Accepted, CompilerState, with_bounded_pieces
from mailrail.core.config.verdict import diagnose
from mailrail.core.revision.revision import ObjectRef, Revision, checksum, encode
from mailrail.core.revision.sealing import Keyring


@dataclass(frozen=True, slots=True)
class Compiled:
    """What one compilation gives."""

    revision: Revision
    encoded: bytes
    checksum: str
    diagnostics: Diagnostics
    state: CompilerState
    values: Mapping[str, Value] = field(repr=False)
    """By SecretRef.path; those kept from the last revision are absent."""
    summary: str = ""
    again_at: int | None = None
    """Unix seconds when the same documents give another result, because a kept claim ends or a DKIM key enters another
    stage; None: never."""
    held: tuple[ObjectRef, ...] = ()
    """Objects that run, and of which this version of the software can read neither the source nor the stored piece: the
    revision lacks them and must not be published."""


def _held_up(held: Sequence[ObjectRef], settled: Settlement, read_in: Input) -> Iterator[Remark]:
    """What is to be said while nothing is published: of the objects that cannot be read, and of all that changed."""
    for ref in held:
        if ref not in read_in.candidates:  # its file cannot be read either
            read_in.candidates[ref] = Candidate(ref, None, SourceLocation(), None, None)
        message = (
            "this version of Mailrail cannot read it, neither as it is nor as it was accepted, and no change of any "
            "object goes live: mend or delete it"
        )
        yield Remark(ref, ConditionType.ACCEPTED, Reason.NOT_SUPPORTED, message)
    if held:
        more = f" and {len(held) - 1} more" if len(held) > 1 else ""
        message = f"nothing is published until {held[0]}{more} can be read"
        for ref, version in settled.versions.items():
            if version.new:
                yield Remark(ref, ConditionType.ACCEPTED, Reason.NOT_SUPPORTED, message)


def _summary(revision: Revision) -> str:
    rules = sum(
        len(level.rules)
        for levels in (revision.account_routes, revision.domain_routes, revision.global_routes)
        for level in levels
    )
    counts = (
        (len(revision.gateways), "gateway"),
        (len(revision.domains), "domain"),
        (len(revision.accounts), "account"),
        (len(revision.transports), "transport"),
        (rules, "rule"),
    )
    return ", ".join(f"{n} {word}{'' if n == 1 else 's'}" for n, word in counts)


def compile(sources: Sources, previous: CompilerState, keys: Keyring, options: BuildOptions | None = None) -> Compiled:
    """All documents, and the state of the last compilation, to one revision with its diagnostics (CFG-01).

    Never raises for what documents say: that is in the diagnostics. Equal input gives equal bytes, in whatever order
    the documents come. `keys` gives the digests of secrets and the salts of verifiers (CFG-02, CFG-03); values are made
    only when `Compiled.values` is asked for them.
    """
    read_in = Input(sources, previous)
    options = options or BuildOptions()
    settled, notes = settle(read_in, previous, options.port_map, options.own_ports)
    secrets = SecretUses(
        read_in.secrets, read_in.broken_secrets, sources.files, previous.uses, read_in.unreadable, keys
    )
    build = Build(settled, secrets, options, sources.keys_seen, sources.now)
    revision = build.revision()
    encoded = encode(revision)
    held = tuple(sorted(ref for ref in read_in.lost if ref not in settled.versions))
    everything = [*_held_up(held, settled, read_in), *read_in.notes, *notes, *build.notes]
    accepted = (
        Accepted(v.ref, v.source, v.origin, v.generation, v.stored) for _, v in sorted(settled.versions.items())
    )
    state = CompilerState(
        accepted=with_bounded_pieces(tuple(accepted), read_in.carried),
        claims=settled.new_claims,
        uses=tuple(secrets.uses[key] for key in sorted(secrets.uses)),
    )
    return Compiled(
        revision,
        encoded,
        checksum(encoded),
        diagnose(read_in, settled, everything, revision, held),
        state,
        secrets.values,
        _summary(revision),
        min((at for at in (next_change(state.claims), build.again_at) if at is not None), default=None),
        held,
    )
