"""Keeps a long-running process as small as what it uses, where the C library would hoard."""

import ctypes
import gc
import sys

# Of glibc's mallopt.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
ARENAS = 2
# Larger blocks are mapped one by one, so that the system has them back as soon as they are free.
# What a batch of short texts needs is smaller: mapping that anew each time would cost time.
LARGE_BYTES = 4 << 20
# As much as this may lie free at the end of the heap.
FREE_BYTES = 16 << 20


def hoard_less() -> None:
    """Call before threads start: each would get a heap of its own, which never shrinks."""
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is None:  # another C library, which has its own ways
        return
    mallopt(_ARENA_MAX, ARENAS)
    mallopt(_MMAP_THRESHOLD, LARGE_BYTES)
    mallopt(_TRIM_THRESHOLD, FREE_BYTES)


def collect_rarely() -> None:
    """Have Python look for garbage in cycles after 20,000 new objects instead of after 700.

    Thousands of records are alive between a poll and its commit, and none is part of a cycle:
    looking at them again and again took a seventh of the time of ingest. Who calls this calls
    `tidy` now and then.
    """
    gc.set_threshold(20_000, 20, 50)


def tidy() -> None:
    """Collect what cycles hold, and give back what is free; some fifty milliseconds."""
    gc.collect()
    give_back()


def give_back() -> None:
    """Return what is free to the system. A few milliseconds: for the end of something large."""
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _libc() -> object:
    return ctypes.CDLL(None) if sys.platform == "linux" else None
