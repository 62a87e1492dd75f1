"""Who sent a stranger's message, by SPF, DKIM, ARC and DMARC, and what follows (standards 5 to 7).

Signatures are found in the header, the body is hashed as it streams, and the DNS is asked once all content is there:
the verdict is the reply to it (DMRC-15b), and no notification has to be sent later. What was found is written above all
fields that we add (AR-02).

`DnsAuthenticator` asks. Strangers choose what it has to ask and how slow the answers are, so each message has a bound
of time and questions, and there is a bound on the messages that are checked at a time, in all and of one client. The
message that finds no place is answered 451. Where nothing is enforced it is taken, unchecked.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Final

from mailrail.core.dmarc.psl import SuffixList, packaged_list
from mailrail.core.message_authentication.authenticate import QUESTION_LIMIT, TIME_LIMIT, authenticate
from mailrail.core.message_authentication.content import ContentHasher, HashedContent
from mailrail.core.message_authentication.verdict import AuthenticationRules, ClientIdentity, MessageVerdict
from mailrail.core.smtp.reply import Reply
from mailrail.kit import log
from mailrail.kit.dns_questions import ask_dns
from mailrail.kit.lookup_turns import LookupTurns
from mailrail.kit.resolver import DnsResolver
from mailrail_ingress import metrics
from mailrail_ingress.checks.verdicts import CheckedMessage, Edit, Pending, Refuse, SenderEvidence
from mailrail_ingress.settings import IngressSettings
from mailrail_ingress.throttle import neighbourhood

NOT_CHECKED: Final = Refuse(Reply.of(451, "4.3.2", "who sent this message cannot be checked now; try again later"))
CLIENT_PART: Final = 10
"""One client has a tenth of the messages that are checked at a time."""


def find_signatures(message: CheckedMessage) -> None:
    """The header is there: from now on the body is hashed for the signatures in it."""
    if message.evidence is not None:
        message.evidence.hasher = ContentHasher(message.header, message.now)


def judge(message: CheckedMessage) -> Pending | None:
    """Ask who sent the message."""
    evidence = message.evidence
    if evidence is None or evidence.hasher is None:
        return None
    content, evidence.hasher = evidence.hasher.finish(), None
    return Pending(partial(_ask, message, evidence, content))


def _ask(
    message: CheckedMessage,
    evidence: SenderEvidence,
    content: HashedContent,
    resume: Callable[[Refuse | Edit | None], None],
) -> None:
    def done(verdict: MessageVerdict | None) -> None:
        message.verdict = verdict
        if verdict is None:
            resume(NOT_CHECKED if evidence.rules.enforcement.enforce else None)
        elif verdict.reply is not None:
            resume(Refuse(verdict.reply))  # SPF-14b, DMRC-15b: the reply to the content
        else:
            resume(Edit(added=verdict.results))  # AR-02: Received comes below it

    evidence.authenticator.authenticate(evidence.client, content, evidence.rules, done, by_list=evidence.by_list)


def told(verdict: MessageVerdict) -> dict[str, str]:
    """The verdict for the log."""
    dmarc = verdict.dmarc.result
    return {
        "spf": verdict.spf.result.value,
        "dkim": ",".join(sorted({each.outcome.value for each in verdict.evaluated_dkim})) or "none",
        "dmarc": dmarc.value if dmarc is not None else "none",
        "action": verdict.action.value,
    }


class DnsAuthenticator:
    """`ports.Authenticator` over the kit's resolver, which keeps answers for their TTL."""

    def __init__(self, settings: IngressSettings) -> None:
        server = "" if settings.resolver == "system" else settings.resolver
        self._resolver = DnsResolver(
            server, timeout=settings.dns_timeout, turns=LookupTurns(settings.lookups, settings.dns_timeout)
        )
        self._loop = asyncio.get_running_loop()
        self._limit = settings.authentications
        self._client_limit = max(1, settings.authentications // CLIENT_PART)
        self._of_client: Counter[str] = Counter()
        self._open = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._list: asyncio.Future[SuffixList] | None = None
        metrics.AUTHENTICATING.set_function(lambda: self._open)

    def prepare_list(self) -> None:
        """See ports.Authenticator. To read the list takes more than a second, so it is read in a thread."""
        if self._list is None:
            self._list = asyncio.ensure_future(asyncio.to_thread(packaged_list))

    def authenticate(
        self,
        client: ClientIdentity,
        content: HashedContent,
        rules: AuthenticationRules,
        done: Callable[[MessageVerdict | None], None],
        *,
        by_list: bool,
    ) -> None:
        """See ports.Authenticator."""
        key = neighbourhood(client.address)
        if self._open >= self._limit or self._of_client[key] >= self._client_limit:
            metrics.AUTHENTICATED.inc("busy")
            done(None)
            return
        self._open += 1
        self._of_client[key] += 1
        task = self._loop.create_task(self._answer(key, self._find(client, content, rules, by_list=by_list), done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(
        self,
        key: str,
        finding: Coroutine[None, None, MessageVerdict | None],
        done: Callable[[MessageVerdict | None], None],
    ) -> None:
        try:
            verdict = await finding
        finally:
            self._leave(key)  # the client's next message may come with the answer
        try:
            done(verdict)
        except Exception:
            log.get_logger().exception("a verdict could not be passed on", client=key)

    def _leave(self, key: str) -> None:
        self._open -= 1
        self._of_client[key] -= 1
        if self._of_client[key] <= 0:
            del self._of_client[key]

    async def _find(
        self, client: ClientIdentity, content: HashedContent, rules: AuthenticationRules, *, by_list: bool
    ) -> MessageVerdict | None:
        begun = self._loop.time()
        try:
            if by_list:  # DMRC-20b
                self.prepare_list()
                assert self._list is not None
                rules = replace(rules, suffixes=await asyncio.shield(self._list))
            asking = authenticate(client, content, rules)
            verdict = await ask_dns(asking, self._resolver, seconds=TIME_LIMIT, questions=QUESTION_LIMIT)
            metrics.count_verdict(verdict, self._loop.time() - begun)
        except Exception:
            # A mistake of ours must not let through what it was about.
            metrics.AUTHENTICATED.inc("error")
            log.get_logger().exception("a message could not be checked", client=str(client.address))
            return None
        return verdict
