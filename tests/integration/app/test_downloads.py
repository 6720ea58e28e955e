"""Models, datasets and predictions leave the service as they are stored, from a local and a remote store."""

import hashlib
import io
import json
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from starlette.datastructures import Headers
from starlette.testclient import TestClient

from app.downloads.response import TooManyDownloads, download_response
from app.downloads.stored_files import FileChunks
from app.main import create_app
from app.models import files
from app.settings import Settings, get_settings
from app.storage.database import get_engine
from app.storage.opening import get_store
from app.tables import Model, ModelKind, Run, RunStatus
from tests.integration.app.stored_artifacts import add, publish, set_values
from trainers.configs import StageKind

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
SIZES = {"adapter_model.safetensors": 3_000_000, "adapter_config.json": 100, "additional/a.jinja": 513}


@pytest.fixture(params=["local", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "remote":
        monkeypatch.setenv("TUNESMITH_ARTIFACTS_URL", f"memory://{tmp_path.name}")
    yield request.param


@pytest.fixture
def add_model(settings: Settings, tmp_path: Path) -> Callable[..., Model]:
    """Return a function that publishes a model of random bytes."""

    def make(name: str = "adapter", sizes: dict[str, int] | None = None, **values: Any) -> Model:
        published = publish(tmp_path / "made" / name, f"models/model_{name}", sizes or SIZES)
        fields = {"kind": ModelKind.adapter, "base": "org/base", **values}
        row = Model(
            id=f"model_{name}",
            name=name,
            artifact=published.key,
            sha256=published.sha256,
            size_bytes=published.size_bytes,
            **fields,
        )
        return add(row)  # type: ignore[no-any-return]

    return make


@pytest.fixture
def model(store: str, add_model: Callable[..., Model]) -> Model:
    return add_model()


def damage(model: Model, name: str) -> None:
    path = f"{get_store().root}/{model.artifact}/{name}"
    content = get_store().fs.cat_file(path)
    get_store().fs.pipe_file(path, content[:-1] + bytes([content[-1] ^ 1]))


def test_a_model_is_a_tar_archive_with_its_manifest(model: Model, client: TestClient, tmp_path: Path) -> None:
    response = client.get(f"/api/v1/models/{model.id}/download")
    assert response.status_code == 200
    assert int(response.headers["content-length"]) == len(response.content)
    assert response.headers["content-disposition"] == f'attachment; filename="{model.id}.tar"'
    with tarfile.open(fileobj=io.BytesIO(response.content)) as archive:
        archive.extractall(tmp_path / "out", filter="data")
    folder = tmp_path / "out" / model.id
    manifest = (folder / ".manifest.json").read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == model.sha256
    for file in json.loads(manifest)["files"]:
        content = (folder / file["path"]).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (file["sha256"], file["size_bytes"])
    tag = {"If-None-Match": response.headers["etag"]}
    assert client.get(f"/api/v1/models/{model.id}/download", headers=tag).status_code == 304


def test_a_file_is_sent_whole_in_part_and_as_a_head(model: Model, client: TestClient, tmp_path: Path) -> None:
    path = f"/api/v1/models/{model.id}/files"
    listed = {file["path"]: file for file in client.get(path).json()["items"]}
    assert {name: file["size_bytes"] for name, file in listed.items()} == SIZES
    url, name = f"{path}/adapter_model.safetensors", "adapter_model.safetensors"
    content = (tmp_path / "made" / "adapter" / name).read_bytes()
    whole = client.get(url)
    assert (whole.status_code, whole.content) == (200, content)
    assert whole.headers["etag"] == f'"{listed[name]["sha256"]}"'
    part = client.get(url, headers={"Range": "bytes=1000000-2500000", "If-Range": whole.headers["etag"]})
    assert (part.status_code, part.content) == (206, content[1_000_000:2_500_001])
    assert part.headers["content-range"] == "bytes 1000000-2500000/3000000"
    assert client.get(url, headers={"Range": "bytes=-5"}).content == content[-5:]
    other = client.get(url, headers={"Range": "bytes=5-", "If-Range": '"other"'})
    assert (other.status_code, len(other.content)) == (200, len(content))
    refused = client.get(url, headers={"Range": "bytes=3000000-"})
    assert (refused.status_code, refused.headers["content-range"]) == (416, "bytes */3000000")
    assert refused.json()["error"]["code"] == "range_not_satisfiable"
    head = client.head(url)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "3000000")
    assert client.get(f"{path}/additional/a.jinja").status_code == 200


def test_a_damaged_file_never_appears_complete(model: Model, client: TestClient, store: str) -> None:
    damage(model, "adapter_model.safetensors")
    url = f"/api/v1/models/{model.id}"
    if store == "local":
        response = client.get(f"{url}/files/adapter_model.safetensors")
        assert (response.status_code, response.json()["error"]["code"]) == (500, "artifact_corrupt")
    received, expected = receive(f"{url}/files/adapter_model.safetensors", [])
    assert received < expected or expected == 0
    received, expected = receive(f"{url}/download", [])
    assert received < expected


def receive(path: str, connections: list[int], chunks: int = 1000) -> tuple[int, int]:
    """Read a response chunk by chunk, disconnect after some, and return the bytes read and promised."""
    received, promised = 0, 0

    async def run() -> None:
        gone = anyio.Event()

        async def send(message: Any) -> None:
            nonlocal received, promised
            if message["type"] == "http.response.start":
                promised = int(dict(message["headers"]).get(b"content-length", b"0"))
                promised = promised if message["status"] == 200 else 0
            elif promised:
                received += len(message["body"])
                connections.append(get_engine().pool.checkedout())  # type: ignore[attr-defined]
                if len(connections) >= chunks:
                    gone.set()
                    await anyio.sleep_forever()

        async def receive_request() -> Any:
            if not started.is_set():
                started.set()
                return {"type": "http.request", "body": b"", "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        started = anyio.Event()
        scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "root_path": ""}
        scope |= {"query_string": b"", "headers": [(b"host", b"127.0.0.1")], "http_version": "1.1"}
        scope |= {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "scheme": "http"}
        try:
            await create_app()(scope, receive_request, send)
        except Exception as error:
            assert type(error).__name__ == "ArtifactCorrupt", error

    anyio.run(run)
    return received, promised


def test_a_slow_client_that_disconnects_holds_no_session_and_frees_its_slot(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(get_settings(), "max_downloads", 1)
    for _ in range(3):
        connections: list[int] = []
        received, promised = receive(f"/api/v1/models/{model.id}/download", connections, chunks=2)
        assert 0 < received < promised
        assert set(connections) == {0}


def test_a_process_sends_a_bounded_number_of_downloads(
    model: Model, monkeypatch: pytest.MonkeyPatch, client: TestClient
) -> None:
    monkeypatch.setattr(get_settings(), "max_downloads", 1)
    first = download_response(Headers({}), files.find_archive(model.id, None))
    with pytest.raises(TooManyDownloads):
        download_response(Headers({}), files.find_archive(model.id, None))
    refused = client.get(f"/api/v1/models/{model.id}/download")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "too_many_downloads")
    assert refused.headers["retry-after"] == "5"
    # A response that was never sent gives its slot back.
    del first
    assert client.get(f"/api/v1/models/{model.id}/download").status_code == 200


def test_an_archive_needs_the_memory_of_a_few_chunks(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(200 << 20)
    published = get_store().publish_folder(folder, "models/model_large")
    row: dict[str, Any] = {
        "artifact": published.key,
        "sha256": published.sha256,
        "size_bytes": published.size_bytes,
    }
    add(Model(id="model_large", name="large", kind=ModelKind.base, base="org/base", **row))
    archive = files.find_archive("model_large", None)
    tracemalloc.start()
    try:
        n_bytes = sum(map(len, archive.open(None)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert n_bytes == archive.size_bytes > 200 << 20
    assert peak < 8 << 20


def test_the_merged_form_of_an_adapter_is_the_model_of_its_merge_stage(
    add_model: Callable[..., Model], make_job: Callable[..., list[Run]], client: TestClient
) -> None:
    adapter = add_model()
    url = f"/api/v1/models/{adapter.id}/download"
    missing = client.get(url, params={"form": "merged"})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_form_missing")
    assert f'"model": "{adapter.id}"' in missing.json()["error"]["hint"]
    trained, merged = make_job(RunStatus.succeeded, RunStatus.succeeded)
    set_values(Run, merged.id, stage=StageKind.merge)
    whole = {"kind": ModelKind.base, "parent_id": adapter.id}
    add_model("merged", {"model.safetensors": 10}, run_id=merged.id, **whole)
    # A later model, which was trained from the adapter and is not its merged form.
    add_model("tuned", {"model.safetensors": 10}, run_id=trained.id, **whole)
    response = client.get(url, params={"form": "merged"})
    assert response.headers["content-disposition"] == 'attachment; filename="model_merged.tar"'
    assert client.get(url, params={"form": "adapter"}).headers["content-disposition"].endswith('adapter.tar"')
    refused = client.get("/api/v1/models/model_merged/download", params={"form": "adapter"})
    assert "no adapter" in refused.json()["error"]["message"]
    assert client.get("/api/v1/models/model_merged/download", params={"form": "merged"}).status_code == 200


def test_views_name_the_path_of_a_local_store_only(model: Model, client: TestClient, store: str) -> None:
    (listed,) = client.get("/api/v1/models").json()["items"]
    assert client.get(f"/api/v1/models/{model.id}").json()["path"] == listed["path"]
    if store == "local":
        assert {path.name for path in Path(listed["path"]).iterdir()} >= {"adapter_config.json"}
    else:
        assert listed["path"] is None


def test_datasets_and_predictions_have_ranges(
    store: str, client: TestClient, make_job: Callable[..., list[Run]], tmp_path: Path
) -> None:
    rows = b'{"prompt": "1 + 1", "completion": "2"}\n' * 40
    dataset = client.post("/api/v1/datasets", files={"file": ("rows.jsonl", rows)}).json()
    (run,) = make_job(RunStatus.succeeded)
    (tmp_path / "predictions.jsonl").write_bytes(rows)
    for name in ("log.txt", "predictions.jsonl"):
        get_store().publish_file(tmp_path / "predictions.jsonl", f"runs/{run.id}/1/{name}")
    set_values(Run, run.id, log_artifact=f"runs/{run.id}/1/log.txt")
    listed = client.get(f"/api/v1/runs/{run.id}/files").json()["items"]
    assert [(file["name"], file["size_bytes"]) for file in listed] == [
        ("log.txt", len(rows)),
        ("predictions.jsonl", len(rows)),
    ]
    # Longer than a name in a file system can be.
    assert client.get(f"/api/v1/runs/{run.id}/files/{'a' * 256}").status_code == 422
    for url in (
        f"/api/v1/datasets/{dataset['id']}/content",
        f"/api/v1/runs/{run.id}/files/predictions.jsonl",
    ):
        whole = client.get(url)
        assert (whole.status_code, whole.content) == (200, rows)
        part = client.get(url, headers={"Range": "bytes=100-", "If-Range": whole.headers["etag"]})
        assert (part.status_code, part.content) == (206, rows[100:])
    assert (dataset["path"] is None) == (store == "remote")


def test_a_head_reads_no_more_than_a_chunk(
    add_model: Callable[..., Model], client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = add_model(sizes={"model.safetensors": 9 << 20})
    read_chunks: list[int] = []
    original = FileChunks.__next__

    def counting(chunks: FileChunks) -> bytes:
        read_chunks.append(1)
        return original(chunks)

    monkeypatch.setattr(FileChunks, "__next__", counting)
    head = client.head(f"/api/v1/models/{model.id}/download")
    assert head.status_code == 200 and int(head.headers["content-length"]) > 9 << 20
    assert len(read_chunks) <= 1
