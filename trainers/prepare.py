"""Show what a model's tokenizer and chat template make of the first rows, and which tokens carry loss.

python -m trainers.prepare --config prepare.yaml --run-dir runs/preview
"""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from trainers.configs.prepare import PrepareConfig
from trainers.errors import DatasetInvalid
from trainers.load import load_tokenizer, template_sha256
from trainers.program import run_program
from trainers.render import IGNORED, Example, read_pairs, render
from trainers.report import Report

CONTEXT_TOKENS = 4  # Some decoders drop a leading space or join marks; a few tokens before settle how.


def prepare(config: PrepareConfig, run_dir: Path, report: Report) -> dict[str, Any]:
    """Render the rows; a conversation of several turns gives one entry per assistant turn."""
    tokenizer = load_tokenizer(config.base)
    turns = list(read_pairs(config.dataset, config.rows))
    if not turns:
        raise DatasetInvalid(f"The dataset {config.dataset} has no rows to show.", "Add rows.")
    rows = []
    for done, pairs in enumerate(turns, start=1):
        examples = [render(pair, tokenizer, config.max_length) for pair in pairs]
        rows += [_shown(example, turn, tokenizer) for turn, example in enumerate(examples, start=1)]
        report.progress(done, len(turns))
    return {"stage": "prepare", "template_sha256": template_sha256(tokenizer), "rows": rows}


def plan(config: PrepareConfig) -> dict[str, Any]:
    """How many rows would be rendered."""
    load_tokenizer(config.base)
    return {"stage": "prepare", "rows": sum(1 for _ in read_pairs(config.dataset, config.rows))}


def _shown(example: Example, turn: int, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    texts = token_texts(example.input_ids, tokenizer)
    return {
        "row": example.row,
        "turn": turn,
        "text": example.text,
        "tokens": [
            {"text": text, "loss": label != IGNORED}
            for text, label in zip(texts, example.labels, strict=True)
        ],
        "token_count": len(example.input_ids),
        "loss_token_count": example.loss_tokens,
        "truncated": example.truncated,
    }


def token_texts(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of each token; a character spread over several tokens stands at the last of them."""
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


def _decode(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


if __name__ == "__main__":
    run_program(PrepareConfig, prepare, plan)
