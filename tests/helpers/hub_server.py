"""A stand-in for the Hugging Face Hub on the loopback interface: what huggingface_hub asks for to push and to pull."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

TOKEN = "hf_of_the_owner"


@dataclass
class Repository:
    """Files of every commit, the newest last."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        """Adds files to those of the newest commit; returns the name of the new one."""
        before = next(reversed(self.commits.values()), {})
        name = f"{len(self.commits) + 1:040x}"
        self.commits[name] = {**before, **files}
        return name


class HubServer(ThreadingHTTPServer):
    """The server; `repositories` is what it holds, and `requests` what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        #: What is wrong with downloads of weights: "short", "long" or "hangs"; empty if nothing is.
        self.fault = ""
        self.released = Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    @property
    def downloads(self) -> list[str]:
        """Names of the files that were downloaded."""
        return [line.rpartition("/")[2] for line in self.requests if line.startswith("GET") and "/resolve/" in line]


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def handle_any(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.owner = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        path = self.path.partition("?")[0]
        for pattern, answer in ROUTES.items():
            if found := re.fullmatch(pattern, path):
                return answer(self, body, *found.groups())
        return self.answer(404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815 - names of http.server

    def answer(self, status: int, content: bytes | dict[str, Any] = b"", **headers: str) -> None:
        data = json.dumps(content).encode() if isinstance(content, dict) else content
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def answer_badly(self, content: bytes, **headers: str) -> None:
        """Sends less or more than was announced, or nothing for longer than anybody waits."""
        announced = {"short": 2 * len(content), "long": len(content) // 2, "hangs": len(content)}[self.server.fault]
        self.close_connection = True
        if self.server.fault == "hangs":
            self.server.released.wait(30)
            return
        self.answer(200, content, Content_Length=str(announced), **headers)

    def who(self, body: bytes) -> None:
        self.answer(200, {"name": "owner", "type": "user"}) if self.owner else self.answer(401)

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'owner'}/{asked['name']}"
        if not name.startswith("owner/"):
            return self.answer(403, {"error": "no rights"})
        if name in self.server.repositories:
            return self.answer(409, {"url": f"{self.server.url}/{name}"})
        private = asked.get("private") or asked.get("visibility") == "private"
        self.server.repositories[name] = Repository(private=bool(private))
        return self.answer(200, {"url": f"{self.server.url}/{name}"})

    def check_card(self, body: bytes) -> None:
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, body: bytes, repository: str) -> None:
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self.answer(200, {"files": modes})

    def batch(self, body: bytes, repository: str) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.server.url}/large/{one['oid']}"}}}
            for one in json.loads(body)["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": objects})

    def store(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.large[oid] = body
        self.answer(200)

    def commit(self, body: bytes, repository: str) -> None:
        files: dict[str, bytes] = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
        name = self.server.repositories[repository].commit(files)
        self.answer(200, {"commitUrl": f"{self.server.url}/{repository}/commit/{name}", "commitOid": name})

    def resolve(self, body: bytes, repository: str, revision: str, file: str) -> None:
        held = self.server.repositories.get(repository)
        if held is None or (held.private and not self.owner):
            return self.answer(401, X_Error_Code="RepoNotFound")
        if held.gated:
            return self.answer(403, X_Error_Code="GatedRepo")
        name = next(reversed(held.commits), None) if revision == "main" else revision
        if name not in held.commits:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        content = held.commits[name].get(file)
        if content is None:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=name)
        etag = hashlib.sha256(content).hexdigest()
        if self.server.fault and self.command == "GET" and file.endswith(".safetensors"):
            return self.answer_badly(content, X_Repo_Commit=name, ETag=f'"{etag}"')
        return self.answer(200, content, X_Repo_Commit=name, ETag=f'"{etag}"')


ROUTES = {
    "/api/whoami-v2": Handler.who,
    "/api/repos/create": Handler.create,
    "/api/validate-yaml": Handler.check_card,
    "/api/models/([^/]+/[^/]+)/preupload/main": Handler.preupload,
    "/api/models/([^/]+/[^/]+)/commit/main": Handler.commit,
    r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch": Handler.batch,
    "/large/([0-9a-f]+)": Handler.store,
    "/([^/]+/[^/]+)/resolve/([^/]+)/(.+)": Handler.resolve,
}


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """Runs the server in a thread."""
    with HubServer() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()
