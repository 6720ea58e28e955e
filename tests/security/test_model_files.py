"""A model is data: no pickle is loaded, no code of its author runs, and no file elsewhere is read.

Attacks on a model's folder: pickles under every name by which a library finds them, weights and tokenizers by
reference, names of code in each config, and damaged or oversized safetensors.
"""

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.security.regression import Regression, ignore, unchanged
from trainers.metrics.translation import comet_program
from trainers.modeling.model_files import ModelRefused, ModelRole, open_model

HEADER = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
PICKLES = [
    "pytorch_model.bin",
    "pytorch_model-00001-of-00001.bin",
    "pytorch_model.bin.index.json",
    "training_args.bin",
    "optimizer.pt",
    "rng_state.pth",
    "adapter_model.bin",
    "consolidated.00.pth",
    "model.ckpt",
    "weights.pkl",
    "model.safetensors.bin",
    "modeling_x.py",
    "tokenization_x.py",
    "custom_generate/generate.py",
    "sitecustomize.py",
    "libx.so",
    # Names that begin as those of harmless files.
    "license.bin",
    "LICENSE.safetensors",
    "notice.pt",
    ".cache/huggingface/x.bin",
]
CODE = [
    {"auto_map": {"AutoModelForCausalLM": "modeling_x.Model"}},
    {"auto_map": {"AutoModelForCausalLM": "evil/repo--modeling_x.Model"}},
    {"custom_generate": "evil/repo"},
    {"trust_remote_code": True},
    {"text_config": {"auto_map": {"AutoConfig": "x.Config"}}},
]
REFUSED = [
    {"_attn_implementation_internal": "evil/kernel"},
    {"_attn_implementation": "evil/kernel"},
    {"attn_implementation": "evil/kernel"},
    {"attn_implementation": {"text": "evil/kernel"}},
    {"text_config": {"_attn_implementation": "evil/kernel:attention"}},
    {"transformers_weights": "weights.bin"},
    {"model_file": "model.py"},
]


def safetensors(header: Any, body: bytes = b"\0" * 4) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def make_model(folder: Path, config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **(config or {})}))
    (folder / "model.safetensors").write_bytes(safetensors(HEADER))
    return folder


def visible(folder: Path, tmp_path: Path) -> set[str]:
    """Return the files that a loader may open."""
    opened = open_model(folder, ModelRole.base, [tmp_path], tmp_path / "views")
    return {path.relative_to(opened).as_posix() for path in opened.rglob("*") if not path.is_dir()}


@pytest.mark.parametrize("name", PICKLES)
def test_no_loader_sees_a_pickle_or_code(tmp_path: Path, name: str) -> None:
    model = make_model(tmp_path / "model")
    (model / name).parent.mkdir(exist_ok=True, parents=True)
    (model / name).write_bytes(pickle.dumps(print))
    assert visible(model, tmp_path) == {"config.json", "model.safetensors"}


@pytest.mark.parametrize(
    "shard",
    ["w.bin", "../w.safetensors", "/etc/passwd", "sub/w.safetensors", "w.safetensors/../x.bin", 5, "", None],
)
def test_an_index_names_safetensors_of_its_folder_only(tmp_path: Path, shard: Any) -> None:
    model = make_model(tmp_path / "model")
    (model / "model.safetensors").unlink()
    (model / "w.bin").write_bytes(pickle.dumps(print))
    (tmp_path / "w.safetensors").write_bytes(safetensors(HEADER))
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(ModelRefused):
        visible(model, tmp_path)


@pytest.mark.parametrize("config", CODE)
@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_names_of_code_are_removed_from_every_config(
    tmp_path: Path, file: str, config: dict[str, Any]
) -> None:
    model = make_model(tmp_path / "model")
    (model / file).write_text(json.dumps({"model_type": "llama", **config}))
    opened = open_model(model, ModelRole.base, [tmp_path], tmp_path / "views")
    text = (opened / file).read_text()
    assert "evil" not in text and "auto_map" not in text and "trust_remote_code" not in text


@pytest.mark.parametrize("config", REFUSED)
def test_code_and_weights_by_reference_are_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    model = make_model(tmp_path / "model", config)
    with pytest.raises(ModelRefused):
        visible(model, tmp_path)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt"])
