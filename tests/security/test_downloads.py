"""A download sends only what a manifest names, and never to a page of another origin.

Attacks: `..`, absolute and encoded paths, the manifest's neighbours, links in the store, a manifest that was
replaced, foreign pages and host names, ranges that ask for too much, and a key without the scope.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.downloads.response import Download
from app.downloads.stored_files import FileChunks
from app.storage.opening import get_store
from app.tables import Model, ModelKind, Scope
from tests.integration.app.stored_artifacts import add, publish
from tests.security.regression import Regression
from tests.security.test_cross_site import FOREIGN_PAGES
from tests.security.test_path_reads import SECRET, TRAVERSALS

WEIGHTS = "adapter_model.safetensors"
# A link that the user follows: the page that contains it cannot read the response.
LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


@pytest.fixture
def model(settings: Any, tmp_path: Path) -> Model:
    """Return a model in the artifact store, next to a secret."""
    published = publish(tmp_path / "made", "models/model_x", {WEIGHTS: 700, "sub/chat.jinja": 10})
    for folder in ("", "models/", "models/model_x/", "models/model_x/sub/"):
        (Path(get_store().root) / f"{folder}secret.txt").write_text(SECRET)
    fields = {"artifact": published.key, "sha256": published.sha256, "size_bytes": published.size_bytes}
    return add(  # type: ignore[no-any-return]
        Model(id="model_x", name="x", kind=ModelKind.adapter, base="org/base", **fields)
    )


def test_only_names_of_the_manifest_are_files_of_a_model(client: TestClient, model: Model) -> None:
    assert client.get(f"/api/v1/models/{model.id}/files/{WEIGHTS}").status_code == 200
    for name in (*TRAVERSALS, "secret.txt", "sub/secret.txt", "sub", "sub/", ".manifest.json"):
        refused = client.get(f"/api/v1/models/{model.id}/files/{name}")
        assert refused.status_code in (404, 422) and SECRET not in refused.text, name


def test_an_archive_contains_no_file_that_was_added(client: TestClient, model: Model) -> None:
    archive = client.get(f"/api/v1/models/{model.id}/download")
    assert archive.status_code == 200 and SECRET.encode() not in archive.content


def test_a_link_in_the_store_is_not_followed(client: TestClient, model: Model, tmp_path: Path) -> None:
    secret = tmp_path / "outside.txt"
    secret.write_text(SECRET)
    stored = Path(get_store().root) / model.artifact / WEIGHTS
    stored.unlink()
    stored.symlink_to(secret)
    for path in (f"files/{WEIGHTS}", "download"):
        try:
            assert SECRET not in client.get(f"/api/v1/models/{model.id}/{path}").text
        except Exception as error:
            assert type(error).__name__ == "ArtifactCorrupt"


def test_a_manifest_that_was_replaced_names_no_file(client: TestClient, model: Model) -> None:
    manifest = Path(get_store().root) / model.artifact / ".manifest.json"
    entry = {"path": "../../secret.txt", "size_bytes": len(SECRET)}
    entry["sha256"] = hashlib.sha256(SECRET.encode()).hexdigest()
    manifest.write_text(json.dumps({"files": [entry]}))
    for path in ("files", "files/..%2f..%2fsecret.txt", "download"):
        refused = client.get(f"/api/v1/models/{model.id}/{path}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (500, "artifact_corrupt")


def test_a_foreign_page_reads_no_weights(client: TestClient, model: Model) -> None:
    for page in (page for page in FOREIGN_PAGES if page != LINK):
        for path in ("download", "files", f"files/{WEIGHTS}"):
            refused = client.get(f"/api/v1/models/{model.id}/{path}", headers=page)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "cross_site_request")


def test_without_a_key_another_host_name_gets_nothing(client: TestClient, model: Model) -> None:
    refused = client.get(f"/api/v1/models/{model.id}/download", headers={"Host": "evil.example"})
    assert refused.status_code == 403


def test_a_key_needs_the_scope_to_read(
    client: TestClient, model: Model, make_key: Callable[..., dict[str, str]]
) -> None:
    reader, caller = make_key(Scope.read), make_key(Scope.inference)
    for path in ("download", "files", f"files/{WEIGHTS}"):
        url = f"/api/v1/models/{model.id}/{path}"
        codes = [client.get(url, headers=key).status_code for key in (reader, caller, {})]
        assert codes == [200, 403, 401]


def test_a_hostile_range_costs_one_response(client: TestClient, model: Model) -> None:
    for ranges in ("bytes=" + "0-," * 10_000 + "0-", "bytes=0-" + "9" * 5000, "bytes=--1", "bytes=0"):
        response = client.get(f"/api/v1/models/{model.id}/files/{WEIGHTS}", headers={"Range": ranges})
        assert response.status_code == 200 and len(response.content) == 700


def read_any_file(model_id: str, path: str) -> Any:
    file = Path(get_store().root) / "models" / model_id / path
    return Download("x", "text/plain", file.stat().st_size, '"x"', lambda part: FileChunks(file.open("rb")))


REGRESSIONS = [
    Regression(
        "a file of a model is opened by its path",
        "app.models.files:find_file",
        read_any_file,
        "test_only_names_of_the_manifest_are_files_of_a_model",
    ),
    Regression(
        "a stored file is not verified",
        "app.storage.artifacts:verify_file",
        lambda file, key, sha256, verified: None,
        "test_a_link_in_the_store_is_not_followed",
    ),
]
