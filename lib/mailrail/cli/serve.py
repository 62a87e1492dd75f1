"""`mailrail serve NAME`: run one service in this process, as a pod does."""

import sys
from importlib import import_module
from importlib.util import find_spec

SERVICES = ("ingress", "queue", "outbound", "config", "policy", "dmarc", "operator")


def serve(name: str) -> int:
    """Run a service to its end; its exit status. 2 for an unknown one."""
    if name not in SERVICES:
        print(f"mailrail serve: no service {name!r}; there are {', '.join(SERVICES)}", file=sys.stderr)
        return 2
    if find_spec(f"mailrail_{name}") is None:
        print(f"mailrail serve: the service {name} is not part of this installation", file=sys.stderr)
        return 2
    result = import_module(f"mailrail_{name}.__main__").main()
    return result if isinstance(result, int) else 0