def test_a_link_to_a_file_outside_the_roots_is_refused(tmp_path: Path, file: str) -> None:
    root = tmp_path / "root"
    model = make_model(root / "model")
    outside = tmp_path / "outside"
    outside.write_bytes((model / file).read_bytes() if (model / file).exists() else b"{}")
    (model / file).unlink(missing_ok=True)
    (model / file).symlink_to(outside)
    with pytest.raises(ModelRefused, match="outside"):
        open_model(model, ModelRole.base, [root], tmp_path / "views")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04pickle",
        struct.pack("<Q", 2**63) + b"{}",
        safetensors(b"["),
        safetensors(b"[" * 100_000),
        safetensors({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}),
        safetensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}),
        safetensors({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}),
        safetensors({"w": {"dtype": "OBJECT", "shape": [1], "data_offsets": [0, 4]}}),
        safetensors({**HEADER, "v": HEADER["w"]}),
        safetensors(b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "w": 1}'),
        safetensors(HEADER, b"\0" * 5),
        safetensors({**HEADER, "__metadata__": {"x": {"y": 1}}}),
    ],
)
def test_weights_that_are_no_safetensors_are_refused(tmp_path: Path, content: bytes) -> None:
    model = make_model(tmp_path / "model")
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelRefused, match=r"model\.safetensors"):
        visible(model, tmp_path)


def test_a_comet_checkpoint_with_a_pickle_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(pickle.dumps({"state_dict": Executed(tmp_path / "executed")}))
    with pytest.raises(comet_program.ScorerRefused, match="as tensors alone"):
        comet_program.read_weights(tmp_path)
    assert not (tmp_path / "executed").exists()


class Executed:
    """An object that creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


def load_all_objects(folder: Path) -> Any:
    import torch

    return torch.load(folder / "model.ckpt", weights_only=False)["state_dict"]


REGRESSIONS = [
    Regression(
        "a COMET checkpoint is loaded with the objects in it",
        "trainers.metrics.translation.comet_program:read_weights",
        load_all_objects,
        "test_a_comet_checkpoint_with_a_pickle_runs_nothing",
    ),
    Regression(
        "every file is visible",
        "trainers.modeling.model_files:is_visible",
        lambda *_: True,
        "test_no_loader_sees_a_pickle_or_code",
    ),
    Regression(
        "an index may name any file",
        "trainers.modeling.model_files:read_index",
        lambda index: set(),
        "test_an_index_names_safetensors_of_its_folder_only",
    ),
    Regression(
        "configs are used as they are",
        "trainers.modeling.model_files:clean_config",
        lambda _, config: config,
        "test_names_of_code_are_removed_from_every_config",
    ),
    Regression(
        "links are followed",
        "trainers.modeling.model_files:_resolve_file",
        unchanged,
        "test_a_link_to_a_file_outside_the_roots_is_refused",
    ),
    Regression(
        "headers are not read",
        "trainers.modeling.model_files:check_safetensors",
        ignore,
        "test_weights_that_are_no_safetensors_are_refused",
    ),
]


def test_modules_of_sentence_transformers_are_seen_without_their_pickles(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    modules = [{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "config.json").write_text('{"auto_map": {"AutoModel": "x.Model"}, "bias": true}')
    (folder / "2_Dense" / "pytorch_model.bin").write_bytes(pickle.dumps(1))
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    own = {"config.json", "model.safetensors", "modules.json", "2_Dense/config.json"}
    assert visible(folder, tmp_path) == own
    opened = open_model(folder, ModelRole.base, [tmp_path], tmp_path / "views")
    assert json.loads((opened / "2_Dense" / "config.json").read_text()) == {"bias": True}


@pytest.mark.parametrize(
    "module",
    [
        {"type": "Pooling", "path": "../other/1_Pooling"},
        {"type": "Pooling", "path": "/etc"},
        {"type": "Pooling", "path": "1_Pooling/../../x"},
        {"type": "Pooling", "path": ["1_Pooling"]},
        {"path": "1_Pooling"},
        "1_Pooling",
    ],
)
def test_a_module_outside_the_folder_is_refused(tmp_path: Path, module: Any) -> None:
    folder = make_model(tmp_path / "model")
    (folder / "modules.json").write_text(json.dumps([module]))
    with pytest.raises(ModelRefused, match=r"its file modules\.json"):
        visible(folder, tmp_path)


def test_a_link_in_the_folder_of_a_module_stays_inside_the_roots(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "roots" / "model")
    (tmp_path / "secret.json").write_text("{}")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(ModelRefused, match="link to a file outside"):
        open_model(folder, ModelRole.base, [tmp_path / "roots"], tmp_path / "views")
