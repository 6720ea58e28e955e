"""A model hub for tests: the part of the Hugging Face hub's HTTP API that downloads and uploads use."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_BYTES = 10_000


@dataclass
class Repository:
    """The files of a repository by commit; `branches` are names of commits."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Add a commit with these files, and return its hash."""
        content = repr((len(self.commits), sorted(files.items()))).encode()
        sha = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha


@dataclass
class FakeHub:
    """A running hub; `requests` are the paths of all requests, and `status` replaces every response."""

    url: str = ""
    models: dict[str, Repository] = field(default_factory=dict)
    datasets: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    status: int | None = None
    corrupt: set[str] = field(default_factory=set)
    """Names of files that are sent with another content than the hub states."""
    card_data: dict[str, Any] = field(default_factory=dict)
    """The header of the model cards."""
    token: str | None = None
    """The token that an upload must have."""
    private: dict[str, bool] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    """Large files by their SHA-256, which are uploaded before the commit that names them."""

    def add_model(self, name: str, files: dict[str, bytes]) -> str:
        """Commit files to a model, and return the commit."""
        return self.models.setdefault(name, Repository()).commit(files)

    def add_dataset(self, name: str, files: dict[str, bytes]) -> str:
        """Commit files to a dataset, and return the commit."""
        return self.datasets.setdefault(name, Repository()).commit(files)

    def downloads(self) -> set[str]:
        """Return the names of the files that were downloaded."""
        found = (path.partition("/resolve/")[2] for path in self.requests)
        return {commit_and_name.partition("/")[2] for commit_and_name in found if commit_and_name}


@contextmanager
def run_hub() -> Iterator[FakeHub]:
    """Run a hub on a free port of the loopback."""
    hub = FakeHub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.state.requests.append(path)
        if self.state.status is not None:
            self._send(self.state.status, b"", {})
        elif path.startswith("api/"):
            self._send_info(path.removeprefix("api/"))
        else:
            self._send_file(path)

    do_HEAD = do_GET  # noqa: N815 — the name that the base class calls

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.state.requests.append(path)
        if self.state.status is not None:
            self._send(self.state.status, b"", {})
        elif self.headers.get("Authorization") != f"Bearer {self.state.token}":
            self._send(403, b'{"error": "this token may not write"}', {})
        else:
            self._send(200, json.dumps(self._receive(path, body)).encode(), {})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.state.objects[hashlib.sha256(content).hexdigest()] = content
        self._send(200, b"", {})

    def _receive(self, path: str, body: bytes) -> Any:
        """Carry out a request of an upload, and return the response."""
        if path == "api/repos/create":
            wanted = json.loads(body)
            name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
            self.state.models.setdefault(name, Repository())
            self.state.private[name] = (
                wanted.get("visibility", "private" if wanted.get("private") else "public") == "private"
            )
            return {"url": f"{self.state.url}/{name}"}
        if path == "api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for entry in objects:
                entry["actions"] = {"upload": {"href": f"{self.state.url}/lfs/{entry['oid']}", "header": {}}}
            return {"objects": objects, "transfer": "basic"}
        name, _, _ = path.removeprefix("api/models/").rpartition("/preupload/")
        if name:
            sent = json.loads(body)["files"]
            modes = {True: "lfs", False: "regular"}
            return {
                "files": [
                    {"path": f["path"], "uploadMode": modes[f["size"] > LFS_BYTES], "shouldIgnore": False}
                    for f in sent
                ]
            }
        name = path.removeprefix("api/models/").rpartition("/commit/")[0]
        files: dict[str, bytes] = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.state.objects[value["oid"]]
        sha = self.state.models[name].commit(files)
        return {"commitUrl": f"{self.state.url}/{name}/commit/{sha}", "commitOid": sha}

    def _send_info(self, path: str) -> None:
        kind, _, rest = path.partition("/")
        rest, _, tree = rest.partition("/tree/")
        name, _, revision = rest.partition("/revision/")
        found = self._find(kind, name, tree.partition("/")[0] or revision or "main")
        if found is None:
            return
        sha, files = found
        listed = [self._describe(file, content) for file, content in files.items()]
        body: Any = {"id": name, "sha": sha, "siblings": listed, "private": False, "tags": []}
        body["cardData"] = self.state.card_data
        if tree:
            body = [
                {"type": "file", "path": file["rfilename"], "oid": file["blobId"], **file} for file in listed
            ]
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _send_file(self, path: str) -> None:
        kind = "datasets" if path.startswith("datasets/") else "models"
        path = path.removeprefix("datasets/")
        name, _, rest = path.partition("/resolve/")
        revision, _, file = rest.partition("/")
        found = self._find(kind, name, revision)
        if found is None:
            return
        sha, files = found
        if file not in files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        entry = self._describe(file, files[file])
        etag = entry["lfs"]["sha256"] if "lfs" in entry else entry["blobId"]
        content = bytes(len(files[file])) if file in self.state.corrupt else files[file]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        self._send(200, content, headers)

    def _find(self, kind: str, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = getattr(self.state, kind, {}).get(name)
        if repository is None:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            return None
        sha = repository.branches.get(revision, revision)
        if sha not in repository.commits:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return None
        return sha, repository.commits[sha]

    @staticmethod
    def _describe(name: str, content: bytes) -> dict[str, Any]:
        blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
        entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob}
        if len(content) > LFS_BYTES:
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"sha256": sha256, "oid": sha256, "size": len(content), "pointerSize": 134}
        return entry

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
