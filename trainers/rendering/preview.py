"""Rendered rows for display: the text of each token, and whether it carries loss."""

from typing import TYPE_CHECKING, Any

from trainers.rendering.render import IGNORE_INDEX, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Some decoders drop a leading space or join accents: decoding needs a few tokens before the shown one.
CONTEXT_TOKENS = 4


def preview_example(example: Example, turn: int, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """Return an example as JSON for a page."""
    texts = decode_tokens(example.input_ids, tokenizer)
    return {
        "row": example.row,
        "turn": turn,
        "text": example.text,
        "tokens": [
            {"text": text, "loss": label != IGNORE_INDEX}
            for text, label in zip(texts, example.labels, strict=True)
        ],
        "token_count": len(example.input_ids),
        "loss_token_count": example.loss_tokens,
        "truncated": example.truncated,
    }


def highlight_loss(row: dict[str, Any], colour: bool) -> str:
    """Return a previewed row for the terminal, with loss tokens in reverse video or between ⟦ and ⟧."""
    start, end = ("\x1b[7m", "\x1b[0m") if colour else ("⟦", "⟧")
    text, inside = "", False
    for token in row["tokens"]:
        if token["loss"] is not inside:
            text += start if token["loss"] else end
            inside = token["loss"]
        text += _replace_control_characters(token["text"])
    return text + (end if inside else "")


def decode_tokens(ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Return the text of each token; a character of several tokens is the text of the last of them."""
    texts = []
    start = 0
    for end in range(1, len(ids) + 1):
        before = _decode(ids[max(0, start - CONTEXT_TOKENS) : start], tokenizer)
        text = _decode(ids[max(0, start - CONTEXT_TOKENS) : end], tokenizer)[len(before) :]
        if text.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids):
            texts.append("")
        else:
            texts.append(text)
            start = end
    return texts


def _decode(ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def _replace_control_characters(text: str) -> str:
    """Replace escape sequences: a terminal executes them, and rows come from strangers."""
    return "".join(c if c == "\n" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
