"""Goal: a loader sees only files of the allow-list, all of them inside the folder and free of code.

Method: a small model folder is changed in one way that led a loader elsewhere, or to a pickle or to code.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from trainers.modeling.model_files import BaseModelNotFound, ModelRefused, ModelRole, open_model

CONFIG: dict[str, Any] = {"model_type": "llama", "_attn_implementation": "sdpa"}
LORA: dict[str, Any] = {"peft_type": "LORA", "r": 4, "base_model_name_or_path": "org/base"}
WEIGHTS: dict[str, Any] = {"weight": np.zeros(4, np.float32)}


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
