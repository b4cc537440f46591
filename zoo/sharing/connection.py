"""Whether a server can be reached, before a library that would try for long."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

CONNECT_TIMEOUT = 5.0  # seconds


def connection_problem(url: str) -> str:
    """Reason why a server cannot be reached; empty if it can, or if a proxy is configured.

    Args:
        url: address of the server, such as "https://huggingface.co".
    """
    parts = urlsplit(url)
    if getproxies() or not parts.hostname:
        return ""
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((parts.hostname, port), timeout=CONNECT_TIMEOUT).close()
    except OSError as error:
        return f"no connection to {parts.hostname}: {error.strerror or error}"
    return ""
