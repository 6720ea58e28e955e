"""A model folder whose chat template cannot be used is refused by every request that names it."""

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.settings import Settings

HANGS = "{{ 9 ** (9 ** 9) }}"
UNSAFE = "{{ ''.__class__.__mro__ }}"
SFT = {"stage": "sft", "base": "bad", "dataset": "dataset_x"}


@pytest.fixture
def model(settings: Settings, tmp_path: Path) -> Path:
    """Return the folder of the model `bad`, without weights."""
    settings.model_roots = [tmp_path / "models"]
    folder = tmp_path / "models" / "bad"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/api/v1/deployments", {"name": "one", "model": "bad"}, "model"),
        ("/api/v1/jobs", {"name": "one", "stages": [SFT]}, "stages.0.base"),
        ("/api/v1/jobs/dry-run", {"name": "one", "stages": [SFT]}, "stages.0.base"),
        ("/api/v1/jobs/preflight", {"name": "one", "stages": [SFT]}, "stages.0.base"),
    ],
)
def test_an_unsafe_template_is_refused(
    client: TestClient, model: Path, path: str, body: dict[str, Any], field: str
) -> None:
    (model / "chat_template.jinja").write_text(UNSAFE)
    response = client.post(path, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (422, "template_unsafe")
    assert error["fields"][0]["field"] == field
    assert str(model) in error["message"]


def test_a_corrected_template_is_accepted(client: TestClient, model: Path) -> None:
    body = {"name": "one", "model": "bad", "queue": "cpu"}
    (model / "chat_template.jinja").write_text(HANGS)
    assert client.post("/api/v1/deployments", json=body).json()["error"]["code"] == "template_too_slow"
    (model / "chat_template.jinja").unlink()
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}"}))
    assert client.post("/api/v1/deployments", json=body).status_code == 201
