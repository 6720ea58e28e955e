"""Adapters that are loaded and unloaded while the engine runs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from tests.integration.serving.conftest import BASE_SAYS, Server

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def load(engine: Server, name: str, path: Path) -> tuple[int, Any]:
    return engine.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})


def copy_adapter(tiny: Path, folder: Path) -> Path:
    return Path(shutil.copytree(tiny / "alpha", folder / "adapter"))


def test_an_adapter_is_loaded_used_and_unloaded(engine: Server, tiny: Path) -> None:
    assert load(engine, "late", tiny / "alpha") == (200, "Success: LoRA adapter 'late' added successfully.")
    assert engine.chat("late").startswith("alpha answers")
    assert engine.post("/v1/unload_lora_adapter", {"lora_name": "late"})[0] == 200
    assert (
        engine.post(
            "/v1/chat/completions", {"model": "late", "messages": [{"role": "user", "content": "hi"}]}
        )[0]
        == 404
    )
    assert (engine.chat("base"), engine.chat("alpha")[:5]) == (BASE_SAYS, "alpha")


def test_a_name_in_use_is_rejected(engine: Server, tiny: Path) -> None:
    status, response = load(engine, "alpha", tiny / "beta")
    assert (status, response["error"]["param"]) == (400, "lora_name")
    assert engine.chat("alpha").startswith("alpha")


def test_unloading_an_unknown_adapter_is_rejected(engine: Server) -> None:
    assert engine.post("/v1/unload_lora_adapter", {"lora_name": "base"})[0] == 404


def test_truncated_weights_are_rejected(engine: Server, tiny: Path, tmp_path: Path) -> None:
    folder = copy_adapter(tiny, tmp_path)
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    load_broken(engine, folder)


def test_missing_weights_are_rejected(engine: Server, tiny: Path, tmp_path: Path) -> None:
    folder = copy_adapter(tiny, tmp_path)
    tensors = load_file(folder / WEIGHTS)
    tensors.pop(min(tensors))
    save_file(tensors, folder / WEIGHTS)
    assert "missing" in load_broken(engine, folder)


def test_weights_that_would_overwrite_the_base_are_rejected(
    engine: Server, tiny: Path, tmp_path: Path
) -> None:
    folder = copy_adapter(tiny, tmp_path)
    tensors = load_file(folder / WEIGHTS)
    tensors["base_model.model.model.embed_tokens.weight"] = next(iter(tensors.values()))
    save_file(tensors, folder / WEIGHTS)
    assert "embed_tokens" in load_broken(engine, folder)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"r": 4}, "shapes"),
        ({"bias": "all"}, "bias"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"target_modules": ["nothing"]}, "nothing"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "layer_replication"),
        ({"twisted_lora": True}, "twisted_lora"),
    ],
)
def test_a_config_that_does_not_fit_is_rejected(
    engine: Server, tiny: Path, tmp_path: Path, change: dict[str, Any], word: str
) -> None:
    folder = copy_adapter(tiny, tmp_path)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | change))
    assert word in load_broken(engine, folder)


@pytest.mark.parametrize("broken", ["{", "[]"])
def test_a_config_that_is_not_an_object_is_rejected(
    engine: Server, tiny: Path, tmp_path: Path, broken: str
) -> None:
    folder = copy_adapter(tiny, tmp_path)
    (folder / CONFIG).write_text(broken)
    load_broken(engine, folder)


def test_pickled_weights_are_rejected(engine: Server, tiny: Path, tmp_path: Path) -> None:
    folder = copy_adapter(tiny, tmp_path)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    assert "safetensors" in load_broken(engine, folder)


def test_an_adapter_uses_its_own_template(engine: Server, tiny: Path, tmp_path: Path) -> None:
    folder = copy_adapter(tiny, tmp_path)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no roles here') }}")
    assert load(engine, "templated", folder)[0] == 200
    body = {"model": "templated", "messages": [{"role": "user", "content": "hello"}]}
    status, response = engine.post("/v1/chat/completions", body)
    assert (status, response["error"]["param"]) == (400, "messages")
    assert "no roles here" in response["error"]["message"]
    assert engine.post("/v1/unload_lora_adapter", {"lora_name": "templated"})[0] == 200


def test_adapters_with_different_templates_have_different_prompts(engine: Server) -> None:
    def prompt_tokens(model: str) -> int:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}] * 2, "max_tokens": 1}
        used: int = engine.post("/v1/chat/completions", body)[1]["usage"]["prompt_tokens"]
        return used

    assert prompt_tokens("alpha") == prompt_tokens("base") != prompt_tokens("beta")


def load_broken(engine: Server, folder: Path) -> str:
    """Load a broken adapter, check that the engine still works, and return the error message."""
    status, response = load(engine, "broken", folder)
    assert (status, response["error"]["param"]) == (400, "lora_path"), response
    assert engine.get("/health")[0] == 200
    assert (engine.chat("base"), engine.chat("alpha")[:5]) == (BASE_SAYS, "alpha")
    message: str = response["error"]["message"]
    return message
