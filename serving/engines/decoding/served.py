"""What a model name stands for, and the tokenizer that its prompts and answers go through."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from trainers.modeling import families

CONFIG = "config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


@dataclass(frozen=True, eq=False)
class ServedModel:
    """What a model name stands for: the base (no adapter) or an adapter, each with its own tokenizer."""

    name: str
    path: str
    adapter: str | None
    tokenizer: Any
    eos_ids: frozenset[int]


def load_tokenizer(path: str) -> Any:
    """A tokenizer that neither truncates nor pads, so that threads may share it.

    Whole weights without a chat template get that of their family, as they do in training.
    """
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    if tokenizer.chat_template is None and (Path(path) / CONFIG).is_file():
        families.complete(tokenizer, json.loads((Path(path) / CONFIG).read_text())["model_type"])
    if tokenizer.is_fast:
        # Changing truncation between two calls is what makes the Rust object refuse concurrent use.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def load_adapter_tokenizer(base: ServedModel, path: str, most_tokens: int) -> Any:
    """The adapter's own tokenizer and chat template where its folder carries them, else the base's.

    Raises ValueError for a tokenizer of more tokens than the base, and the loader's own error.
    """
    folder = Path(path)
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        return with_template(base, folder / "chat_template.jinja")
    tokenizer = load_tokenizer(path)
    if len(tokenizer) > most_tokens:
        raise ValueError(f"its tokenizer has {len(tokenizer)} tokens and the base only {most_tokens}.")
    if tokenizer.chat_template is None:
        tokenizer.chat_template = base.tokenizer.chat_template
    return tokenizer


def with_template(base: ServedModel, file: Path) -> Any:
    """The base's tokenizer with another chat template, if there is one."""
    if not file.exists():
        return base.tokenizer
    tokenizer = load_tokenizer(base.path)
    tokenizer.chat_template = file.read_text()
    return tokenizer


def eos_token_ids(generation_ends: int | list[int] | None, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer, by the model's generation config and by the tokenizer."""
    listed = generation_ends if isinstance(generation_ends, list) else [generation_ends]
    return frozenset(end for end in [*listed, tokenizer.eos_token_id] if end is not None)
