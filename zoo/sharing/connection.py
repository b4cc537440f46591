"""Whether a server can be reached, before a library that would try for long."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

from zoo.errors import one_line

CONNECT_TIMEOUT = 5.0  # seconds


def connection_problem(url: str) -> str:
    """Reason why a server cannot be reached; empty if it can, or if a proxy is configured.

    Args:
        url: address of the server, such as "https://huggingface.co".
    """
    try:
        parts = urlsplit(url)
        port = parts.port or (80 if parts.scheme == "http" else 443)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("it must begin with https://")
    except ValueError as error:
        return f"{one_line(url)} is not the address of a server: {error}"
    if getproxies().keys() - {"no"}:  # "no" is no proxy, but the hosts that are reached without one
        return ""
    try:
        socket.create_connection((parts.hostname, port), timeout=CONNECT_TIMEOUT).close()
    except (OSError, UnicodeError) as error:  # a name that is too long for a host's, or has an empty part
        return f"no connection to {parts.hostname}: {getattr(error, 'strerror', None) or error}"
    return ""
