"""The address of the page: ports that cannot be had, and no proxy."""

from __future__ import annotations

import os
import socket

import pytest

from zoo.errors import UserError
from zoo.play.serving import HOST, check_port, prepare_environment


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"^--port {port} is in use: give another one$"):
            check_port(port)
    check_port(port)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_number_that_is_no_port_is_named(port):
    with pytest.raises(UserError, match=f"^--port is {port}; it must be between 1 and 65535$"):
        check_port(port)


def test_a_port_of_the_system_is_named(monkeypatch):
    def refuse(self, address):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(UserError, match=r"^--port 80 is reserved by the system: give one above 1023$"):
        check_port(80)


def test_the_pages_own_requests_take_no_proxy_and_no_analytics_are_sent(monkeypatch):
    monkeypatch.setenv("no_proxy", "intern.example")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "True")
    prepare_environment()
    assert os.environ["no_proxy"] == "intern.example,127.0.0.1"
    assert os.environ["NO_PROXY"] == "127.0.0.1"
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
