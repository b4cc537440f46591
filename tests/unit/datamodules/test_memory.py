"""The memory that is available."""

from __future__ import annotations

import os

import pytest

from zoo.datamodules import memory
from zoo.datamodules.memory import available_memory, exceeds_memory, in_words


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A Linux machine with 8,000 kB available, in a container without a limit."""
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemFree:  100 kB\nMemAvailable:  8000 kB\n")
    (tmp_path / "memory.max").write_text("max\n")
    return tmp_path


def test_the_kernel_is_asked(machine):
    assert available_memory() == 8000 * 1024


def test_a_container_has_what_its_limit_leaves(machine):
    (machine / "memory.max").write_text("5000000\n")
    (machine / "memory.current").write_text("2000000\n")
    (machine / "memory.stat").write_text("anon 1000000\ninactive_file 400000\nactive_file 1\n")
    assert available_memory() == 3_400_000


def test_other_systems_are_asked_for_free_pages(machine, monkeypatch):
    (machine / "meminfo").unlink()
    pages = {"SC_AVPHYS_PAGES": 10, "SC_PHYS_PAGES": 100, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", lambda name: pages[name])
    assert available_memory() == 40960

    def on_mac(name):
        if name == "SC_AVPHYS_PAGES":
            raise ValueError("unrecognized configuration name")
        return pages[name]

    monkeypatch.setattr(os, "sysconf", on_mac)
    assert available_memory() == 50 * 4096
    monkeypatch.delattr(os, "sysconf")
    assert available_memory() is None
    assert not exceeds_memory(10**18)


def test_more_than_half_of_it_is_too_much(machine):
    assert not exceeds_memory(4000 * 1024)
    assert exceeds_memory(4000 * 1024 + 1)


def test_this_machine_has_some():
    assert 10**7 < available_memory() < 10**14


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (4_096_000_000, "4.1 GB"), (10**13, "10000.0 GB")],
)
def test_sizes_have_units(size, words):
    assert in_words(size) == words
