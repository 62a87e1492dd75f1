"""`python -m bench sendmail`: how long `mailrail-sendmail` takes to start, and to send, beside the bare interpreter.

Each round runs all of them in turn, so what else the machine does weighs on all alike; the median is what is told.
SML-11b promises the ratio of the first two rows. msmtp stands beside them where it is installed.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from testkit.ca import Authority
from testkit.next_hop import NextHop

PROMISED = 8.0
"""Times the start of the bare interpreter (SML-11b)."""
MESSAGE = b"Subject: bench\n\nhello\n"


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="make bench ARGS='sendmail ...'", description=__doc__)
    parser.add_argument("--runs", type=int, default=30, help="rounds (default 30)")
    runs = parser.parse_args(arguments).runs
    with tempfile.TemporaryDirectory() as name:
        for line in measured(Path(name), runs):
            print(line)
    return 0


def measured(folder: Path, runs: int) -> list[str]:
    """The rows of the report."""
    authority = Authority()
    ca = authority.write(folder)
    accounts = {"ada": "s3cret"}
    tls = authority.issue("127.0.0.1").server_context()
    with NextHop(address="127.0.0.1", tls=tls, implicit_tls=True, accounts=accounts) as hop:
        own = {
            "SERVER": "127.0.0.1",
            "PORT": str(hop.port),
            "CA_FILE": str(ca),
            "LOGIN": "ada",
            "PASSWORD": "s3cret",
            "FROM": "ada@home.test",
            "QUEUE": str(folder / "queue"),
        }
        environ = {**os.environ, **{f"MAILRAIL_SENDMAIL_{key}": value for key, value in own.items()}}
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "mailrail-sendmail, as far as its input": [sys.executable, "-m", "mailrail.sendmail", "-bp"],
            "mailrail-sendmail, a message": [sys.executable, "-m", "mailrail.sendmail", "bob@away.test"],
        }
        if msmtp := shutil.which("msmtp"):
            config = folder / "msmtprc"
            config.write_text(
                f"account default\nhost 127.0.0.1\nport {hop.port}\ntls on\ntls_starttls off\ntls_trust_file {ca}\n"
                "auth on\nuser ada\npassword s3cret\nfrom ada@home.test\n"
            )
            config.chmod(0o600)
            commands["msmtp, a message"] = [msmtp, "-C", str(config), "bob@away.test"]
        seconds: dict[str, list[float]] = {each: [] for each in commands}
        for _ in range(runs):
            for each, command in commands.items():
                begun = time.perf_counter()
                subprocess.run(command, input=MESSAGE, env=environ, check=True, stdout=subprocess.DEVNULL)
                seconds[each].append(time.perf_counter() - begun)
    medians = {each: statistics.median(found) for each, found in seconds.items()}
    bare = medians["python -c pass"]
    rows = [f"{each:40} {median * 1000:7.1f} ms  {median / bare:5.1f} x" for each, median in medians.items()]
    return [*rows, f"promised: at most {PROMISED:g} x, as far as its input (SML-11b)"]
