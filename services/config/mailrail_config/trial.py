"""Trials of a configuration: documents over what is accepted, compiled and never stored (DIF-02).

The compiler runs in a process of its own: it is large, and takes seconds of a processor for thousands of objects, which
this service, whose heartbeat every other waits for, has not. One trial runs at a time; one that takes too long is
ended.
"""

import asyncio
import contextlib
import sys
from typing import Final

SECONDS: Final = 60.0
"""After which a trial is ended."""
PROCESS: Final = "mailrail_config.trial_process"
BAD_REQUEST: Final = 3
"""Exit status of the process when the documents are refused; standard output has the reason."""


class TrialFailed(Exception):
    """The trial came to no answer. The message says what to do."""


class BadTrial(ValueError):
    """The documents are refused before they are compiled; the message says why."""


class Trials:
    """Runs trials, one after the other."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def run(self, previous: bytes, request: bytes) -> bytes:
        """A TrialResponse for a TrialRequest over the accepted state. Raises BadTrial, TrialFailed."""
        async with self._turn:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", PROCESS),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,  # DIF-07: nothing of the documents reaches a log
            )
            try:
                told = len(previous).to_bytes(8, "big") + previous + request
                answer, _ = await asyncio.wait_for(process.communicate(told), SECONDS)
            except TimeoutError:
                raise TrialFailed(f"the trial took more than {SECONDS:g} s: try the change in parts") from None
            finally:
                if process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
                    await process.wait()
        if process.returncode == BAD_REQUEST:
            raise BadTrial(answer.decode())
        if process.returncode != 0:
            raise TrialFailed("the trial broke off: `mailrail config check` may find what is wrong with the documents")
        return answer
