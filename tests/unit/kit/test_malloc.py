"""A service keeps the memory that the next message needs, and gives back what none needs."""

import ctypes
import json
import sys
from pathlib import Path

import pytest

from mailrail.kit import malloc

from testkit.processes import run

MIB = 1024 * 1024

SERVICE = """
import ctypes, json, sys, threading
from mailrail.kit.run import run
from mailrail.kit.settings import ServiceSettings

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.fopen.restype = ctypes.c_void_p
libc.fopen.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
libc.fclose.argtypes = [ctypes.c_void_p]
FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()

class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]

libc.mallinfo2.restype = Mallinfo2

def kept_of(mib):
    "MiB by which the heap is larger after so many were taken in blocks of 1 MiB, and freed."
    before = libc.mallinfo2().arena
    blocks = [libc.malloc(2**20) for _ in range(mib)]
    for block in blocks:
        libc.free(block)
    return (libc.mallinfo2().arena - before) >> 20

def is_mapping(mib):
    "Whether a block of so many MiB is a mapping of its own."
    before = libc.mallinfo2().hblks
    block = libc.malloc(mib * 2**20)
    mapped = libc.mallinfo2().hblks > before
    libc.free(block)
    return mapped

def heaps_with_threads():
    "How many heaps there are once eight threads have taken memory."
    barrier = threading.Barrier(8)
    def take():
        barrier.wait()
        libc.malloc(1000)
    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    file = libc.fopen(sys.argv[1].encode(), b"w")
    libc.malloc_info(0, file)
    libc.fclose(file)
    return open(sys.argv[1]).read().count("<heap nr=")

async def start(settings, stop):
    found = {"kept": kept_of(8), "given_back": kept_of(40), "small": is_mapping(3), "large": is_mapping(5)}
    print(json.dumps(found | {"heaps": heaps_with_threads()}))

run("queue", ServiceSettings, start)
"""


@pytest.mark.skipif(malloc._glibc() is None, reason="this C library is not glibc")
def test_a_service_keeps_16_mib_of_free_heap_maps_blocks_from_4_mib_on_and_has_one_heap(tmp_path: Path) -> None:
    quiet = {"MAILRAIL_QUEUE_LOG_LEVEL": "error"}
    found = json.loads(run([sys.executable, "-c", SERVICE, tmp_path / "heaps.xml"], env=quiet))
    assert found["kept"] >= 6, "8 MiB that were freed stay for the next message"
    assert found["given_back"] < malloc.TRIM_THRESHOLD // MIB, "of 40 MiB the kernel has most again"
    assert (found["small"], found["large"], found["heaps"]) == (False, True, 1)


HOLES = """
import asyncio, ctypes, json, sys
from mailrail.kit import run
from mailrail.kit.settings import ServiceSettings

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
run._TRIM_EVERY = 0.05

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4 // 1024

async def start(settings, stop):
    before = resident()
    blocks = [libc.malloc(100_000) for _ in range(1000)]
    for block in blocks:
        ctypes.memset(block, 1, 100_000)
    most = resident()
    for block in blocks[:-1]:
        libc.free(block)  # all but that at the end of the heap
    async with asyncio.timeout(50):
        while resident() > before + 20:
            await asyncio.sleep(0.01)
    print(json.dumps(most - before))

raise SystemExit(run.run("queue", ServiceSettings, start))
"""


@pytest.mark.skipif(malloc._glibc() is None, reason="this C library is not glibc")
def test_a_service_gives_back_what_bodies_left_free_between_pieces_in_use() -> None:
    taken = json.loads(run([sys.executable, "-c", HOLES], env={"MAILRAIL_QUEUE_LOG_LEVEL": "error"}))
    assert taken > 80, "MiB"


class AnotherLibrary:
    """musl: it has `mallopt` neither, nor says its version."""


@pytest.mark.parametrize(("platform", "library"), [("linux", AnotherLibrary), ("darwin", None), ("win32", None)])
def test_another_c_library_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, platform: str, library: type[AnotherLibrary] | None
) -> None:
    def load(name: None) -> AnotherLibrary:
        assert library is not None, "where there is no glibc nothing is loaded"
        return library()

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert malloc.tune() is False
    malloc.trim()


def test_a_python_without_a_shared_c_library_starts_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: None) -> AnotherLibrary:
        raise OSError("Dynamic loading not supported")

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert malloc.tune() is False
