"""Which TLS session of an earlier connection the next one may resume (TLS-10): a bounded cache, without I/O.

Where a session is resumed, no certificate is sent and none is verified: OpenSSL resumes it under whatever name the new
connection asks for. So a session is found only by a key with all that its own handshake was made under (TLS-10a). It
lives for an hour at most (TLS-10b), however long the server would take it: for that long it can go unseen that an
issuer's certificate expired or that the server has another one by now, and a longer life would spare one handshake an
hour.

A session costs memory, and to get at it costs half of what resuming it saves once. So it is kept from the second full
handshake within an hour on (TLS-10d): most destinations get one connection in that time. A server that does not resume
what it gave, or breaks on it, is asked for full handshakes alone for as long (TLS-10c).
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

from mailrail.core.outbound.targets import ConnectionKey

LONGEST = 3600.0
"""Seconds that a session may be resumed after its full handshake, that a full handshake is remembered, and that a
server which did not resume is left alone."""
MOST_TRUSTS = 16
"""Sets of trust roots that sessions are kept of. A session keeps its set alive after all else has forgotten it, and the
145 roots of a Debian take as much memory (840 KiB) as 50 sessions."""
_NOTES_EACH = 4  # notes, which hold no session, for each session that there is room for

Session = TypeVar("Session")


class SessionKey(NamedTuple):
    """What must be equal for a session to be resumed (TLS-10a)."""

    connection: ConnectionKey
    """All that connections are reused under: the transport, host, port, login, proxy, TLS mode and verified name."""
    ip: str
    """The address of the server."""
    server_name: str
    """As SNI says it, and as the certificate was verified for if it was."""
    trust: Hashable
    """What certificates are verified with, if they are, and the client's own; equal to nothing but itself. Who changes
    trust roots makes another one."""


class SessionCache(Generic[Session]):
    """Sessions by their keys. `now` is in seconds, by a clock that does not stand still while the machine is suspended
    (kit.clock). A resumed session is never kept anew, so no chain of them outlives its full handshake."""

    __slots__ = ("_most", "_notes", "_reads", "_sessions")

    def __init__(self, most: int, *, reads: int | None = None) -> None:
        """`most`: sessions at once, 0 for none; those not used for longest go. `reads`: how often `keep` is worth its
        cost in the life of the process, where getting at a session costs memory for good; None for no limit."""
        self._most = most
        self._reads = reads
        self._sessions: OrderedDict[SessionKey, tuple[Session, float]] = OrderedDict()  # with the end of its life
        # By the hash of the key, since the key would keep trust roots alive: left alone or not, until when. Where two
        # keys share a hash, a handshake more or less is full.
        self._notes: OrderedDict[int, tuple[bool, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def find(self, key: SessionKey, now: float) -> Session | None:
        """The session that a connection of this key may resume."""
        found = self._sessions.get(key)
        if found is None:
            return None
        session, until = found
        if until <= now:
            del self._sessions[key]
            return None
        self._sessions.move_to_end(key)
        return session

    def wanted(self, key: SessionKey, now: float) -> bool:
        """Whether the session of a full handshake that was made now is worth keeping. Notes the handshake."""
        if not self._most or self._reads == 0 or key in self._sessions:
            return False
        rests, until = self._notes.get(hash(key), (False, 0.0))
        if until > now:
            return not rests
        self._note(key, rests=False, now=now)
        return False

    def keep(self, key: SessionKey, session: Session | None, seconds: float, now: float) -> None:
        """Keep the session of a full handshake that was made now and is good for `seconds`. None: the server gave none,
        and will not be asked soon."""
        if self._reads is not None:
            self._reads -= 1
        if session is None or seconds <= 0:
            self.rest(key, now)
            return
        for old in [old for old, (_, until) in self._sessions.items() if until <= now]:
            del self._sessions[old]
        self._sessions[key] = (session, now + min(seconds, LONGEST))
        self._notes.pop(hash(key), None)
        while len(self._sessions) > self._most or len({each.trust for each in self._sessions}) > MOST_TRUSTS:
            self._sessions.popitem(last=False)

    def rest(self, key: SessionKey, now: float) -> None:
        """The server did not resume the session, or broke on it: full handshakes alone for a while (TLS-10c)."""
        self._sessions.pop(key, None)
        self._note(key, rests=True, now=now)

    def _note(self, key: SessionKey, *, rests: bool, now: float) -> None:
        self._notes[hash(key)] = (rests, now + LONGEST)
        self._notes.move_to_end(hash(key))
        while len(self._notes) > self._most * _NOTES_EACH:
            self._notes.popitem(last=False)
