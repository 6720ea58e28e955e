"""What the files of sentence-transformers say, and what is refused instead of being left out."""

import json
from pathlib import Path
from typing import Any

import pytest

from trainers.configs.engines import EngineKind
from trainers.modeling.embedding.recipe import (
    EmbeddingModelUnsupported,
    EmbeddingRecipe,
    PoolingMode,
    check_engine,
    read_recipe,
)

KINDS = ["models.Transformer", "models.Pooling"]
SETTINGS = "sentence_bert_config.json"


def write_model(
    folder: Path,
    kinds: list[str],
    pooling: dict[str, Any] | None = None,
    files: dict[str, dict[str, Any]] | None = None,
) -> Path:
    modules = [
        {"type": kind if "." not in kind or kind[0] == "!" else f"sentence_transformers.{kind}", "path": ""}
        for kind in kinds
    ]
    for index, module in enumerate(modules[1:], 1):
        module["path"] = f"{index}_{kinds[index].rpartition('.')[2]}"
        (folder / module["path"]).mkdir()
    (folder / "modules.json").write_text(json.dumps(modules))
    contents = {"1_Pooling/config.json": pooling or {}, **(files or {})}
    for name, content in contents.items():
        if (folder / name).parent.is_dir():
            (folder / name).write_text(json.dumps(content))
    return folder


def read(folder: Path, *arguments: Any) -> EmbeddingRecipe:
    return read_recipe(write_model(folder, *arguments), None)


def test_both_forms_of_the_pooling_are_read(tmp_path: Path) -> None:
    for name, pooling in {
        "flags": {"pooling_mode_cls_token": False, "pooling_mode_lasttoken": True},
        "name": {"pooling_mode": "lasttoken", "include_prompt": True},
        "list": {"pooling_mode": ["lasttoken"]},
    }.items():
        (tmp_path / name).mkdir()
        recipe = read(tmp_path / name, KINDS, pooling)
        assert (recipe.pooling, recipe.includes_prompt, recipe.normalizes) == (
            (PoolingMode.last_token,),
            True,
            False,
        )


def test_flags_are_concatenated_in_the_order_of_sentence_transformers(tmp_path: Path) -> None:
    pooling = {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True, "include_prompt": False}
    recipe = read(tmp_path, [*KINDS, "models.Dropout", "models.Normalize"], pooling)
    assert recipe.pooling == (PoolingMode.max, PoolingMode.mean)
    assert (recipe.includes_prompt, recipe.normalizes) == (False, True)


def test_settings_of_the_transformer_and_the_default_prompt_are_read(tmp_path: Path) -> None:
    files = {
        SETTINGS: {"max_seq_length": 256, "do_lower_case": True},
        "config_sentence_transformers.json": {
            "prompts": {"query": "q: ", "document": ""},
            "default_prompt_name": "query",
        },
    }
    recipe = read(tmp_path, KINDS, None, files)
    assert (recipe.max_tokens, recipe.lowercases, recipe.prompt) == (256, True, "q: ")


DENSE = [*KINDS, "models.Dense"]
REFUSED: list[tuple[list[str], dict[str, Any], dict[str, Any], str]] = [
    (["models.Transformer"], {}, {}, "modules are Transformer"),
    (["models.StaticEmbedding"], {}, {}, "modules are StaticEmbedding"),
    ([*KINDS, "models.LayerNorm"], {}, {}, "module LayerNorm is not supported"),
    ([*KINDS, "!custom_st.Scale"], {}, {}, "code of its author"),
    ([*KINDS, "models.Normalize", "models.Dense"], {}, {}, "Normalize is not the last"),
    (KINDS, {"pooling_mode": "median"}, {}, "median"),
    (KINDS, {"pooling_mode_first_and_last": True}, {}, "pooling_mode_first_and_last"),
    (KINDS, {}, {"config_sentence_transformers.json": {"default_prompt_name": "query"}}, "default prompt"),
    (KINDS, {}, {SETTINGS: {"transformer_task": "fill-mask"}}, "fill-mask"),
    (KINDS, {}, {SETTINGS: {"max_seq_length": "long"}}, "max_seq_length"),
    (DENSE, {}, {"2_Dense/pytorch_model.bin": {}}, "pickled pytorch_model.bin, are never loaded"),
    (
        DENSE,
        {},
        {"2_Dense/model.safetensors": {}, "2_Dense/config.json": {"activation_function": "os.system"}},
        "activation 'system'",
    ),
    (DENSE, {}, {"2_Dense/model.safetensors": {}, "2_Dense/config.json": {"use_residual": True}}, "residual"),
]


@pytest.mark.parametrize(("kinds", "pooling", "files", "message"), REFUSED)
def test_what_would_give_other_embeddings_is_refused_by_name(
    tmp_path: Path, kinds: list[str], pooling: dict[str, Any], files: dict[str, Any], message: str
) -> None:
    with pytest.raises(EmbeddingModelUnsupported, match=message):
        read(tmp_path, kinds, pooling, files)


@pytest.mark.parametrize("engine", [EngineKind.vllm, EngineKind.sglang])
def test_other_engines_refuse_what_they_would_leave_out(engine: EngineKind) -> None:
    check_engine(EmbeddingRecipe((PoolingMode.cls,)), engine)
    check_engine(EmbeddingRecipe((PoolingMode.max,), prompt="q: "), EngineKind.hf)
    for recipe, message in [
        (EmbeddingRecipe((PoolingMode.weighted_mean,)), "the pooling weightedmean"),
        (EmbeddingRecipe((PoolingMode.cls, PoolingMode.mean)), r"the pooling cls \+ mean"),
        (EmbeddingRecipe((PoolingMode.mean,), prompt="q: "), "the default prompt 'q: '"),
    ]:
        with pytest.raises(EmbeddingModelUnsupported, match=message):
            check_engine(recipe, engine)
