"""Exported files compute what the trained model does; a host that cannot write a format says what it lacks.

GGUF needs the environment of `make gguf`: set TUNESMITH_GGUF_ENVIRONMENT to its folder. CI has none, so that
these tests are skipped there; the converter and llama.cpp take minutes to build.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from trainers.configs.stages.export import ExportConfig
from trainers.export import plan
from trainers.export import run as export
from trainers.exporting import gguf, mlx_format
from trainers.exporting.gguf import ConversionFailed, GgufUnavailable
from trainers.exporting.mlx_format import MlxUnavailable
from trainers.exporting.reference import ExportDiffers
from trainers.modeling.load import load_model
from trainers.modeling.model_files import ModelRole, open_model
from trainers.runtime.errors import ConfigInvalid
from trainers.runtime.events import EventWriter

ENVIRONMENT = os.environ.get("TUNESMITH_GGUF_ENVIRONMENT")
needs_gguf = pytest.mark.skipif(
    ENVIRONMENT is None, reason="no environment of llama.cpp: run `make gguf`, which builds it for minutes"
)
IDS_BT = torch.tensor([[5, 9, 21, 40, 7, 300]])


def run_export(model: Any, run_dir: Path, *formats: str, **more: Any) -> dict[str, Any]:
    run_dir.mkdir(parents=True, exist_ok=True)
    values = {"stage": "export", "model": model, "formats": list(formats), **more}
    return export(ExportConfig.model_validate(values), run_dir, EventWriter(None))


def test_safetensors_and_mlx_compute_what_the_adapter_does(adapted: dict[str, str], tmp_path: Path) -> None:
    result = run_export(adapted, tmp_path, "safetensors", "mlx", "mlx_adapter")
    expected = load_model(ExportConfig.model_validate({"model": adapted}).model, torch.float32)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.inference_mode():
        assert torch.allclose(whole(IDS_BT).logits, expected.eval()(IDS_BT).logits, atol=1e-4)
    assert result["checks"]["formats"]["mlx"]["mean"] < 1e-3
    assert result["checks"]["formats"]["mlx-adapter"]["max"] < 1e-4
    # mlx-lm's adapter is one of PEFT again where a model is read.
    again = open_model(tmp_path / "model" / "mlx-adapter", ModelRole.adapter, None, tmp_path / "views")
    assert load_file(again / "adapter_model.safetensors").keys() == (
        load_file(Path(adapted["adapter"]) / "adapter_model.safetensors").keys()
    )
    assert {path.name for path in (tmp_path / "model" / "mlx").iterdir()} >= {
        "config.json",
        "model.safetensors",
    }
    # A loader of the whole weights does not see the other formats.
    view = open_model(tmp_path / "model", ModelRole.base)
    assert not (view / "mlx").exists() and (view / "model.safetensors").exists()
    assert not (tmp_path / "scratch").exists()


def test_mlx_with_another_rotary_base_is_not_published(
    adapted: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlx_format, "TOLERANCE", 1e-9)
    with pytest.raises(ExportDiffers, match="differ from the trained model's"):
        run_export(adapted, tmp_path, "mlx")
    assert not (tmp_path / "model").exists()


def test_a_host_without_a_program_says_how_to_add_it(
    adapted: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"stage": "export", "model": adapted, "formats": ["gguf_q4_k_m"]}
    with pytest.raises(GgufUnavailable) as missing:
        plan(ExportConfig.model_validate(values))
    assert "`make gguf`" in str(missing.value.hint) and "TUNESMITH_GGUF" in str(missing.value.hint)
    with pytest.raises(GgufUnavailable, match="incomplete"):
        plan(ExportConfig.model_validate(values | {"gguf_environment": str(tmp_path)}))
    monkeypatch.setattr(mlx_format, "find_spec", lambda name: None)
    with pytest.raises(MlxUnavailable):
        run_export(adapted, tmp_path, "mlx")
    with pytest.raises(ConfigInvalid, match="no adapter"):
        run_export(adapted["base"], tmp_path, "gguf_adapter")


@pytest.fixture
def known(adapted: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """Return the adapted model with a tokenizer that llama.cpp has under the name `gpt-2`."""
    copies = {part: shutil.copytree(folder, tmp_path / part) for part, folder in adapted.items()}
    for path in (folder / "tokenizer.json" for folder in copies.values()):
        content = json.loads(path.read_text())
        content["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
        content["pre_tokenizer"]["trim_offsets"] = True
        path.write_text(json.dumps(content))
    return {part: str(folder) for part, folder in copies.items()}


@pytest.mark.slow
@needs_gguf
def test_gguf_files_compute_what_the_adapter_does(known: dict[str, str], tmp_path: Path) -> None:
    formats = ("gguf_f16", "gguf_q8_0", "gguf_q4_k_m", "gguf_adapter")
    more = {"gguf_environment": ENVIRONMENT, "pre_tokenizer": "gpt-2"}
    result = run_export(known, tmp_path / "run", *formats, **more)
    checks = result["checks"]["formats"]
    names = {"model-f16.gguf", "model-q8_0.gguf", "model-q4_k_m.gguf", "adapter.gguf"}
    assert checks.keys() == names
    assert {path.name for path in (tmp_path / "run" / "model").glob("*.gguf")} == names
    assert all((tmp_path / "run" / "model" / name).read_bytes()[:4] == b"GGUF" for name in names)
    assert checks["model-f16.gguf"]["max"] < 0.01
    assert checks["model-q8_0.gguf"]["max"] < 0.1
    print(checks)


@pytest.mark.slow
@needs_gguf
def test_a_gguf_file_that_differs_is_not_published(
    adapted: dict[str, str], known: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConversionFailed) as unknown:
        run_export(adapted, tmp_path / "a", "gguf_f16", gguf_environment=ENVIRONMENT)
    assert "pre_tokenizer" in str(unknown.value.hint)
    more = {"gguf_environment": ENVIRONMENT, "pre_tokenizer": "gpt-2"}
    # The tokenizer of the starter model is in no list of llama.cpp.
    with pytest.raises(ExportDiffers, match="splits a text otherwise"):
        run_export(adapted, tmp_path / "b", "gguf_f16", **more)
    monkeypatch.setattr(gguf, "TOLERANCES", dict.fromkeys(gguf.TOLERANCES, 1e-9))
    with pytest.raises(ExportDiffers, match="differ from the trained model's"):
        run_export(known, tmp_path / "c", "gguf_q8_0", **more)
    assert not list(tmp_path.glob("?/model"))
