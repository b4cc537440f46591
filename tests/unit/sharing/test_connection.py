"""Whether a server can be reached is tried, unless requests go through a proxy."""

from __future__ import annotations

import os

import pytest

from zoo.sharing.connection import connection_problem

NOBODY = "http://127.0.0.1:9"  # where nobody listens


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def test_a_server_that_does_not_answer_is_named():
    assert connection_problem(NOBODY).startswith("no connection to 127.0.0.1: ")


def test_hosts_that_are_reached_without_a_proxy_are_no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "intern.example")
    assert connection_problem(NOBODY).startswith("no connection to 127.0.0.1: ")


def test_through_a_proxy_nothing_is_tried(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert connection_problem(NOBODY) == ""


@pytest.mark.parametrize("url", ["huggingface.co", "ftp://huggingface.co", "https://", "http://a:b"])
def test_what_is_no_address_is_named(url):
    assert connection_problem(url).startswith(f"{url} is not the address of a server: ")
