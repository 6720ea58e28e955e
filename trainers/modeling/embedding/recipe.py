"""How an embedding model turns hidden states into an embedding, as its files or the deployment say.

The format is that of sentence-transformers, read without it: modules are looked up in a list of known kinds,
and what is unknown is refused by name, since any omission would give other embeddings without an error.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from trainers.configs.engines import EngineKind, Pooling
from trainers.modeling.embedding.module_files import (
    MODULE_WEIGHTS,
    MODULES,
    PROMPTS,
    TRANSFORMER_SETTINGS,
    read_modules,
    read_settings,
)
from trainers.modeling.model_config import Json, ModelFileRefused
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ProgramError

PACKAGE = "sentence_transformers."
HIDDEN_STATES = "last_hidden_state"


class PoolingMode(StrEnum):
    """The poolings of sentence-transformers; several are concatenated."""

    cls = "cls"
    max = "max"
    mean = "mean"
    mean_sqrt_len = "mean_sqrt_len_tokens"
    weighted_mean = "weightedmean"
    last_token = "lasttoken"  # noqa: S105


# The older form: one flag for each pooling, in the order in which they are concatenated.
POOLING_FLAGS = {
    "pooling_mode_cls_token": PoolingMode.cls,
    "pooling_mode_max_tokens": PoolingMode.max,
    "pooling_mode_mean_tokens": PoolingMode.mean,
    "pooling_mode_mean_sqrt_len_tokens": PoolingMode.mean_sqrt_len,
    "pooling_mode_weightedmean_tokens": PoolingMode.weighted_mean,
    "pooling_mode_lasttoken": PoolingMode.last_token,
}
MODES = {Pooling.mean: PoolingMode.mean, Pooling.cls: PoolingMode.cls, Pooling.last: PoolingMode.last_token}


class Activation(StrEnum):
    """The activations of a dense layer, by the last part of their class's name."""

    identity = "Identity"
    tanh = "Tanh"
    relu = "ReLU"
    gelu = "GELU"
    silu = "SiLU"
    sigmoid = "Sigmoid"


class EmbeddingModelUnsupported(ProgramError):
    """The model has no recipe for embeddings, or one that the engine cannot follow."""

    code = ErrorCode.model_unsupported


@dataclass(frozen=True)
class DenseLayer:
    """A linear layer after the pooling, with its weights in `weights`."""

    weights: Path
    n_inputs: int
    n_outputs: int
    has_bias: bool
    activation: Activation


@dataclass(frozen=True)
class EmbeddingRecipe:
    """What follows the hidden states.

    Attributes:
        pooling: Poolings whose results are concatenated.
        includes_prompt: Whether the tokens of `prompt` are pooled, too.
        layers: Linear layers after the pooling.
        normalizes: Whether embeddings have the length 1.
        prompt: Text that precedes every text.
        max_tokens: The most tokens of a text; None for as many as the model has positions.
        lowercases: Whether texts are read in lower case.
    """

    pooling: tuple[PoolingMode, ...]
    includes_prompt: bool = True
    layers: tuple[DenseLayer, ...] = ()
    normalizes: bool = True
    prompt: str = ""
    max_tokens: int | None = None
    lowercases: bool = False


def read_recipe(folder: Path, pooling: Pooling | None) -> EmbeddingRecipe:
    """Return the recipe of a verified folder, or that of a pooling for a model without a recipe.

    A chosen pooling is followed by a normalization, as vLLM does it.

    Raises:
        EmbeddingModelUnsupported: The folder has no recipe and no pooling is given, or both, or a module
            that is not supported.
    """
    if not (folder / MODULES).is_file():
        if pooling is None:
            raise EmbeddingModelUnsupported(
                f"The model {folder} does not say how its hidden states become an embedding: it has no "
                f"{MODULES}.",
                "Set `pooling` to mean, cls or last, as the model's authors describe it; or use an embedding "
                "model in the format of sentence-transformers.",
            )
        return EmbeddingRecipe((MODES[pooling],))
    if pooling is not None:
        raise EmbeddingModelUnsupported(
            f"The model {folder} has its own pooling, in {MODULES}.", "Leave `pooling` out."
        )
    try:
        return _read_modules(folder)
    except (ModelFileRefused, OSError) as error:
        raise EmbeddingModelUnsupported(
            f"The model {folder} cannot compute embeddings: {error}.",
            "Use a model of a transformer, a pooling, and optionally dense layers and a normalization.",
        ) from error


def check_generates(folder: Path) -> None:
    """Raise EmbeddingModelUnsupported for an embedding model that is to generate text."""
    if (folder / MODULES).is_file():
        raise EmbeddingModelUnsupported(
            f"The model {folder} computes embeddings: it has the file {MODULES}.", "Set `task` to embed."
        )


def check_engine(recipe: EmbeddingRecipe, engine: EngineKind) -> None:
    """Raise EmbeddingModelUnsupported for what another engine than `hf` would leave out silently."""
    if engine is EngineKind.hf:
        return
    missing = []
    if len(recipe.pooling) > 1 or recipe.pooling[0] not in MODES.values():
        missing.append(f"the pooling {' + '.join(recipe.pooling)}")
    if recipe.prompt:
        missing.append(f"the default prompt {recipe.prompt[:50]!r}")
    if missing:
        raise EmbeddingModelUnsupported(
            f"The engine {engine} does not apply {' and '.join(missing)} of this model.", "Use the engine hf."
        )


