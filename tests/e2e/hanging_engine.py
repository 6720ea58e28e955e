"""A fake engine that always passes its health check, and fails every request once a file is newer than it.

python -m tests.e2e.hanging_engine FILE … --port PORT
"""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FAILURE_FILE = Path(sys.argv[1])
STARTED_AT = time.time()
PORT = int(sys.argv[sys.argv.index("--port") + 1])


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send(200, {"status": "ok", "running": 0, "waiting": 0, "tokenizing": 0})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        fails = FAILURE_FILE.exists() and FAILURE_FILE.stat().st_mtime > STARTED_AT
        self.send(500 if fails else 200, {} if fails else {"choices": [{"text": "1"}]})

    def send(self, status: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
