"""The server of the page: on the loopback interface only, and nothing on the page is from elsewhere."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from zoo.errors import UserError

if TYPE_CHECKING:
    import gradio as gr

HOST = "127.0.0.1"
PORT = 7860
LARGEST_UPLOAD = "30mb"
#: What a browser may load for the page: only what this server has. Gradio's page has scripts and styles within it.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; worker-src 'self' blob:; frame-ancestors 'none'"
)


def check_port(port: int) -> None:
    """Raises a `UserError` for a port that cannot be served on.

    It is another number than a port has, it is in use, or the user may not take it.
    """
    if not 1 <= port <= 65535:
        raise UserError(f"--port is {port}; it must be between 1 and 65535")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if os.name == "posix":  # a port of a server that has just ended is free, as the server itself takes it
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except PermissionError as error:
            raise UserError(f"--port {port} is reserved by the system: give one above 1023") from error
        except OSError as error:
            raise UserError(f"--port {port} is in use: give another one") from error


def prepare_environment() -> None:
    """Settings that Gradio reads when it is imported or launched: no analytics, and no proxy to this machine."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), HOST]))


def start(page: gr.Blocks, port: int = PORT) -> str:
    """Serves a page in a thread until `page.close()`.

    Args:
        page: page of `zoo.play.page`.
        port: port on 127.0.0.1.

    Returns:
        The address.

    Raises:
        UserError: the port cannot be served on.
    """
    from PIL import EpsImagePlugin
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    check_port(port)
    EpsImagePlugin.gs_binary = False  # Pillow would run Ghostscript for an uploaded EPS file
    hosts = [HOST, "localhost"]  # another site's name for this address is refused
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts), Middleware(_Headers)]
    page.queue(api_open=False, default_concurrency_limit=1)
    _, address, _ = page.launch(
        server_name=HOST,
        server_port=port,
        prevent_thread_lock=True,
        share=False,
        inbrowser=False,
        quiet=True,
        show_error=True,
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        max_file_size=LARGEST_UPLOAD,
        app_kwargs={"middleware": middleware},
    )
    return address


class _Headers:
    """Adds headers to every answer, by which a browser loads nothing from elsewhere for the page."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self.app(scope, receive, send_with_headers)
