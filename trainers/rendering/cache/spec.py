"""What a cached dataset depends on: its rows, the tokenizer, the template, the settings and this code."""

import hashlib
import json
from enum import StrEnum
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

import trainers
from trainers.rendering.plain_text import adds_bos, text_end
from trainers.runtime.verified_files import hash_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The packages whose code decides what is in an entry and what is found in it.
CODE = ("data", "rendering", "preflight", "rewards", "metrics")
LIBRARIES = ("jinja2", "msgspec", "pyarrow", "tokenizers", "transformers")


class RowKind(StrEnum):
    """What is rendered of a row."""

    completions = "completions"  # Each assistant turn, for `sft`.
    pairs = "pairs"  # A chosen and a rejected completion, for `dpo`.
    labelled = "labelled"  # A completion and whether it is good, for `kto`.
    references = "references"  # The last prompt with its reference, for `grpo`.
    graded = "graded"  # The last prompt of a row in any format, with the row, for `grpo` by a grader.
    prompts = "prompts"  # The last prompt of a row in any format, for `distill`.

    @property
    def has_prompts_only(self) -> bool:
        """Whether the completions are not rendered."""
        return self in (RowKind.references, RowKind.graded, RowKind.prompts)


class RenderSpec(BaseModel):
    """A dataset and how it is rendered; `templates` are those of the tokenizer by their names.

    `text_start` and `text_end` are the tokens around a text that no template renders.
    """

    model_config = ConfigDict(frozen=True)

    kind: RowKind
    dataset: Path
    dataset_sha256: str
    max_rows: int | None
    max_length: int
    templates: dict[str, str]
    text_start: str
    text_end: str
    variables: dict[str, Any]
    tokenizer_sha256: str

    def template(self, *, has_tools: bool) -> str | None:
        """Return the template that transformers chooses, or None if the tokenizer has none."""
        return self.templates.get("tool_use" if has_tools and "tool_use" in self.templates else "default")

    def key(self) -> str:
        """Return the name of the entry."""
        settings = self.model_dump(mode="json", exclude={"dataset"})
        return hash_values([settings, code_version()])


def make_spec(
    kind: RowKind,
    dataset: Path,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    max_rows: int | None,
) -> RenderSpec:
    """Return the spec of a dataset under a tokenizer."""
    template = tokenizer.chat_template or {}
    return RenderSpec(
        kind=kind,
        dataset=dataset,
        dataset_sha256=hash_file(dataset),
        max_rows=max_rows,
        max_length=max_length,
        templates={"default": template} if isinstance(template, str) else dict(template),
        text_start=(tokenizer.bos_token or "") if adds_bos(tokenizer) else "",
        text_end=text_end(tokenizer) or "",
        variables=dict(tokenizer.special_tokens_map),
        tokenizer_sha256=_hash_tokenizer(tokenizer),
    )


def hash_values(values: Any) -> str:
    """Return the SHA-256 of values that JSON can represent."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=1)
def code_version() -> str:
    """Return the hash of our code that renders and checks rows, and of the versions of its libraries."""
    root = Path(trainers.__file__).parent
    files = sorted(path for name in CODE for path in (root / name).rglob("*.py"))
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return hash_values([hashes, [version(name) for name in LIBRARIES]])


def _hash_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = backend.to_str()
    else:
        # A tokenizer without a serialized form: its vocabulary and what was added to it.
        content = json.dumps([type(tokenizer).__name__, tokenizer.get_vocab()], sort_keys=True)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
