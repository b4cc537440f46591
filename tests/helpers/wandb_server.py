"""A server of Weights & Biases on this machine that hangs: from the start, or once a run has started."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROJECT = {"id": "p", "name": "digits", "entity": {"id": "e", "name": "me"}}
BUCKET = {"id": "b", "name": "NAME", "displayName": "run", "config": "{}", "historyLineCount": 0, "project": PROJECT}
#: Answers to the requests that the start of a run waits for, by a word in them.
ANSWERS: dict[str, Any] = {
    "RunResumeStatus": {"model": None},
    "UpsertBucket": {"upsertBucket": {"bucket": BUCKET, "inserted": True}},
    "Viewer": {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}},
}


class _StartsRuns(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        answers = [data for word, data in ANSWERS.items() if self.path == "/graphql" and word in asked]
        if not answers:
            time.sleep(1000)
        name = (json.loads(asked).get("variables") or {}).get("name") or ""
        answer = json.dumps({"data": answers[0]}).replace("NAME", name).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def silent_server() -> Iterator[str]:
    """Address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def server_that_starts_runs() -> Iterator[str]:
    """Address of a server that starts a run and answers nothing else."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _StartsRuns)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
