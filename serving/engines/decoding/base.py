"""The interface between the generation loop and the library that runs a model and its adapters."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Self

from serving.engines.decoding.adapters import (
    AdapterNotLoadable,
    check_adapter,
    open_adapter,
    wrap_loader_errors,
)
from serving.engines.decoding.sequence import SequenceState
from serving.engines.decoding.served import ServedModel, load_adapter_tokenizer
from trainers.configs.engines import EngineOptions
from trainers.modeling.model_files import is_adapter
from trainers.modeling.model_source import open_base
from trainers.runtime.errors import ProgramError


class ModelNotLoadable(ValueError):
    """A model that this engine cannot serve; the message contains the reason."""


@dataclass
class DecodeBatch(ABC):
    """Sequences of one adapter that are decoded together.

    The last token of each sequence is not in the KV cache yet: the next step feeds it.
    """

    sequences: list[SequenceState]

    @abstractmethod
    def merge(self, other: Self) -> Self:
        """Return one batch with the sequences of both."""

    @abstractmethod
    def drop_finished(self) -> Self | None:
        """Return the batch without finished sequences, or None if no sequence is left."""


@dataclass
class ModelRunner(ABC):
    """The loaded base model, its adapters, and all served names.

    Only the generation thread touches the weights. Tensor suffixes and shapes: b sequences, t tokens,
    v vocabulary.
    """

    served: ServedModel
    config: Any
    max_model_len: int
    vocabulary_size: int
    options: EngineOptions
    models: dict[str, ServedModel] = field(default_factory=dict)
    """Every served model, adapters included, by its name in requests."""
    attached: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.models[self.served.name] = self.served
        self._numbers = count(1)

    @abstractmethod
    def prefill(self, sequences: list[SequenceState], every_position: bool) -> tuple[Any, Any]:
        """Read the prompts of sequences with one adapter.

        Returns:
            The batch, and torch's logits after each prompt (b, v), or a list of those at every position of
            each prompt (t, v).
        """

    @abstractmethod
    def step(self, batch: Any) -> Any:
        """Feed the last token of each sequence, and return torch's logits of the next token (b, v)."""

    @abstractmethod
    def attach(self, adapter: str, path: str, config: Any) -> None:
        """Load the weights of an adapter that has been checked."""

    @abstractmethod
    def detach(self, adapter: str) -> None:
        """Free the weights of an adapter."""

    def load_adapter(self, name: str, path: str) -> ServedModel:
        """Load an adapter and its tokenizer.

        Raises:
            AdapterNotLoadable: The adapter does not fit; the model is unchanged.
        """
        if len(self.attached) >= self.options.max_adapters:
            raise AdapterNotLoadable(
                path,
                f"the engine already has {len(self.attached)} of max_adapters={self.options.max_adapters}. "
                "Unload an adapter first.",
            )
        with wrap_loader_errors(path):
            folder = open_adapter(path)
        config = check_adapter(folder, self.config, self.options.max_adapter_rank)
        with wrap_loader_errors(path):
            tokenizer = load_adapter_tokenizer(self.served, folder, self.vocabulary_size)
        # A module's key may not contain a dot, but served names may. A number that is never reused cannot
        # collide with weights that are still being freed.
        adapter = f"adapter_{next(self._numbers)}"
        self.attach(adapter, folder, config)
        self.attached.add(adapter)
        eos_ids = self.served.eos_ids | ({tokenizer.eos_token_id} - {None})
        return ServedModel(name, path, adapter, tokenizer, eos_ids)

    def unload_adapter(self, served: ServedModel) -> None:
        """Free an adapter's weights; no sequence may use it any more."""
        assert served.adapter is not None
        self.detach(served.adapter)
        self.attached.discard(served.adapter)


def open_base_model(path: str) -> str:
    """Return the verified folder of the base; raise ModelNotLoadable for an adapter or an unsafe file."""
    if is_adapter(Path(path)):
        raise ModelNotLoadable(
            f"{path} is an adapter. Pass its base as --model, and the adapter as --adapter NAME={path}."
        )
    try:
        return open_base(path)
    except ProgramError as error:
        raise ModelNotLoadable(error.message) from error


def check_vocabulary_size(path: str, tokenizer: Any, vocabulary_size: int) -> None:
    """Raise ModelNotLoadable if the tokenizer has tokens without an embedding."""
    if len(tokenizer) > vocabulary_size:
        raise ModelNotLoadable(
            f"The tokenizer of {path} has {len(tokenizer)} tokens, but the model's vocabulary has "
            f"{vocabulary_size}. Use the tokenizer that belongs to the model."
        )


def context_length(path: str, config: Any, max_model_len: int | None) -> int:
    """Return the tokens of prompt and completion together: `max_model_len`, or all that the model supports.

    Raises:
        ModelNotLoadable: `max_model_len` is too large, or missing where the model has no limit of its own.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is None and max_model_len is None:
        raise ModelNotLoadable(f"The config of {path} has no context length; pass --max-model-len.")
    if positions is not None and max_model_len is not None and max_model_len > positions:
        raise ModelNotLoadable(
            f"--max-model-len {max_model_len} is more than the {positions} positions of {path}."
        )
    return int(max_model_len or positions or 0)
