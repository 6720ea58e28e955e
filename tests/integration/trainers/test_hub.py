"""Goal: what is downloaded from the hub is one commit, verified, and only what a loader may see.

Method: the real client of the hub downloads from a hub that the test controls, as a program of its own.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save

from tests.conftest import ROOT
from tests.fake_hub import FakeHub, run_hub
from trainers.modeling.hub import HubUnreachable, download_model

WEIGHTS = save({"weight": np.arange(8000, dtype=np.float32)})
MODEL = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"pickle" * 3000,
    "modeling_evil.py": b"print(1)",
    "README.md": b"# Model",
}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with run_hub() as hub:
        yield hub


def download(hub: FakeHub, home: Path, *arguments: str, **environment: str) -> dict[str, Any]:
    """Run the download program, and return its report."""
    report = home / "report.json"
    command = [sys.executable, "-m", "trainers.modeling.hub", "--report", str(report), *arguments]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    settings = {"HF_HOME": str(home / "hf"), "HF_ENDPOINT": hub.url, "PYTHONPATH": str(ROOT), **environment}
    subprocess.run(command, env=inherited | settings, cwd=home, capture_output=True, timeout=240)
    content: dict[str, Any] = json.loads(report.read_text())
    return content


def model(hub: FakeHub, home: Path, name: str, **environment: str) -> dict[str, Any]:
    return download(hub, home, "--kind", "model", "--name", name, **environment)


def test_a_commit_is_downloaded_without_pickles_and_code_and_then_needs_no_hub(
    hub: FakeHub, tmp_path: Path
) -> None:
    commit = hub.add_model("org/name", MODEL)
    found = model(hub, tmp_path, "org/name")
    assert found["commit"] == commit
    assert hub.downloads() == {"config.json", "tokenizer.json", "model.safetensors"}
    assert (Path(found["folder"]) / "model.safetensors").read_bytes() == WEIGHTS
    hub.add_model("org/name", MODEL | {"config.json": b"{}"})
    hub.status = 503
    assert model(hub, tmp_path, f"org/name@{commit}") == found
    assert model(hub, tmp_path, f"org/name@{commit}", HF_HUB_OFFLINE="1") == found


def test_the_weights_that_an_index_names_are_downloaded(hub: FakeHub, tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"weight": "part-a.safetensors"}}).encode()
    files = {"model.safetensors.index.json": index, "part-a.safetensors": WEIGHTS}
    hub.add_model("org/name", MODEL | files)
    model(hub, tmp_path, "org/name")
    assert "part-a.safetensors" in hub.downloads() and "model.safetensors" not in hub.downloads()
    evil = json.dumps({"weight_map": {"weight": "../w.bin"}}).encode()
    hub.add_model("org/name", MODEL | {"model.safetensors.index.json": evil})
    assert model(hub, tmp_path, "org/name")["error"]["code"] == "model_refused"


def test_a_damaged_file_in_the_cache_is_downloaded_again(hub: FakeHub, tmp_path: Path) -> None:
    hub.add_model("org/name", MODEL)
    found = model(hub, tmp_path, "org/name")
    weights = (Path(found["folder"]) / "model.safetensors").resolve()
    weights.write_bytes(bytes(len(WEIGHTS)))
    assert model(hub, tmp_path, "org/name") == found
    assert weights.read_bytes() == WEIGHTS


def test_a_file_that_differs_from_the_hubs_hash_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    hub.add_model("org/name", MODEL)
    hub.corrupt = {"model.safetensors"}
    error = model(hub, tmp_path, "org/name")["error"]
    assert error["code"] == "artifact_corrupt" and "model.safetensors" in error["message"]


@pytest.mark.parametrize("name", ["org/none", "org/name@v9", "org/name@" + "a" * 40])
def test_what_the_hub_does_not_have_is_not_found(hub: FakeHub, tmp_path: Path, name: str) -> None:
    hub.add_model("org/name", MODEL)
    assert model(hub, tmp_path, name)["error"]["code"] == "model_not_found"


def test_a_hub_that_cannot_respond_is_a_failure_of_the_infrastructure(hub: FakeHub, tmp_path: Path) -> None:
    hub.status = 503
    assert model(hub, tmp_path, "org/name")["error"]["code"] == "hub_unreachable"


def test_a_hub_that_is_gone_is_a_failure_of_the_infrastructure(tmp_path: Path) -> None:
    with run_hub() as gone:
        pass
    assert model(gone, tmp_path, "org/name")["error"]["code"] == "hub_unreachable"


def test_a_hub_that_never_responds_is_reported_after_the_time_of_the_probe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("trainers.modeling.hub.PROBE_SECONDS", 0.2)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        with pytest.raises(HubUnreachable, match="cannot be reached for org/name: it does not respond"):
            download_model("org/name")


def test_only_the_files_of_a_split_are_downloaded(hub: FakeHub, tmp_path: Path) -> None:
    split = "- config_name: main\n  data_files:\n  - split: train\n    path: main/train-*"
    files = {
        "README.md": f"---\nconfigs:\n{split}\n---\n".encode(),
        "main/train-0.jsonl": b'{"a": 1}\n',
        "main/test-0.jsonl": b"",
        "run.py": b"",
    }
    commit = hub.add_dataset("text", files)
    found = download(hub, tmp_path, "--kind", "dataset", "--name", "text", "--subset", "main")
    assert found["commit"] == commit and hub.downloads() == {"README.md", "main/train-0.jsonl"}
    missing = download(hub, tmp_path, "--kind", "dataset", "--name", "text", "--subset", "other")
    assert missing["error"]["code"] == "dataset_not_found" and "main" in missing["error"]["message"]
