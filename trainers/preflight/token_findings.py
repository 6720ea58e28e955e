"""Findings in the rendered rows: labels, lengths, and tokens that the model does not have."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from trainers.preflight.findings import (
    MAX_EXAMPLE_CHARACTERS,
    MAX_EXAMPLES,
    Finding,
    FindingCode,
    FindingLevel,
    new_finding,
)
from trainers.rendering.render import Example

# Above this share, truncation is an error instead of a warning.
MAX_TRUNCATED_SHARE = 0.5
# Above this share of the labels, the model learns to write the unknown token rather than the answers.
MAX_UNKNOWN_SHARE = 0.2
# Templates render a line feed after the end-of-turn token, some also other tokens.
END_WINDOW_TOKENS = 4
EXAMPLE_TOKENS = 20

TokenRow = tuple[int, list[int]]
"""The line of a row, from 1, and its tokens."""


class RowLimits(NamedTuple):
    """What the limits of a model need of a row; `doubled_start` is its start if that has two BOS tokens."""

    line: int
    tokens: int
    max_token: int
    doubled_start: list[int] | None


def check_tokens(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    end_tokens: frozenset[int],
    max_length: int,
) -> Iterator[Finding]:
    """Yield the findings in rendered examples, including those without loss tokens."""
    unknown_token = _unknown_token(tokenizer)
    # One pass: an example is read from its file when it is used.
    facts = [_summarize(example, end_tokens, unknown_token) for example in examples]
    yield from _check_ends(facts)
    yield from _check_summaries(facts, max_length)
    yield from _check_unknown(facts, tokenizer)
    yield from check_model_limits(
        ((example.row, example.input_ids) for example in examples), tokenizer, config
    )


class ExampleSummary(NamedTuple):
    """What the findings need of an example; its text only if something is unusual."""

    row: int
    text: str
    tokens: int
    length: int
    loss_tokens: int
    is_truncated: bool
    prompt_is_prefix: bool
    is_whole: bool
    has_end: bool
    unknown_tokens: int


def _summarize(example: Example, end_tokens: frozenset[int], unknown_token: int | None) -> ExampleSummary:
    loss_tokens = example.loss_tokens
    is_whole = bool(loss_tokens and not example.truncated and example.ends)
    learned = example.input_ids[example.loss_start :]
    has_end = not end_tokens.isdisjoint(learned[-END_WINDOW_TOKENS:])
    unknown = 0 if unknown_token is None else learned.count(unknown_token)
    text = ""
    if is_whole and not has_end:
        text = example.text[-60:]
    elif not loss_tokens or not example.prompt_is_prefix or example.truncated or unknown:
        text = example.text[: 4 * MAX_EXAMPLE_CHARACTERS]
    return ExampleSummary(
        row=example.row,
        text=text,
        tokens=len(example.input_ids),
        length=example.length,
        loss_tokens=loss_tokens,
        is_truncated=example.truncated,
        prompt_is_prefix=example.prompt_is_prefix,
        is_whole=is_whole,
        has_end=has_end,
        unknown_tokens=unknown,
    )


def _unknown_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    token: int | None = tokenizer.unk_token_id
    # Tokenizers without an unknown token, such as GPT-2's, name the end token instead, which is a label.
    return None if token in (tokenizer.eos_token_id, tokenizer.bos_token_id) else token


def _check_summaries(examples: Sequence[ExampleSummary], max_length: int) -> Iterator[Finding]:
    empty = [example for example in examples if not example.loss_tokens]
    yield from _report_examples(
        examples,
        empty,
        FindingCode.labels_all_masked,
        "have no token that carries loss and are not trained: their prompts fill max_length, or the template "
        "renders their completions as nothing.",
        "Raise max_length, or shorten the prompts.",
        is_error=len(empty) == len(examples),
    )
    yield from _report_examples(
        examples,
        [example for example in examples if not example.prompt_is_prefix],
        FindingCode.template_not_prefix_preserving,
        "render the prompt differently when a completion follows, so the model is trained on prompts that it "
        "does not receive in use.",
        "Use a template that renders a prompt the same with and without a completion; without a template, "
        "end each prompt with a line break, so that no token is part of both.",
    )
    truncated = [example for example in examples if example.is_truncated and example.loss_tokens]
    tokens = sum(example.length for example in examples)
    lost = tokens - sum(example.tokens for example in examples)
    yield from _report_examples(
        examples,
        truncated,
        FindingCode.rows_truncated,
        f"are longer than max_length {max_length} and lose their end, with the end-of-turn token; "
        f"{lost / max(1, tokens):.1%} of all tokens are lost.",
        "Raise max_length, or drop long rows with the filter `tokens` of `prepare`.",
        is_error=len(truncated) > MAX_TRUNCATED_SHARE * len(examples),
    )


def check_model_limits(
    rows: Iterable[TokenRow],
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    generated: int = 0,
    generated_field: str = "max_completion_length",
) -> Iterator[Finding]:
    """Yield findings in tokenized rows: a double BOS, unknown tokens, and too many positions.

    `generated` is the number of tokens that are generated after each row, and `generated_field` its field.
    """
    bos = tokenizer.bos_token_id
    summaries = [
        RowLimits(
            line,
            len(ids),
            max(ids, default=0),
            ids[:EXAMPLE_TOKENS] if bos is not None and ids[:2] == [bos, bos] else None,
        )
        for line, ids in rows
    ]
    yield from _check_double_bos(summaries, tokenizer)
    yield from _check_vocabulary(summaries, tokenizer, config.get_text_config().vocab_size)
    # Models with relative positions have no limit.
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions:
        yield from _check_positions(
            summaries, positions, generated, generated_field if generated else "max_length"
        )


def _check_ends(examples: Sequence[ExampleSummary]) -> Iterator[Finding]:
    whole = [example for example in examples if example.is_whole]
    endless = [example for example in whole if not example.has_end]
    if endless:
        yield new_finding(
            FindingCode.end_of_turn_not_trained,
            FindingLevel.error,
            f"In {len(endless)} of {len(whole)} completions no end-of-turn token carries loss, so the model "
            "would not learn to stop.",
            "Change the chat template to end an assistant turn with a token of eos_token_id in "
            "generation_config.json, or add the template's end-of-turn token there.",
            places=[(example.row, example.text) for example in endless],
            count=len(endless),
            rows=len(whole),
        )


def _report_examples(
    examples: Sequence[ExampleSummary],
    found: Sequence[ExampleSummary],
    code: FindingCode,
    what: str,
    hint: str,
    *,
    is_error: bool = False,
) -> Iterator[Finding]:
    if found:
        yield new_finding(
            code,
            FindingLevel.error if is_error else FindingLevel.warning,
            f"{len(found)} of {len(examples)} examples {what}",
            hint,
            places=[(example.row, example.text) for example in found],
            count=len(found),
            rows=len(examples),
        )


def _check_unknown(
    examples: Sequence[ExampleSummary], tokenizer: PreTrainedTokenizerBase
) -> Iterator[Finding]:
    if unknown := sum(example.unknown_tokens for example in examples):
        share = unknown / sum(example.loss_tokens for example in examples)
        found = [example for example in examples if example.unknown_tokens]
        yield from _report_examples(
            examples,
            found,
            FindingCode.unknown_tokens,
            f"train the model to write {tokenizer.unk_token!r}: {share:.1%} of all labels are characters or "
            "words that the tokenizer does not have.",
            "Use a model whose tokenizer has them, or replace them in the rows.",
            is_error=share > MAX_UNKNOWN_SHARE,
        )


def _check_double_bos(rows: Sequence[RowLimits], tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    doubled = [(row.line, row.doubled_start) for row in rows if row.doubled_start is not None]
    if doubled:
        yield new_finding(
            FindingCode.double_bos,
            FindingLevel.error,
            f"{len(doubled)} of {len(rows)} rows start with the token {tokenizer.bos_token!r} twice.",
            "Remove it from the rows or from the template: both contain it.",
            places=[(line, tokenizer.decode(ids)) for line, ids in doubled[:MAX_EXAMPLES]],
            count=len(doubled),
            rows=len(rows),
        )


def _check_vocabulary(
    rows: Sequence[RowLimits], tokenizer: PreTrainedTokenizerBase, size: int
) -> Iterator[Finding]:
    unknown = [(row.line, row.max_token) for row in rows if row.max_token >= size]
    # The padding token needs an embedding too.
    pad = tokenizer.pad_token_id
    if unknown or pad >= size:
        worst = max([pad, *(token for _, token in unknown)])
        what = f"in {len(unknown)} of {len(rows)} rows" if unknown else "for padding"
        yield new_finding(
            FindingCode.vocabulary_mismatch,
            FindingLevel.error,
            f"The tokenizer uses tokens up to {worst} {what}, but the model has only {size} embeddings.",
            "Use the tokenizer of the model, or resize the embeddings.",
            places=[(line, tokenizer.decode([token])) for line, token in unknown[:MAX_EXAMPLES]],
            count=len(unknown) or 1,
            rows=len(rows) if unknown else None,
        )


def _check_positions(
    rows: Sequence[RowLimits], positions: int, generated: int, field: str
) -> Iterator[Finding]:
    too_long = [(row.line, row.tokens) for row in rows if row.tokens + generated > positions]
    if too_long:
        after = f" with a completion of {generated} tokens" if generated else ""
        # A completion may end long before its limit, so only the prompt alone is certain.
        is_certain = any(length > positions for _, length in too_long)
        yield new_finding(
            FindingCode.length_beyond_model,
            FindingLevel.error if is_certain else FindingLevel.warning,
            f"{len(too_long)} of {len(rows)} rows{after} are longer than the {positions} positions "
            "of the model.",
            f"Lower {field}, drop long rows with `prepare`, or use a model with more positions.",
            places=[(line, f"{length} tokens{after}") for line, length in too_long[:MAX_EXAMPLES]],
            count=len(too_long),
            rows=len(rows),
        )
