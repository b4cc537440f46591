"""The C library's memory allocator, set so that the memory of a training step is used again in the next one.

By default glibc returns memory to the system whenever enough of it is free at the end of the heap, as after a backward
pass, and maps large blocks one by one. The next step then gets the same memory as new pages, each with a page fault in
which the system fills it with zeros: 1,100 to 6,200 of them in a step of gan.yaml and diffusion.yaml, 7% of the time.
"""

from __future__ import annotations

import ctypes
import os
import sys

MB = 1 << 20
#: Free memory at the end of the heap, in bytes, above which it is returned to the system; glibc's default is 128 kB.
TRIM_THRESHOLD = 256 * MB
#: Size in bytes from which a block has a mapping of its own, returned once it is free; the largest that glibc takes.
MMAP_THRESHOLD = 32 * MB
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")


def keep_freed_memory() -> bool:
    """Has glibc keep up to 256 MB of free memory in this process, unless the user's environment sets its allocator.

    Results do not change. Python programs that do without the command line get the same by the environment variables
    `MALLOC_TRIM_THRESHOLD_=268435456` and `MALLOC_MMAP_THRESHOLD_=33554432`.

    Returns:
        Whether it was set: not on systems without glibc, and not where the user has chosen.
    """
    chosen = any(name in os.environ for name in _VARIABLES) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if chosen or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    settings = ((_M_MMAP_THRESHOLD, MMAP_THRESHOLD), (_M_TRIM_THRESHOLD, TRIM_THRESHOLD))
    return all(mallopt(option, value) for option, value in settings)
