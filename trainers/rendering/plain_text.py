"""Rows as text without a chat template.

Documents are rendered so under every model, and the prompts and completions of a base that has no template:
the texts follow each other as they are, and the end-of-text token follows the last.
"""

from typing import TYPE_CHECKING, Any

from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ProgramError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Attribute of a tokenizer with the end-of-text token that it had before a template was chosen for it.
TEXT_END = "text_end_token"
PLAIN_ROLES = (["assistant"], ["user"], ["user", "assistant"])


class TemplateMissing(ProgramError):
    """A conversation, and a model without a chat template."""

    code = ErrorCode.template_missing

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(
            f"The model has no chat template, and row {row} {reason}, which cannot be rendered without one.",
            "Choose a template with the field `template` (`transcript` suits every tokenizer), use the "
            "instruct variant of the model, or write rows of `prompt` and `completion` texts, or of `text`.",
        )


def render_plain(
    tokenizer: "PreTrainedTokenizerBase",
    row: int,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    *,
    is_prompt: bool,
) -> str:
    """Return a document, a prompt, or a prompt with its completion; raises TemplateMissing for other rows."""
    start = tokenizer.bos_token if adds_bos(tokenizer) else ""
    return join_texts(start or "", text_end(tokenizer) or "", row, messages, tools, is_prompt=is_prompt)


def join_texts(
    start: str,
    end: str,
    row: int,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    *,
    is_prompt: bool,
) -> str:
    """Return the same as `render_plain`, for a tokenizer that begins and ends texts with these tokens."""
    if tools:
        raise TemplateMissing(row, "has tools")
    roles = [message["role"] for message in messages]
    if messages and roles not in PLAIN_ROLES:
        raise TemplateMissing(row, f"is a conversation of {', '.join(roles)}")
    if extra := sorted({name for message in messages for name in message} - {"role", "content"}):
        raise TemplateMissing(row, f"has messages with `{extra[0]}`")
    return f"{start}{''.join(message['content'] for message in messages)}{'' if is_prompt else end}"


def text_end(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Return the token that ends a text, which a template of ours replaces by one that ends a turn."""
    end: str | None = getattr(tokenizer, TEXT_END, tokenizer.eos_token)
    return end


def adds_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether the tokenizer begins every text with its beginning-of-text token."""
    bos: int | None = tokenizer.bos_token_id
    return bos is not None and list(tokenizer("a")["input_ids"])[:1] == [bos]
