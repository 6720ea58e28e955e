"""A request reads no file outside the folders that the operator allows.

Attacks: `..`, absolute and encoded paths, URLs, links, NUL, and names of special files, as a model, a source
of rows, and a file of a run.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from app.downloads.response import Download
from app.downloads.stored_files import FileChunks
from app.storage.database import transaction
from app.storage.opening import get_store
from app.tables import Run, RunStatus
from tests.security.regression import Regression, accept

SECRET = "a secret of the operator"
TRAVERSALS = [
    "../secret.txt",
    "..%2fsecret.txt",
    "..%252fsecret.txt",
    "%2e%2e/secret.txt",
    "..\\secret.txt",
    "....//secret.txt",
    ".secret",
    "log.txt/../../secret.txt",
    "log.txt%00.jsonl",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "file:%2f%2f%2fetc%2fpasswd",
]
MODELS = [
    "../secretmodel",
    "./../secretmodel",
    "models/../../secretmodel",
    "/etc",
    "/",
    "~",
    "~root",
    "file:///etc",
    "/proc/self/root/etc",
    "/proc/self/cwd",
    "linked",
    "models/\u0000x",
    "http://127.0.0.1/model",
    "s3://bucket/model",
]


@pytest.fixture
def published_run(make_job: Callable[..., list[Run]], tmp_path: Path) -> Run:
    """Return a run with a log in the artifact store, next to a secret."""
    (run,) = make_job(RunStatus.succeeded)
    log = tmp_path / "own.txt"
    log.write_text("the log")
    for key in (f"runs/{run.id}/1/log.txt", "runs/secret.txt", f"runs/{run.id}/secret.txt"):
        get_store().publish_file(log, key)
    (tmp_path / "artifacts" / "secret.txt").write_text(SECRET)
    for secret in (tmp_path / "artifacts").rglob("secret.txt"):
        secret.write_text(SECRET)
    with transaction() as session:
        session.get_one(Run, run.id).log_artifact = f"runs/{run.id}/1/log.txt"
    return run


@pytest.mark.parametrize("name", TRAVERSALS)
def test_a_file_of_a_run_is_one_name_in_its_folder(client: TestClient, published_run: Run, name: str) -> None:
    own = client.get(f"/api/v1/runs/{published_run.id}/files/log.txt")
    assert (own.status_code, own.text) == (200, "the log")
    answer = client.get(f"/api/v1/runs/{published_run.id}/files/{name}")
    assert answer.status_code in (404, 422) and SECRET not in answer.text


@pytest.mark.parametrize("reference", MODELS)
def test_a_model_is_read_from_an_allowed_root_only(
    client: TestClient, make_dataset: Callable[..., object], tmp_path: Path, reference: str
) -> None:
    make_dataset("rows")
    for folder in (tmp_path / "secretmodel", tmp_path / "models"):
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text("{}")
    with contextlib.suppress(FileExistsError):
        (tmp_path / "models" / "linked").symlink_to(tmp_path / "secretmodel")
    stage = {"stage": "sft", "base": reference, "dataset": "rows"}
    refused = client.post("/api/v1/jobs/dry-run", json={"name": "x", "stages": [stage]})
    assert refused.status_code == 422
    assert refused.json()["error"]["fields"][0]["field"].endswith("base")
    taught = {"stage": "distill", "base": "org/model", "teacher": reference, "dataset": "rows"}
    refused = client.post("/api/v1/jobs/dry-run", json={"name": "x", "stages": [taught]})
    assert refused.status_code == 422
    assert refused.json()["error"]["fields"][0]["field"].endswith("teacher")
    assert client.post("/api/v1/deployments", json={"name": "x", "model": reference}).status_code == 422


@pytest.mark.parametrize("dataset", ["../rows", "/etc/passwd", quote("../x"), "file:///etc/passwd"])
def test_a_dataset_is_a_name_and_never_a_path(client: TestClient, tmp_path: Path, dataset: str) -> None:
    (tmp_path / "models" / "base").mkdir(parents=True)
    stage: dict[str, Any] = {"stage": "sft", "base": "base", "dataset": dataset}
    assert client.post("/api/v1/jobs", json={"name": "x", "stages": [stage]}).status_code == 422
    assert client.get(f"/api/v1/datasets/{quote(dataset, safe='')}/content").status_code == 404


def find_any_file(run_id: str, name: str) -> Download:
    file = Path(get_store().root) / name.removeprefix("/").removeprefix(".")
    return Download("x", "text/plain", file.stat().st_size, '"x"', lambda part: FileChunks(file.open("rb")))


REGRESSIONS = [
    Regression(
        "links below a root are not followed before the check",
        "app.models.references:_is_under_root",
        accept,
        "test_a_model_is_read_from_an_allowed_root_only",
    ),
    Regression(
        "a file of a run is opened by its path",
        "app.runs.files:find_file",
        find_any_file,
        "test_a_file_of_a_run_is_one_name_in_its_folder",
    ),
]
