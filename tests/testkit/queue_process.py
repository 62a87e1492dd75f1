"""A queue as a process of its own, to be killed: `python -m testkit.queue_process URL NODE PORT LEASE HANDOUT`.

It says `serving` once it takes mail, and serves until it is ended.
"""

import asyncio
import sys

from testkit.queue import running_queue


async def main(url: str, node: str, port: str, lease: float, handout: float) -> None:
    """Serve until killed."""
    listen = f"127.0.0.1:{port}"
    async with running_queue(url, node=node, grpc_listen=listen, lease_seconds=lease, handout_seconds=handout):
        print("serving", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]), float(sys.argv[5])))
