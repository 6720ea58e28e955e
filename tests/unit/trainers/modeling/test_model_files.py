"""Goal: a loader sees only files of the allow-list, all of them inside the folder and free of code.

Method: a small model folder is changed in one way that led a loader elsewhere, or to a pickle or to code.
"""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from trainers.modeling.model_files import BaseModelNotFound, ModelRefused, ModelRole, open_model

CONFIG: dict[str, Any] = {"model_type": "llama", "_attn_implementation": "sdpa"}
LORA: dict[str, Any] = {"peft_type": "LORA", "r": 4, "base_model_name_or_path": "org/base"}
WEIGHTS: dict[str, Any] = {"weight": np.zeros(4, np.float32)}
MLX: dict[str, Any] = {
    "fine_tune_type": "dora",
    "lora_parameters": {"rank": 2, "scale": 2.5},
    "model": "org/base",
}
QUANTIZED: dict[str, Any] = {
    **{"format": "affine", "bits": 4, "group_size": 64, "precision": "fp32", "sha256": "0" * 64},
    **{"gap": {"mean": 0.1, "max": 1.0, "tokens": 1}, "probes": [{"ids": [1, 2], "logprobs": [-1.0]}]},
}
Q_PROJ = "model.layers.0.self_attn.q_proj."
MLX_WEIGHTS: dict[str, Any] = {
    Q_PROJ + "lora_a": np.arange(12, dtype=np.float16).reshape(6, 2),
    Q_PROJ + "lora_b": np.arange(8, dtype=np.float16).reshape(2, 4),
    Q_PROJ + "m": np.arange(4, dtype=np.float32),
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "root" / "base"
    folder.mkdir(parents=True)
    write(folder, "config.json", CONFIG)
    write(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("# A model")
    save_file(WEIGHTS, folder / "model.safetensors")
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "root" / "adapter"
    folder.mkdir(parents=True)
    write(folder, "adapter_config.json", LORA)
    save_file(WEIGHTS, folder / "adapter_model.safetensors")
    return folder


def write(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(json.dumps(value))


def open_in(folder: Path, role: ModelRole = ModelRole.base) -> Path:
    root = folder.parent
    return open_model(folder, role, [root], views(root))


def views(root: Path) -> Path:
    (root.parent / "views").mkdir(exist_ok=True)
    return root.parent / "views"


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def test_a_folder_with_nothing_else_is_used_as_it_is(base: Path, adapter: Path) -> None:
    assert open_in(base) == base
    assert open_in(adapter, ModelRole.adapter) == adapter


@pytest.mark.parametrize(
    "name",
    [
        *("pytorch_model.bin", "model.pt", "optimizer.pth", "training_args.bin", "x.pkl", "last.ckpt"),
        *("a/b/w.bin", "modeling_llama.py", "custom_generate/generate.py", "model.gguf"),
        *("adapter_config.json", "adapter_model.safetensors", "consolidated.safetensors"),
        "pytorch_model.bin.index.json",
    ],
)
def test_a_file_that_no_loader_may_open_is_not_in_the_view(base: Path, name: str) -> None:
    (base / name).parent.mkdir(parents=True, exist_ok=True)
    (base / name).write_text("{}")
    view = open_in(base)
    assert view != base and names(view) == {"config.json", "tokenizer_config.json", "tokenizer.json"} | {
        "model.safetensors"
    }
    assert (view / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    assert open_in(base) == view, "it is made once"


def shard(name: str) -> Callable[[Path], object]:
    """Return a change that makes an index name a file for the weights."""
    return lambda folder: write(folder, "model.safetensors.index.json", {"weight_map": {"weight": name}})


def config(**values: object) -> Callable[[Path], object]:
    return lambda folder: write(folder, "config.json", CONFIG | values)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (shard("w.bin"), r"names the weights 'w\.bin'"),
        (shard("../other/model.safetensors"), "only safetensors in the same folder"),
        (shard("/etc/model.safetensors"), "only safetensors in the same folder"),
        (shard("missing.safetensors"), r"its weights missing\.safetensors are missing"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("[]"), "not a JSON object"),
        (lambda folder: (folder / "config.json").write_text("["), "not valid JSON"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x02pickle"),
            "header would be longer",
        ),
        (config(model_file="code.py"), "sets model_file"),
        (config(transformers_weights="adapter_model.bin"), "sets transformers_weights"),
        (config(_attn_implementation_internal="evil/kernel"), "kernels of a hub"),
        (config(attn_implementation="evil/kernel@main:f"), "kernels of a hub"),
        (config(text_config={"_experts_implementation": {"": "evil/kernel"}}), "kernels of a hub"),
        (
            lambda folder: (folder / "chat_template.jinja").write_text("{% include '/etc/passwd' %}"),
            "template with 'include'",
        ),
        (
            lambda folder: write(
                folder, "tokenizer_config.json", {"chat_template": "{%- import 'x' as x %}"}
            ),
            "template with 'import'",
        ),
    ],
)
def test_a_file_that_leads_elsewhere_is_refused_by_its_name(
    base: Path, change: Callable[[Path], object], reason: str
) -> None:
    change(base)
    with pytest.raises(ModelRefused, match=reason) as caught:
        open_in(base)
    assert caught.value.code == "model_refused"


def test_names_of_code_and_of_files_elsewhere_are_removed_from_configs(base: Path) -> None:
    write(base, "config.json", CONFIG | {"auto_map": {"AutoConfig": "evil--code.Config"}})
    write(base, "tokenizer_config.json", {"vocab_file": "/etc/passwd", "auto_map": {"AutoTokenizer": ["x"]}})
    view = open_in(base)
    assert json.loads((view / "config.json").read_text()) == CONFIG
    assert json.loads((view / "tokenizer_config.json").read_text()) == {}


@pytest.mark.parametrize("peft_type", ["XLORA", "PROMPT_TUNING", None])
def test_an_adapter_that_would_load_other_models_is_refused(adapter: Path, peft_type: str | None) -> None:
    write(adapter, "adapter_config.json", LORA | {"peft_type": peft_type})
    with pytest.raises(ModelRefused, match="only LORA"):
        open_in(adapter, ModelRole.adapter)


def test_an_adapter_is_no_base_and_its_own_base_is_not_followed(adapter: Path) -> None:
    write(adapter, "tokenizer_config.json", {})
    with pytest.raises(BaseModelNotFound, match="is an adapter"):
        open_in(adapter)


def test_a_link_inside_its_root_is_followed_and_one_that_leaves_it_is_refused(
    base: Path, tmp_path: Path
) -> None:
    weights = (base / "model.safetensors").rename(base.parent / "shared.safetensors")
    (base / "model.safetensors").symlink_to(weights)
    assert open_in(base) == base
    weights = weights.rename(tmp_path / "outside.safetensors")
    (base / "model.safetensors").unlink()
    (base / "model.safetensors").symlink_to(weights)
    with pytest.raises(ModelRefused, match=r"model\.safetensors is a link to a file outside"):
        open_in(base)
    assert open_model(base, ModelRole.base) == base, "a person may link their own files"


def test_a_device_or_a_pipe_is_not_read(base: Path) -> None:
    (base / "chat_template.jinja").symlink_to("/dev/zero")
    with pytest.raises(ModelRefused, match="not a regular file"):
        open_model(base, ModelRole.base)
    (base / "chat_template.jinja").unlink()
    os.mkfifo(base / "chat_template.jinja")
    with pytest.raises(ModelRefused, match="not a regular file"):
        open_in(base)


def test_the_cache_of_the_hub_may_link_its_blobs_only(base: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    (repository / "blobs").mkdir()
    base.rename(snapshot)
    (snapshot / "config.json").rename(repository / "blobs" / "c0ffee")
    (snapshot / "config.json").symlink_to("../../blobs/c0ffee")
    assert open_model(snapshot, ModelRole.base, [tmp_path / "root"]) == snapshot
    (snapshot / "tokenizer.json").unlink()
    (snapshot / "tokenizer.json").symlink_to("/etc/hostname")
    with pytest.raises(ModelRefused, match="outside the folders"):
        open_model(snapshot, ModelRole.base, [tmp_path / "root"])


@pytest.fixture
def mlx_adapter(tmp_path: Path) -> Path:
    """Return an adapter in the format of mlx-lm: its first layer with DoRA, in half precision."""
    folder = tmp_path / "root" / "mlx"
    folder.mkdir(parents=True)
    write(folder, "adapter_config.json", MLX)
    save_file(MLX_WEIGHTS, folder / "adapters.safetensors")
    return folder


def test_an_adapter_of_mlx_lm_is_seen_as_one_of_peft(mlx_adapter: Path) -> None:
    view = open_in(mlx_adapter, ModelRole.adapter)
    assert names(view) == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((view / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_dora"]) == (2, 5, True)
    assert (config["peft_type"], config["target_modules"]) == ("LORA", ["q_proj"])
    found = load_file(view / "adapter_model.safetensors")
    prefix = "base_model.model.model.layers.0.self_attn.q_proj."
    assert found.keys() == {
        prefix + part for part in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
    }
    assert np.array_equal(found[prefix + "lora_A.weight"], MLX_WEIGHTS[Q_PROJ + "lora_a"].T)
    assert np.array_equal(found[prefix + "lora_B.weight"], MLX_WEIGHTS[Q_PROJ + "lora_b"].T)
    assert np.array_equal(found[prefix + "lora_magnitude_vector"], MLX_WEIGHTS[Q_PROJ + "m"])
    # Weights that replace the first ones are converted again.
    save_file({name: value + 1 for name, value in MLX_WEIGHTS.items()}, mlx_adapter / "adapters.safetensors")
    assert open_in(mlx_adapter, ModelRole.adapter) != view


@pytest.mark.parametrize(
    ("settings", "weights", "reason"),
    [
        ({"fine_tune_type": "full"}, {}, "which is not an adapter"),
        ({"lora_parameters": {"rank": 2, "scale": math.inf}}, {}, "the scale inf"),
        ({"lora_parameters": {"rank": 10**9, "scale": 1}}, {}, "the rank 1000000000"),
        ({"lora_parameters": {"rank": 3, "scale": 1}}, {}, "has the rank 3, but not the weights"),
        ({"lora_parameters": "x"}, {}, "which is not an adapter"),
        ({}, {"model.layers.0.mlp.up.lora_a": np.zeros((4, 2, 6), np.float32)}, "adapters of linear layers"),
        ({}, {"model.layers.0.mlp.up.weight": np.zeros((4, 2), np.float32)}, "adapters of linear layers"),
        ({}, {"model.layers.0.mlp.up.lora_a": np.zeros((4, 2), np.int8)}, "adapters of linear layers"),
        ({"peft_type": "XLORA"}, {}, "only LORA adapters"),
    ],
)
def test_an_adapter_of_mlx_lm_that_peft_cannot_express_is_refused(
    mlx_adapter: Path, settings: dict[str, Any], weights: dict[str, Any], reason: str
) -> None:
    write(mlx_adapter, "adapter_config.json", MLX | settings)
    save_file(MLX_WEIGHTS | weights, mlx_adapter / "adapters.safetensors")
    with pytest.raises(ModelRefused, match=reason):
        open_in(mlx_adapter, ModelRole.adapter)


def test_weights_of_mlx_lm_are_verified_and_hidden_next_to_those_of_peft(
    adapter: Path, mlx_adapter: Path
) -> None:
    weights = mlx_adapter / "adapters.safetensors"
    (adapter / weights.name).write_bytes(weights.read_bytes())
    assert names(open_in(adapter, ModelRole.adapter)) == {"adapter_config.json", "adapter_model.safetensors"}
    weights.unlink()
    with pytest.raises(ModelRefused, match="its weights adapters"):
        open_in(mlx_adapter, ModelRole.adapter)
    weights.write_bytes(b"pickle")
    with pytest.raises(ModelRefused, match="is too short"):
        open_in(mlx_adapter, ModelRole.adapter)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"probes": [{"ids": [1, 2, 3], "logprobs": [-1.0]}]}, "probes.0"),
        ({"probes": [{"ids": [1, -2], "logprobs": [-1.0]}]}, r"probes\.0\.ids\.1"),
        ({"probes": [{"ids": [1] * 5000, "logprobs": [-1.0] * 4999}]}, r"probes\.0\.ids"),
        ({"probes": []}, "probes"),
        ({"gap": {"mean": math.nan, "max": 1.0, "tokens": 1}}, r"gap\.mean"),
        ({"sha256": "../x"}, "sha256"),
        ({"auto_map": {"x": "evil.X"}}, "auto_map"),
    ],
)
def test_a_record_of_a_quantized_base_is_bounded(adapter: Path, changes: dict[str, Any], reason: str) -> None:
    write(adapter, "quantized_base.json", QUANTIZED)
    assert open_in(adapter, ModelRole.adapter) == adapter
    write(adapter, "quantized_base.json", QUANTIZED | changes)
    with pytest.raises(ModelRefused, match=reason):
        open_in(adapter, ModelRole.adapter)
