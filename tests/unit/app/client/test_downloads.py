"""Downloads from a server that has one file of a model, under the name that a test gives it."""

import asyncio
import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from app.client import AsyncClient, Client, ServiceFailure
from app.client.api.files import FileUnreadable, UploadedForm
from app.client.api.transport import ConcurrentTransport
from app.client.views.models import RemoteModel
from app.client.views.runs import resolve_target

WEIGHTS = b"new weights"
MODEL = {
    "id": "model_1",
    "name": "sums",
    "kind": "adapter",
    "base": "starter",
    "sha256": "0",
    "size_bytes": 11,
    "created_at": "2026-01-01T00:00:00Z",
}


class OneModel(BaseHTTPRequestHandler):
    file_name = "adapter.safetensors"

    def do_GET(self) -> None:
        sha256 = hashlib.sha256(WEIGHTS).hexdigest()
        file = {"path": self.file_name, "size_bytes": len(WEIGHTS), "sha256": sha256}
        body = json.dumps({"items": [file]}).encode() if self.path.endswith("/files") else WEIGHTS
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@pytest.fixture
def model() -> Iterator[RemoteModel[Any]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), OneModel)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with Client(f"http://127.0.0.1:{server.server_port}", retry_seconds=0.1) as client:
        yield RemoteModel.model_validate(MODEL, context=client.connection)
    server.shutdown()
    server.server_close()


def test_weights_of_another_model_with_the_same_size_are_replaced(
    model: RemoteModel[Any], tmp_path: Path
) -> None:
    (tmp_path / OneModel.file_name).write_bytes(b"old weights")
    model.download(tmp_path)
    assert (tmp_path / OneModel.file_name).read_bytes() == WEIGHTS


def test_no_name_of_the_server_leads_out_of_the_folder(
    model: RemoteModel[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OneModel, "file_name", "../outside")
    with pytest.raises(FileUnreadable, match="leads out of the folder"):
        model.download(tmp_path / "inside")
    for name in ("../outside.jsonl", "/tmp/outside.jsonl"):
        with pytest.raises(FileUnreadable, match="leads out of the folder"):
            resolve_target(tmp_path, name)
    assert not (tmp_path / "outside").exists()


def test_a_folder_with_files_is_refused_before_an_archive_is_downloaded(
    model: RemoteModel[Any], tmp_path: Path
) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(FileUnreadable, match="not an empty folder"):
        model.download(tmp_path, merged=True)
    with pytest.raises(FileUnreadable, match="cannot be unpacked"):
        model.download(tmp_path / "new", merged=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_another_program_at_the_address_is_named(model: RemoteModel[Any]) -> None:
    with (
        Client(model._connection.address.url) as client,
        pytest.raises(ServiceFailure, match="check the"),
    ):
        client.whoami()


def test_the_event_loop_continues_while_a_form_is_read(tmp_path: Path) -> None:
    is_free = threading.Event()

    def read_slowly() -> Iterator[bytes]:
        assert is_free.wait(60), "the event loop waits for the file"
        yield from (b"row ", b"by row")

    async def send() -> list[bytes]:
        asyncio.get_running_loop().call_soon(is_free.set)
        with (tmp_path / "rows").open("wb") as file:
            form = UploadedForm(read_slowly(), file, None, ConcurrentTransport())
            return [block async for block in form]

    assert asyncio.run(send()) == [b"row by row"]


def test_an_asynchronous_download_opens_no_file_in_the_event_loop(
    model: RemoteModel[Any], tmp_path: Path
) -> None:
    opened: list[bool] = []

    def note_open(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).startswith(str(tmp_path)):
            opened.append(threading.current_thread() is threading.main_thread())

    async def download() -> None:
        async with AsyncClient(model._connection.address.url) as client:
            same = RemoteModel[Any].model_validate(MODEL, context=client.connection)
            await RemoteModel.download.function(same, tmp_path)

    sys.addaudithook(note_open)
    asyncio.run(download())
    assert (tmp_path / OneModel.file_name).read_bytes() == WEIGHTS
    # That of this test is the last one.
    assert len(opened) >= 3 and opened == [False] * (len(opened) - 1) + [True]
