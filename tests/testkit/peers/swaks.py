"""swaks: the SMTP client that people test with; here with its dialogue parsed."""

import subprocess
from dataclasses import dataclass

from testkit.peers import program, require_peer

ACCEPTED = 0
"""Exit status: the whole transaction went through."""
AUTH_FAILED = 28
TLS_FAILED = 29
RCPT_REFUSED = 24
DATA_REFUSED = 26


@dataclass(frozen=True)
class Transcript:
    """What was said."""

    status: int
    text: str

    @property
    def replies(self) -> list[str]:
        """What the server said, line by line, without swaks's markers (`<-`, `<~` over TLS, `<**` for errors)."""
        lines = []
        for line in self.text.splitlines():
            marker, _, rest = line.strip().partition(" ")
            if marker in ("<-", "<~", "<**", "<~*") and rest.strip()[:3].isdigit():
                lines.append(rest.strip())
        return lines

    @property
    def accepted(self) -> bool:
        """Whether the message was accepted for every recipient."""
        return self.status == ACCEPTED


def swaks(address: str, port: int, *options: str, within: float = 60.0) -> Transcript:
    """Run swaks against a server; `options` are its own (`--tls`, `--auth-user`, ...)."""
    require_peer("swaks")
    done = subprocess.run(
        [program("swaks"), "--server", address, "--port", str(port), "--timeout", "30", *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=within,
        check=False,
    )
    return Transcript(done.returncode, done.stdout + done.stderr)