def _read_modules(folder: Path) -> EmbeddingRecipe:
    modules = read_modules(folder / MODULES)
    kinds = [_module_kind(module) for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise ModelFileRefused(
            f"its modules are {', '.join(kinds) or 'missing'}, not Transformer, Pooling, …"
        )
    if modules[0]["path"]:
        raise ModelFileRefused(
            f"its transformer is in the folder {modules[0]['path']}, not in the model's own"
        )
    after = [(kind, folder / str(module["path"])) for kind, module in zip(kinds, modules, strict=True)][2:]
    kinds_after = [kind for kind, _ in after if kind != "Dropout"]
    normalizes = "Normalize" in kinds_after
    if "Normalize" in kinds_after[:-1]:
        raise ModelFileRefused("its module Normalize is not the last one")
    for kind in kinds_after:
        if kind not in ("Dense", "Normalize"):
            raise ModelFileRefused(f"its module {kind} is not supported")
    pooling = read_settings(folder / str(modules[1]["path"]) / "config.json")
    settings = _read_transformer_settings(folder)
    return EmbeddingRecipe(
        _pooling_modes(pooling),
        includes_prompt=pooling.get("include_prompt", True) is not False,
        layers=tuple(_read_dense(path) for kind, path in after if kind == "Dense"),
        normalizes=normalizes,
        prompt=_default_prompt(read_settings(folder / PROMPTS)),
        max_tokens=settings.get("max_seq_length"),
        lowercases=settings.get("do_lower_case") is True,
    )


def _module_kind(module: Json) -> str:
    """Return the kind of a module of sentence-transformers itself; raises ModelFileRefused for others."""
    name: str = module["type"]
    if not name.startswith(PACKAGE):
        raise ModelFileRefused(f"its module {name[:100]!r} is code of its author, which does not run")
    return name.rpartition(".")[2]


def _pooling_modes(config: Json) -> tuple[PoolingMode, ...]:
    named = config.get("pooling_mode")
    if named is None:
        unknown = [
            key
            for key, value in config.items()
            if key.startswith("pooling_mode_") and value and key not in POOLING_FLAGS
        ]
        names: Iterable[Any] = unknown or [mode for flag, mode in POOLING_FLAGS.items() if config.get(flag)]
    else:
        names = named if isinstance(named, list) else [named]
    try:
        return tuple(PoolingMode(name) for name in names) or (PoolingMode.mean,)
    except ValueError as error:
        raise ModelFileRefused(f"its pooling is not supported: {error}") from error


def _read_dense(folder: Path) -> DenseLayer:
    config = read_settings(folder / "config.json")
    weights = folder / MODULE_WEIGHTS
    if not weights.is_file():
        raise ModelFileRefused(
            f"its module {folder.name} has no {MODULE_WEIGHTS}, and weights in another format, such as a "
            "pickled pytorch_model.bin, are never loaded"
        )
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise ModelFileRefused(f"its module {folder.name} has the {key} {str(config[key])[:100]!r}")
    if config.get("use_residual"):
        raise ModelFileRefused(f"its module {folder.name} has a residual connection, which is not supported")
    activation = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    sizes = [config.get(key) for key in ("in_features", "out_features")]
    if activation not in set(Activation) or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ModelFileRefused(
            f"its module {folder.name} has the activation {activation[:50]!r} and the sizes {sizes}"
        )
    n_inputs, n_outputs = (int(size or 0) for size in sizes)
    return DenseLayer(weights, n_inputs, n_outputs, config.get("bias") is not False, Activation(activation))


def _read_transformer_settings(folder: Path) -> Json:
    """Return the settings of the transformer; raises ModelFileRefused for another output than its states."""
    names = sorted(path.name for path in folder.iterdir() if TRANSFORMER_SETTINGS.fullmatch(path.name))
    settings = read_settings(folder / names[0]) if names else {}
    task = settings.get("transformer_task", "feature-extraction")
    modality = settings.get("modality_config") or {}
    text = modality.get("text", {}) if isinstance(modality, dict) else {}
    output = text.get("method_output_name", HIDDEN_STATES) if isinstance(text, dict) else text
    if task != "feature-extraction" or output != HIDDEN_STATES:
        raise ModelFileRefused(f"its transformer has the task {task!r} and the output {output!r}")
    length = settings.get("max_seq_length")
    if length is not None and (not isinstance(length, int) or length < 1):
        raise ModelFileRefused(f"its max_seq_length is {str(length)[:50]!r}")
    return settings


def _default_prompt(config: Json) -> str:
    name = config.get("default_prompt_name")
    if name is None:
        return ""
    prompts = config.get("prompts")
    prompt = prompts.get(name) if isinstance(prompts, dict) else None
    if not isinstance(prompt, str):
        raise ModelFileRefused(f"its default prompt {str(name)[:100]!r} is not one of its prompts")
    return prompt
