"""The texts on which a model with a quantized base is compared with the published one."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from trainers.exporting.reference import PROMPTS

COMPLETION_TOKENS = 16

# Returns the likeliest next token of each row.
NextTokens = Callable[[Sequence[Sequence[int]]], Sequence[int]]
# Returns the log-probability of each token but the first of each row.
Score = Callable[[Sequence[Sequence[int]]], list[list[float]]]


def make_probe_rows(tokenizer: PreTrainedTokenizerBase, next_tokens: NextTokens) -> list[list[int]]:
    """Return the token ids of fixed prompts, each with a greedy completion.

    No row of the data is among them: they are published with the adapter.
    """
    rows = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in _render(tokenizer)]
    for _ in range(COMPLETION_TOKENS):
        for row, token in zip(rows, next_tokens(rows), strict=True):
            row.append(int(token))
    return rows


def _render(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    if not tokenizer.chat_template:
        return list(PROMPTS)
    return [
        str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
            )
        )
        for text in PROMPTS
    ]
