"""A small engine program that misbehaves as files in a folder say; it imports nothing of the project.

    python stand_in_engine.py FOLDER … --served-name NAME --port PORT

It appends its process id to `starts`, and each request to `requests`. A file changes its behaviour while it
exists; the text of `hang`, `fail` or `crash` selects the models, by a part of their names.
"""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FOLDER = Path(sys.argv[1])
PORT = int(sys.argv[sys.argv.index("--port") + 1])
MODELS = {sys.argv[sys.argv.index("--served-name") + 1]}


def is_asked_to(behaviour: str, model: str = "") -> bool:
    """Return whether the folder has a file for this behaviour that selects the model."""
    file = FOLDER / behaviour
    return file.exists() and file.read_text() in model


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if is_asked_to("exit"):
            (FOLDER / "exit").unlink()
            print("asked to exit", flush=True)
            os._exit(1)
        if is_asked_to("unhealthy"):
            self.send(503, {"status": "unavailable"})
        elif self.path == "/v1/models":
            self.send(200, {"data": [{"id": model} for model in MODELS]})
        else:
            self.send(200, {"status": "ok", "running": 0, "waiting": 0, "tokenizing": 0})

    def do_POST(self) -> None:
        body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with (FOLDER / "requests").open("a") as log:
            log.write(json.dumps({"path": self.path, "process": os.getpid(), **body}) + "\n")
        self.send(*self.respond(body))

    def respond(self, body: dict[str, Any]) -> tuple[int, object]:
        if self.path == "/v1/load_lora_adapter":
            if is_asked_to("crash", body["lora_name"]):
                os._exit(1)
            MODELS.add(body["lora_name"])
            return 200, "loaded"
        if self.path == "/v1/unload_lora_adapter":
            MODELS.discard(body["lora_name"])
            return 200, "unloaded"
        model = body["model"]
        while self.path == "/v1/chat/completions" and is_asked_to("hang", model):
            time.sleep(0.02)
        if model not in MODELS or is_asked_to("fail", model):
            return 500, {"error": {"message": f"{model} fails"}}
        if self.path == "/v1/chat/completions" and is_asked_to("no-template", model):
            return 400, {"error": {"message": "no chat template"}}
        if self.path == "/v1/embeddings":
            return 200, {"data": [{"embedding": [1.0]}]}
        return 200, {"choices": [{"text": "1", "message": {"content": "1"}}]}

    def send(self, status: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *arguments: object) -> None:
        """Ignore clients that have not waited."""


with (FOLDER / "starts").open("a") as starts:
    starts.write(f"{os.getpid()}\n")
if is_asked_to("exit-at-start"):
    print("asked to exit at once", flush=True)
    sys.exit(7)
Server(("127.0.0.1", PORT), Handler).serve_forever()
