"""pyspf as a peer: another implementation of check_host(), in a process of the system's Python, with our answers."""

import json
import subprocess
from collections.abc import Mapping, Sequence

# It asks a table instead of the DNS: which names it would ask is its own business. TXT comes as octets in base64.
_SCRIPT = """
import base64, json, sys
import spf

given = json.load(sys.stdin)
zone = given["zone"]

def look_up(name, qtype, *_, **__):
    records = zone.get(name.rstrip(".").lower(), {})
    if "FAIL" in records:
        raise spf.TempError("DNS timeout")
    found = []
    for value in records.get(qtype, []):
        if qtype == "TXT":
            value = (base64.b64decode(value),)
        elif qtype == "MX":
            value = tuple(value)
        elif qtype == "AAAA":
            value = bytes(value)
        found.append(((name, qtype), value))
    return found

spf.DNSLookup = look_up
spf.MAX_VOID_LOOKUPS = 1000  # it counts queries, where RFC 7208 4.6.4 counts terms
results = []
for client, sender, helo in given["asked"]:
    query = spf.query(client, sender, helo, receiver="receiver.example", strict=1)
    results.append(query.check()[0])
json.dump(results, sys.stdout)
"""

Zone = Mapping[str, Mapping[str, Sequence[object]]]
"""Records by type and by name in lower case; the type FAIL: no answer for the name."""


def results_of_pyspf(zone: Zone, asked: Sequence[tuple[str, str, str]]) -> list[str]:
    """Its result for each client, sender and HELO name."""
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-W", "ignore", "-c", _SCRIPT],
        input=json.dumps({"zone": zone, "asked": asked}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results: list[str] = json.loads(done.stdout)
    return results
