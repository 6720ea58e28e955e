"""A loaded base model with its adapters, as the generation loop knows it, whichever library runs it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Self

from serving.engines.decoding.adapters import AdapterNotLoadable, check_adapter, wrap_loader_errors
from serving.engines.decoding.sequence import SequenceState
from serving.engines.decoding.served import ServedModel, load_adapter_tokenizer
from trainers.configs.engines import EngineOptions


class ModelNotLoadable(ValueError):
    """The model cannot be served by this engine; the message says why."""


@dataclass
class DecodeBatch(ABC):
    """Rows of one adapter that decode together.

    The newest token of each row is not in the cache yet: the next step feeds it.
    """

    rows: list[SequenceState]

    @abstractmethod
    def join(self, other: Self) -> Self:
        """One block of the rows of both."""

    @abstractmethod
    def drop_ended(self) -> Self | None:
        """The block without ended rows; None if no row is left."""


@dataclass
class ModelRunner(ABC):
    """The base model and all names being served; only the generation thread touches the weights."""

    served: ServedModel
    config: Any
    max_model_len: int
    vocabulary_size: int
    options: EngineOptions
    names: dict[str, ServedModel] = field(default_factory=dict)
    attached: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.names[self.served.name] = self.served
        self._numbers = count(1)

    @abstractmethod
    def prefill(self, rows: list[SequenceState], every_position: bool) -> tuple[Any, Any]:
        """Read the prompts; the block, and torch's logits after each (b, v) or everywhere (b, t, v)."""

    @abstractmethod
    def step(self, block: Any) -> Any:
        """Feed the newest token of each row; torch's logits of the next (b, v)."""

    @abstractmethod
    def attach(self, adapter: str, path: str, config: Any) -> None:
        """Put an adapter's weights, which have been checked, beside the base."""

    @abstractmethod
    def detach(self, adapter: str) -> None:
        """Free an adapter's weights."""

    def load_adapter(self, name: str, path: str) -> ServedModel:
        """Put an adapter beside the others; raises AdapterNotLoadable and then leaves the model as it was."""
        if len(self.attached) >= self.options.max_adapters:
            raise AdapterNotLoadable(
                path, f"the engine holds {len(self.attached)} adapters, its max_adapters; unload one first."
            )
        config = check_adapter(path, self.config, self.options.max_adapter_rank)
        with wrap_loader_errors(path):
            tokenizer = load_adapter_tokenizer(self.served, path, self.vocabulary_size)
        # A module's key may not hold a dot, which served names may; a fresh number never meets a stale one.
        adapter = f"adapter_{next(self._numbers)}"
        self.attach(adapter, path, config)
        self.attached.add(adapter)
        ends = self.served.eos_ids | ({tokenizer.eos_token_id} - {None})
        return ServedModel(name, path, adapter, tokenizer, ends)

    def unload_adapter(self, served: ServedModel) -> None:
        """Free an adapter's weights; no row may use it any more."""
        assert served.adapter is not None
        self.detach(served.adapter)
        self.attached.discard(served.adapter)


def check_model_path(path: str) -> None:
    """Raise ModelNotLoadable for what is plainly no whole model, before a loader complains in its own way."""
    if (Path(path) / "adapter_config.json").exists():
        raise ModelNotLoadable(
            f"{path} is an adapter: pass its base as --model and it as --adapter name={path}."
        )
    if Path(path).is_absolute() and not Path(path).is_dir():
        # The hub would be asked for it, and complain of its spelling.
        raise ModelNotLoadable(f"The model folder {path} does not exist.")


def check_vocabulary_size(path: str, tokenizer: Any, vocabulary_size: int) -> None:
    """Raise ModelNotLoadable where a token would have no embedding."""
    if len(tokenizer) > vocabulary_size:
        raise ModelNotLoadable(
            f"The tokenizer of {path} has more tokens than the model; they do not belong together."
        )


def context_length(path: str, config: Any, asked: int | None) -> int:
    """Tokens of prompt and answer together: what was asked for, bounded by what the model knows."""
    known = getattr(config.get_text_config(), "max_position_embeddings", None)
    if known is None and asked is None:
        raise ModelNotLoadable(f"{path} does not say how long its context is; pass --max-model-len.")
    if known is not None and asked is not None and asked > known:
        raise ModelNotLoadable(f"--max-model-len {asked} is more than the {known} positions of {path}.")
    return int(asked or known or 0)
