"""The process of one trial: accepted state and TrialRequest on standard input, a TrialResponse on standard output."""

import secrets
import sys
import time

from mailrail.core.config.diagnostics import Diagnostics
from mailrail.core.config.state import UnreadableState, decode_state
from mailrail.core.config.trial import Trial, TrialMode, TrialRefused, read, try_out
from mailrail.core.revision.sealing import KEY_SIZE, Keyring
from mailrail.pb.config.v1 import config_pb2 as pb
from mailrail_config.trial import BAD_REQUEST

_MODES = {
    pb.TRIAL_MODE_UNSPECIFIED: TrialMode.MERGE,
    pb.TRIAL_MODE_REPLACE: TrialMode.REPLACE,
    pb.TRIAL_MODE_DELETE: TrialMode.DELETE,
}
FINDINGS = 2_000
"""Findings that an answer has at most."""


def answer(told: bytes, now: float) -> bytes:
    """A TrialResponse. Raises TrialRefused, UnreadableState."""
    size = int.from_bytes(told[:8], "big")
    previous, request = decode_state(told[8 : 8 + size]), pb.TrialRequest.FromString(told[8 + size :])
    mode = _MODES.get(request.mode)
    if mode is None:
        raise TrialRefused("the mode is merge, replace or delete")
    keys = Keyring({"trial": secrets.token_bytes(KEY_SIZE)})
    files = read((file.name, file.content) for file in request.files)
    return _response(try_out(files, mode, previous, keys, int(now))).SerializeToString()


def _response(trial: Trial) -> pb.TrialResponse:

    return pb.TrialResponse(
        candidate=trial.candidate.encoded,
        candidate_checksum=trial.candidate.checksum,
        base=trial.base.encoded,
        diagnostics=Diagnostics((), trial.findings).encode(FINDINGS),
        bad=trial.is_bad,
        summary=trial.candidate.summary,
    )


def main() -> int:
    """Answer what standard input asks."""
    try:
        told = answer(sys.stdin.buffer.read(), time.time())
    except (TrialRefused, UnreadableState) as refused:
        sys.stdout.buffer.write(str(refused).encode())
        return BAD_REQUEST
    sys.stdout.buffer.write(told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
