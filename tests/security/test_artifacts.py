"""The key of a host reads and adds artifacts, and can do nothing else to the store.

Attacks: paths out of the store and into its own files, writing over and into what is published, bytes without
end, other scopes, and deletion of what others use.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from app.artifacts import staging
from app.settings import Settings
from app.storage.artifacts import ArtifactStore
from app.storage.manifest import MANIFEST, ArtifactCorrupt, encode_manifest
from app.storage.opening import get_store
from app.tables import Dataset, Scope
from tests.security.regression import Regression, ignore

SECRET = b"a secret of the operator"
CONTENT = b"content"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
KEYS = [
    "../secret",
    "models/../../secret",
    "models/m/../../../secret",
    "/etc/passwd",
    "//etc/passwd",
    "models//etc/passwd",
    "models/./m",
    "models/..",
    "models\\..\\..\\secret",
    "installation.json",
    "health/x",
    f"uploads/{SHA256}.part",
    "models/m.0123abcd.part",
    "models/m.0123abcd.part/weights",
    "datasets/x\x00",
    "datasets/x\n",
    "file:///etc/passwd",
    "s3://bucket/models/m",
    "models",
    "",
    "x" * 2000,
]
MEMBERS = [
    "../m2/weights",
    "/etc/cron.d/x",
    "a/../../weights",
    "./a",
    "a//b",
    "",
    "..",
    ".manifest.json",
    "a\\..\\b",
    "a\x00b",
    "x.part",
    "/".join("a" * 20),
    "a" * 300,
]


@pytest.fixture
def worker(client: TestClient, make_key: Callable[..., dict[str, str]], settings: Settings) -> TestClient:
    """Return a client with the key of a host; the store has a secret next to it and in it."""
    client.headers.update(make_key(Scope.worker))
    root = Path(get_store().root)
    (root / "models").mkdir(parents=True)
    for path in (root.parent / "secret", root / "secret", root / "installation.json"):
        path.write_bytes(SECRET)
    return client


def upload(client: TestClient, content: bytes = CONTENT) -> str:
    sha256 = hashlib.sha256(content).hexdigest()
    query = {"offset_bytes": 0, "size_bytes": len(content)}
    response = client.patch(f"/api/v1/artifacts/uploads/{sha256}", params=query, content=content)
    assert response.status_code == 200, response.text
    return sha256


def file_body(key: str) -> dict[str, Any]:
    return {"key": key, "sha256": SHA256, "size_bytes": len(CONTENT)}


def folder_body(key: str, *paths: str) -> dict[str, Any]:
    member = {"sha256": SHA256, "size_bytes": len(CONTENT)}
    return {"key": key, "files": [{"path": path, **member} for path in paths]}


def list_store() -> set[str]:
    root = Path(get_store().root).parent
    return {str(path.relative_to(root)) for path in root.rglob("*") if "tunesmith.db" not in path.name}


@pytest.mark.parametrize("key", KEYS)
def test_no_key_leads_out_of_the_artifacts(worker: TestClient, key: str) -> None:
    upload(worker)
    before = list_store()
    for path in (quote(key), quote(key, safe="")):
        for response in (
            worker.get(f"/api/v1/artifacts/files/{path}"),
            worker.delete(f"/api/v1/artifacts/{path}"),
        ):
            # A client normalizes some of them to the key of nothing, whose deletion changes nothing.
            assert response.status_code in (204, 404, 405, 422), key
            assert SECRET not in response.content
    assert worker.post("/api/v1/artifacts/files", json=file_body(key)).status_code in (400, 422)
    assert worker.post("/api/v1/artifacts/folders", json=folder_body(key, "w")).status_code in (400, 422)
    assert list_store() == before


@pytest.mark.parametrize("path", MEMBERS)
def test_no_file_of_a_folder_is_written_outside_it(worker: TestClient, path: str) -> None:
    upload(worker)
    before = list_store()
    response = worker.post("/api/v1/artifacts/folders", json=folder_body("models/m", path))
    assert response.status_code in (400, 422) and list_store() == before


@pytest.mark.parametrize("paths", [("a", "a"), ("a", "a/b"), ("a/b", "a")])
def test_a_folder_whose_files_collide_is_refused(worker: TestClient, paths: tuple[str, ...]) -> None:
    upload(worker)
    response = worker.post("/api/v1/artifacts/folders", json=folder_body("models/m", *paths))
    assert response.status_code == 422 and not get_store().exists("models/m")


def test_what_is_published_is_neither_replaced_nor_extended(worker: TestClient) -> None:
    upload(worker)
    assert worker.post("/api/v1/artifacts/folders", json=folder_body("models/m", "w")).status_code == 201
    upload(worker)
    assert worker.post("/api/v1/artifacts/files", json=file_body("datasets/d")).status_code == 201
    other = upload(worker, b"other")
    changed = {"sha256": other, "size_bytes": 5}
    attacks = [
        ("files", {"key": "datasets/d", **changed}),
        ("folders", {"key": "models/m", "files": [{"path": "w", **changed}]}),
        ("folders", {"key": "models/m", "files": []}),
    ]
    statuses = [worker.post(f"/api/v1/artifacts/{kind}", json=body).status_code for kind, body in attacks]
    assert statuses == [409, 409, 409]
    for key in ("models/m/w", "models/m/new", "models/m"):
        response = worker.post("/api/v1/artifacts/files", json={"key": key, **changed})
        assert response.status_code == 422, key
    assert worker.get("/api/v1/artifacts/files/models/m/w").content == CONTENT
    assert worker.get("/api/v1/artifacts/files/datasets/d").content == CONTENT


def test_published_bytes_do_not_change_with_the_upload_that_they_came_from(worker: TestClient) -> None:
    sha256 = upload(worker)
    worker.post("/api/v1/artifacts/files", json=file_body("datasets/d")).raise_for_status()
    for offset in (0, len(CONTENT)):
        query = {"offset_bytes": offset, "size_bytes": offset + 4}
        worker.patch(f"/api/v1/artifacts/uploads/{sha256}", params=query, content=b"evil")
    assert worker.get("/api/v1/artifacts/files/datasets/d").content == CONTENT


@pytest.mark.parametrize(
    ("kind", "body"), [("files", file_body("datasets/d")), ("folders", folder_body("models/m", "a", "b"))]
)
def test_content_that_another_host_publishes_at_the_same_time_is_requested_again(
    worker: TestClient, monkeypatch: pytest.MonkeyPatch, kind: str, body: dict[str, Any]
) -> None:
    upload(worker)

    def find_and_lose(*arguments: Any) -> Path | None:
        found = staging.find_verified(*arguments)
        for path in staging.staging_folder(arguments[0]).iterdir():
            path.unlink()
        return found or staging.staging_folder(arguments[0]) / "removed"

    monkeypatch.setattr("app.artifacts.service.find_verified", find_and_lose)
    response = worker.post(f"/api/v1/artifacts/{kind}", json=body)
    assert response.status_code == 409 and response.json()["error"]["code"] == "upload_missing"
    monkeypatch.undo()
    upload(worker)
    assert worker.post(f"/api/v1/artifacts/{kind}", json=body).status_code == 201


def test_nothing_is_readable_before_it_is_published(worker: TestClient) -> None:
    sha256 = upload(worker)
    for path in (f"uploads/{sha256}.part", f"uploads/{sha256}.verified.part", sha256):
        assert worker.get(f"/api/v1/artifacts/files/{path}").status_code in (404, 422)


def test_bytes_with_another_hash_are_discarded(worker: TestClient, settings: Settings) -> None:
    query = {"offset_bytes": 0, "size_bytes": 4}
    response = worker.patch(f"/api/v1/artifacts/uploads/{SHA256}", params=query, content=b"evil")
    assert response.json()["error"]["code"] == "upload_hash_differs"
    assert list(staging.staging_folder(settings).iterdir()) == []
    assert worker.post("/api/v1/artifacts/files", json=file_body("datasets/d")).status_code == 409


def test_an_upload_receives_no_more_than_it_announced_and_no_chunk_is_too_large(
    worker: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "MAX_CHUNK_BYTES", 100)
    for content, size_bytes in ((b"x" * 8, 7), (b"x" * 101, 1000)):
        query = {"offset_bytes": 0, "size_bytes": size_bytes}
        response = worker.patch(f"/api/v1/artifacts/uploads/{SHA256}", params=query, content=content)
        assert response.status_code == 413
    assert sum(path.stat().st_size for path in staging.staging_folder(settings).iterdir()) <= 100


def test_an_upload_that_announces_more_later_does_not_fill_the_disk(
    worker: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "max_artifact_bytes", 2**53)
    path = f"/api/v1/artifacts/uploads/{SHA256}"
    worker.patch(path, params={"offset_bytes": 0, "size_bytes": 2}, content=b"x").raise_for_status()
    # More than any disk has.
    response = worker.patch(path, params={"offset_bytes": 1, "size_bytes": 2**53}, content=b"x")
    assert response.status_code == 503 and response.json()["error"]["code"] == "disk_full"
    assert worker.get(path).json()["received_bytes"] == 1


@pytest.mark.parametrize("sha256", ["0" * 63, "0" * 65, "A" * 64, "..%2f" + "0" * 59, "g" * 64])
def test_the_name_of_an_upload_is_a_hash(worker: TestClient, sha256: str) -> None:
    query = {"offset_bytes": 0, "size_bytes": 4}
    response = worker.patch(f"/api/v1/artifacts/uploads/{sha256}", params=query, content=b"evil")
    assert response.status_code in (404, 405, 422)
    assert worker.get(f"/api/v1/artifacts/uploads/{sha256}").status_code in (404, 405, 422)


def test_the_artifacts_of_rows_are_not_deleted(
    worker: TestClient, make_dataset: Callable[..., Dataset]
) -> None:
    upload(worker)
    worker.post("/api/v1/artifacts/files", json=file_body("datasets/d")).raise_for_status()
    make_dataset("d", artifact="datasets/d")
    assert worker.delete("/api/v1/artifacts/datasets/d").json()["error"]["code"] == "in_use"
    assert worker.delete("/api/v1/artifacts/runs/r/1/log.txt").status_code == 422
    assert get_store().exists("datasets/d")


@pytest.mark.parametrize("path", ["../../planted", "/tmp/planted-by-a-manifest", "a/../../../planted"])
def test_a_manifest_in_the_bucket_writes_no_file_outside_the_copy_of_its_folder(
    tmp_path: Path, path: str
) -> None:
    bucket = ArtifactStore("memory://planted", tmp_path / "cache")
    manifest = encode_manifest([{"path": path, "size_bytes": len(CONTENT), "sha256": SHA256}])
    bucket.fs.pipe_file(f"{bucket.root}/models/m/{MANIFEST}", manifest)
    bucket.fs.pipe_file(f"{bucket.root}/models/m/{path}", CONTENT)
    with pytest.raises(ArtifactCorrupt, match="is not the path of a file"):
        bucket.fetch_folder("models/m", hashlib.sha256(manifest).hexdigest())
    assert not Path("/tmp/planted-by-a-manifest").exists() and not list(tmp_path.rglob("planted"))


def test_the_hash_of_a_row_leads_to_no_folder_outside_the_cache(tmp_path: Path) -> None:
    bucket = ArtifactStore("memory://planted", tmp_path / "cache")
    (tmp_path / "home").mkdir()
    for fetch in (bucket.fetch_file, bucket.fetch_folder):
        for sha256 in ("../home", str(tmp_path / "home")):
            with pytest.raises(ArtifactCorrupt, match="is not a SHA-256"):
                fetch("models/m", sha256)
    assert (tmp_path / "home").is_dir()


REGRESSIONS = [
    Regression(
        "a key leads anywhere in the store",
        "app.artifacts.service:check_file_key",
        ignore,
        "test_no_key_leads_out_of_the_artifacts",
    ),
    Regression(
        "the paths of a folder are not checked",
        "app.artifacts.keys:_check_path",
        ignore,
        "test_no_file_of_a_folder_is_written_outside_it",
    ),
    Regression(
        "files of a folder may collide",
        "app.artifacts.service:_check_tree",
        ignore,
        "test_a_folder_whose_files_collide_is_refused",
    ),
    Regression(
        "uploads are not verified",
        "app.artifacts.staging:hash_file",
        lambda path: SHA256,
        "test_bytes_with_another_hash_are_discarded",
    ),
    Regression(
        "any artifact can be deleted",
        "app.artifacts.service:list_named",
        lambda session, artifacts: set(),
        "test_the_artifacts_of_rows_are_not_deleted",
    ),
]
