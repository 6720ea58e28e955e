"""A served model name: the base or an adapter, with the tokenizer of its prompts and completions."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from transformers import AutoTokenizer

from serving.engines.decoding.token_bounds import TokenCoverage, find_token_coverage
from trainers.modeling import families

CONFIG = "config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


@dataclass(frozen=True, eq=False)
class ServedModel:
    """The base (`adapter` is None) or an adapter, each with its own tokenizer."""

    name: str
    path: str
    adapter: str | None
    tokenizer: Any
    eos_ids: frozenset[int]
    coverage: TokenCoverage | None = field(init=False)
    """The most text that one token stands for; None if that has no limit."""

    def __post_init__(self) -> None:
        is_fast = getattr(self.tokenizer, "is_fast", False)
        coverage = find_token_coverage(self.tokenizer.backend_tokenizer) if is_fast else None
        object.__setattr__(self, "coverage", coverage)


class LoadedModel(Protocol):
    """What an engine has loaded, whatever it computes."""

    served: ServedModel
    models: dict[str, ServedModel]
    max_model_len: int
    vocabulary_size: int


def load_tokenizer(path: str) -> Any:
    """Load a tokenizer that neither truncates nor pads, so that threads can share it.

    Whole weights without a chat template get the template of their family, as in training.
    """
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    if tokenizer.chat_template is None and (Path(path) / CONFIG).is_file():
        families.set_chat_template(tokenizer, json.loads((Path(path) / CONFIG).read_text())["model_type"])
    if tokenizer.is_fast:
        # The Rust object raises "Already borrowed" when one thread changes truncation while another encodes.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def load_adapter_tokenizer(base: ServedModel, path: str, max_vocabulary_size: int) -> Any:
    """Load the adapter's tokenizer and chat template where its folder has them, else return the base's.

    Raises:
        ValueError: The tokenizer has more tokens than the base has embeddings.
    """
    folder = Path(path)
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        template = folder / "chat_template.jinja"
        if not template.exists():
            return base.tokenizer
        tokenizer = load_tokenizer(base.path)
        tokenizer.chat_template = template.read_text()
        return tokenizer
    tokenizer = load_tokenizer(path)
    if len(tokenizer) > max_vocabulary_size:
        raise ValueError(
            f"its tokenizer has {len(tokenizer)} tokens, but the base has only {max_vocabulary_size}."
        )
    if tokenizer.chat_template is None:
        tokenizer.chat_template = base.tokenizer.chat_template
    return tokenizer


def eos_token_ids(generation_config_ids: int | list[int] | None, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end a completion, from the generation config and from the tokenizer."""
    ids = generation_config_ids if isinstance(generation_config_ids, list) else [generation_config_ids]
    return frozenset(end for end in [*ids, tokenizer.eos_token_id] if end is not None)
