"""Memory of the machine: how much of it is available to this process."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from zoo.errors import UserError

#: "auto" puts data on disk that would take more than this share of the available memory.
MEMORY_SHARE = 0.5

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping, or None if the system does not say.

    On Linux the kernel's own estimate, which counts the page cache as available, limited by the container's cgroup;
    elsewhere the free pages, or half of all pages.
    """
    found = [size for size in (_meminfo(), _cgroup()) if size is not None]
    return min(found) if found else _free_pages()


def _meminfo() -> int | None:
    with suppress(OSError):
        if match := re.search(r"^MemAvailable:\s+(\d+) kB", MEMINFO.read_text(), re.MULTILINE):
            return 1024 * int(match[1])
    return None


def _cgroup() -> int | None:
    """What is left of the container's limit (cgroup version 2), the reclaimable page cache included."""
    with suppress(OSError, ValueError):
        limit = int((CGROUP / "memory.max").read_text())  # "max" where there is no limit
        used = int((CGROUP / "memory.current").read_text())
        cached = re.search(r"^inactive_file (\d+)", (CGROUP / "memory.stat").read_text(), re.MULTILINE)
        return max(0, limit - used + (int(cached[1]) if cached else 0))
    return None


def _free_pages() -> int | None:
    for name, share in {"SC_AVPHYS_PAGES": 1.0, "SC_PHYS_PAGES": 0.5}.items():
        with suppress(AttributeError, ValueError, OSError):  # not on Windows; not all names on macOS
            return int(share * os.sysconf(name) * os.sysconf("SC_PAGE_SIZE"))
    return None


def exceeds_memory(size: int) -> bool:
    """Whether `size` bytes are more than `MEMORY_SHARE` of the available memory; False if that is not known."""
    available = available_memory()
    return available is not None and size > MEMORY_SHARE * available


def check_fits(size: int, what: str, instead: str) -> None:
    """Raises a `UserError` if `size` bytes are more than the available memory.

    Args:
        size: number of bytes.
        what: what takes them, in words.
        instead: way out.
    """
    available = available_memory()
    if available is not None and size > available:
        raise UserError(
            f"{what} takes {in_words(size)}, but only {in_words(available)} of memory are available; {instead}"
        )


def in_words(size: float) -> str:
    """A number of bytes with its unit, such as 1.2 GB."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
