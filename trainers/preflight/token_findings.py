"""Findings in what the model's tokenizer and template make of the rows."""

from collections.abc import Iterator, Sequence

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from trainers.preflight.findings import MAX_EXAMPLES, Finding, FindingCode, FindingLevel, new_finding
from trainers.rendering.render import IGNORE_INDEX, Example

# From this share on, what is cut off is no exception any more.
MANY = 0.5
# Templates write a line feed after the end of a turn, some also other marks.
END_TOKENS = 4
SHOWN_TOKENS = 20

TokenRow = tuple[int, list[int]]
"""The line of a row, from 1, and its tokens."""


def check_tokens(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    end_tokens: frozenset[int],
    max_length: int,
) -> Iterator[Finding]:
    """Findings in rendered examples, those without a token to learn among them."""
    yield from _ends(examples, end_tokens)
    empty = [example for example in examples if not example.loss_tokens]
    yield from _counted(
        examples,
        empty,
        FindingCode.labels_all_masked,
        "have no token that carries loss and are left out: their prompts fill max_length, or their answers "
        "are rendered as nothing.",
        "Raise max_length, or shorten the prompts.",
        is_error=len(empty) == len(examples),
    )
    yield from _counted(
        examples,
        [example for example in examples if not example.prompt_is_prefix],
        FindingCode.template_not_prefix_preserving,
        "render the prompt differently once an answer follows, so the model trains on a context that it will "
        "not see when it answers.",
        "Use a template that renders both alike.",
    )
    cut = [example for example in examples if example.truncated and example.loss_tokens]
    tokens = sum(example.length for example in examples)
    lost = tokens - sum(len(example.input_ids) for example in examples)
    yield from _counted(
        examples,
        cut,
        FindingCode.rows_truncated,
        f"are longer than max_length {max_length} and lose their end, and with it the mark to stop at; "
        f"{lost / max(1, tokens):.1%} of all tokens are lost.",
        "Raise max_length, or drop long rows with `prepare` and its filter `tokens`.",
        is_error=len(cut) > MANY * len(examples),
    )
    yield from check_model_limits(
        [(example.row, example.input_ids) for example in examples], tokenizer, config
    )


def check_model_limits(
    rows: Sequence[TokenRow], tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, answer: int = 0
) -> Iterator[Finding]:
    """What of token rows does not fit the model: its vocabulary, its positions, a beginning said twice.

    `answer` is how many tokens are generated after each row.
    """
    yield from _double_bos(rows, tokenizer)
    yield from _vocabulary(rows, tokenizer, config.get_text_config().vocab_size)
    # Models whose positions are relative name no limit.
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions:
        yield from _positions(rows, positions, answer)


def _ends(examples: Sequence[Example], end_tokens: frozenset[int]) -> Iterator[Finding]:
    learned = [example for example in examples if example.loss_tokens and not example.truncated]
    endless = [example for example in learned if not end_tokens & set(_last_labels(example))]
    if endless:
        yield new_finding(
            FindingCode.end_of_turn_not_trained,
            FindingLevel.error,
            f"In {len(endless)} of {len(learned)} answers no end-of-turn token carries loss: the model would "
            "learn to answer, but not to stop.",
            "Let the chat template end an assistant's turn with a token of eos_token_id in "
            "generation_config.json, or name the template's own there.",
            places=[(example.row, example.text[-60:]) for example in endless],
            count=len(endless),
            rows=len(learned),
        )


def _last_labels(example: Example) -> list[int]:
    return [label for label in example.labels[-END_TOKENS:] if label != IGNORE_INDEX]


def _counted(
    examples: Sequence[Example],
    found: Sequence[Example],
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


def _double_bos(rows: Sequence[TokenRow], tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    bos = tokenizer.bos_token_id
    doubled = [(line, ids) for line, ids in rows if bos is not None and ids[:2] == [bos, bos]]
    if doubled:
        yield new_finding(
            FindingCode.double_bos,
            FindingLevel.error,
            f"{len(doubled)} of {len(rows)} rows begin with the token {tokenizer.bos_token!r} twice.",
            "Remove it from the rows or from the template; one of them writes it already.",
            places=[(line, tokenizer.decode(ids[:SHOWN_TOKENS])) for line, ids in doubled[:MAX_EXAMPLES]],
            count=len(doubled),
            rows=len(rows),
        )


def _vocabulary(rows: Sequence[TokenRow], tokenizer: PreTrainedTokenizerBase, size: int) -> Iterator[Finding]:
    unknown = [(line, max(ids)) for line, ids in rows if ids and max(ids) >= size]
    # Padding is embedded too, though nothing is made of it.
    pad = tokenizer.pad_token_id
    if unknown or pad >= size:
        worst = max([pad, *(token for _, token in unknown)])
        what = f"in {len(unknown)} of {len(rows)} rows" if unknown else "for padding"
        yield new_finding(
            FindingCode.vocabulary_mismatch,
            FindingLevel.error,
            f"The tokenizer uses tokens up to {worst} {what}, but the model has only {size} embeddings.",
            "Take model and tokenizer from the same place, or resize the embeddings.",
            places=[(line, tokenizer.decode([token])) for line, token in unknown[:MAX_EXAMPLES]],
            count=len(unknown) or 1,
            rows=len(rows) if unknown else None,
        )


def _positions(rows: Sequence[TokenRow], positions: int, answer: int) -> Iterator[Finding]:
    too_long = [(line, len(ids)) for line, ids in rows if len(ids) + answer > positions]
    if too_long:
        after = f" with {answer} tokens of an answer" if answer else ""
        field = "max_completion_length" if answer else "max_length"
        # An answer may end long before its limit.
        is_sure = any(length > positions for _, length in too_long)
        yield new_finding(
            FindingCode.length_beyond_model,
            FindingLevel.error if is_sure else FindingLevel.warning,
            f"{len(too_long)} of {len(rows)} rows{after} are longer than the {positions} tokens that "
            "the model knows.",
            f"Lower {field}, drop long rows with `prepare`, or take a model that knows more.",
            places=[(line, f"{length} tokens{after}") for line, length in too_long[:MAX_EXAMPLES]],
            count=len(too_long),
            rows=len(rows),
        )
