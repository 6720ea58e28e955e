"""The findings of a training stage, in rows that a program has read and in its settings."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from trainers.configs.on_policy import OnPolicyConfig
from trainers.configs.references import get_base_model
from trainers.configs.rewards import BleuReward, ChrfReward, CorrectnessReward, list_reward_graders
from trainers.configs.stages.distill import DistillConfig
from trainers.configs.stages.dpo import DpoConfig
from trainers.configs.stages.grpo import GrpoConfig
from trainers.configs.stages.kto import KtoConfig
from trainers.configs.stages.sft import SftConfig
from trainers.configs.training import TrainingConfig
from trainers.modeling.load import load_config, load_generation_config
from trainers.modeling.teacher import TeacherMismatch, check_teacher
from trainers.preflight.duplicates import check_overlap
from trainers.preflight.feedback.label_findings import check_labels
from trainers.preflight.feedback.reward_findings import check_references
from trainers.preflight.findings import Finding, FindingCode, FindingExample, FindingLevel, new_finding
from trainers.preflight.omission_findings import check_omissions
from trainers.preflight.row_findings import RowTexts, check_file, check_texts
from trainers.preflight.setting_findings import check_cpu_time, check_settings, check_steps, check_template
from trainers.preflight.stored_findings import Check, find_once
from trainers.preflight.token_findings import check_model_limits, check_tokens
from trainers.rendering.examples.labelled import LabelledSet
from trainers.rendering.examples.preferences import PreferenceSet
from trainers.rendering.examples.prompts import PromptSet
from trainers.rendering.examples.sft import ExampleSet
from trainers.rendering.labelled_rows import read_labelled
from trainers.rendering.mixtures import describe_origin
from trainers.rendering.plain_text import text_end
from trainers.rendering.render import (
    PromptCompletion,
    dataset_path,
    read_preferences,
    read_prompt_completions,
    read_prompts,
)
from trainers.runtime.verified_files import hash_file

RenderedRows = ExampleSet | PreferenceSet | LabelledSet | PromptSet


def check_stage(
    config: TrainingConfig, tokenizer: PreTrainedTokenizerBase, rows: RenderedRows, *, exact_only: bool = True
) -> Iterator[Finding]:
    """Yield the findings in rows that the program has already read and rendered, and in its settings.

    In a mixture, the examples name the lines of its datasets.
    """
    dataset = dataset_path(config.dataset)
    for one in _check_stage(config, tokenizer, rows, dataset, exact_only):
        yield one.model_copy(update={"examples": [_name_origin(dataset, each) for each in one.examples]})


def _name_origin(dataset: Path, example: FindingExample) -> FindingExample:
    origin = describe_origin(dataset, example.line) if example.line is not None else None
    return example if origin is None else example.model_copy(update={"text": f"{origin}: {example.text}"})


def _check_stage(
    config: TrainingConfig,
    tokenizer: PreTrainedTokenizerBase,
    rows: RenderedRows,
    dataset: Path,
    exact_only: bool,
) -> Iterator[Finding]:
    yield from check_settings(config, model_config(config))
    tokens = 0 if isinstance(rows, PromptSet) else rows.tokens
    yield from check_cpu_time(config, model_config(config), rows.rows, tokens)
    yield from check_steps(config, rows.rows)
    yield from check_template(config, tokenizer, isinstance(rows, ExampleSet) and rows.has_documents)
    held_out = [dataset_path(reference) for reference in config.held_out]
    checks: list[Check] = [
        partial(check_file, dataset),
        lambda: check_texts(
            _read_texts(config),
            tokenizer.all_special_tokens,
            check_completions=_uses_completions(config),
        ),
        partial(_check_rendered, config, tokenizer, rows),
        partial(check_overlap, dataset, held_out, exact_only=exact_only),
    ]
    hashes = [hash_file(path) for path in held_out if path.is_file()]
    key = [
        config.model_dump(mode="json", exclude={"held_out"}),
        # The files of the base may have been corrected since.
        model_config(config).to_json_string(),
        sorted(end_tokens(config, tokenizer)),
        hashes,
        exact_only,
    ]
    yield from find_once(rows.mapped.entry, key, checks, dataset.stat().st_size)
    if isinstance(config, DistillConfig) and isinstance(rows, PromptSet):
        # Not stored: it depends on the files of the teacher too.
        yield from _check_teacher(config, tokenizer, rows.pairs)


def model_config(config: TrainingConfig) -> PreTrainedConfig:
    """Return the config of the base, which `load_tokenizer` has already checked."""
    return load_config(get_base_model(config.base))


def end_tokens(config: TrainingConfig, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that end generation: those of the tokenizer and of the generation config."""
    generation_config = load_generation_config(get_base_model(config.base))
    ends = generation_config.eos_token_id if generation_config is not None else None
    listed = ends if isinstance(ends, list) else [ends]
    text_end_id = tokenizer.convert_tokens_to_ids(text_end(tokenizer) or [])
    return frozenset(end for end in [*listed, tokenizer.eos_token_id, text_end_id] if isinstance(end, int))


def _read_texts(config: TrainingConfig) -> Iterator[RowTexts]:
    """Yield the completions of each row, and which of them the model learns to write."""
    if isinstance(config, KtoConfig):
        for labelled in read_labelled(config.dataset):
            yield RowTexts([pair for pair, _ in labelled], [pair for pair, label in labelled if label])
    elif isinstance(config, DpoConfig):
        for pairs in read_preferences(config.dataset):
            yield RowTexts(pairs, pairs[:1])
    elif isinstance(config, DistillConfig) or (
        isinstance(config, GrpoConfig) and list_reward_graders(config.rewards)
    ):
        for prompt in read_prompts(config.dataset):
            yield RowTexts([prompt], [])
    else:
        for turns in read_prompt_completions(config.dataset, has_documents=isinstance(config, SftConfig)):
            yield RowTexts(turns, turns)


def _uses_completions(config: TrainingConfig) -> bool:
    """Return whether the rows' completions are trained or compared with; some rewards use neither."""
    if isinstance(config, GrpoConfig):
        return any(isinstance(reward, ChrfReward | BleuReward) for reward in config.rewards)
    return not isinstance(config, DistillConfig)


def _check_rendered(
    config: TrainingConfig, tokenizer: PreTrainedTokenizerBase, rows: RenderedRows
) -> Iterator[Finding]:
    model, ends = model_config(config), end_tokens(config, tokenizer)
    if isinstance(rows, PreferenceSet):
        assert isinstance(config, DpoConfig)
        yield from _check_identical_pairs(rows)
        yield from check_omissions(rows.omissions)
        yield from check_tokens(rows.sides, tokenizer, model, ends, config.max_length)
    elif isinstance(rows, LabelledSet):
        assert isinstance(config, KtoConfig)
        yield from check_labels(config, rows)
        yield from check_omissions(rows.omissions)
        yield from check_tokens(rows.examples, tokenizer, model, ends, config.max_length)
    elif isinstance(rows, ExampleSet):
        assert isinstance(config, SftConfig)
        yield from check_omissions(rows.omissions)
        yield from check_tokens(rows.rendered, tokenizer, model, ends, config.max_length)
    else:
        assert isinstance(config, OnPolicyConfig)
        yield from check_omissions(rows.omissions)
        yield from check_model_limits(rows.tokens_of_rows, tokenizer, model, config.max_completion_length)
        if isinstance(config, GrpoConfig) and any(
            isinstance(reward, CorrectnessReward) for reward in config.rewards
        ):
            yield from check_references(rows)


def _check_teacher(
    config: DistillConfig, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[PromptCompletion]
) -> Iterator[Finding]:
    try:
        has_same_template = check_teacher(config.teacher, config.base, tokenizer, prompts)
    except TeacherMismatch as error:
        yield new_finding(
            FindingCode.teacher_mismatch, FindingLevel.error, error.message, error.hint or "", count=1
        )
        return
    if not has_same_template:
        yield new_finding(
            FindingCode.teacher_template_differs,
            FindingLevel.warning,
            "The teacher has another chat template than the student, but reads the prompts in the student's, "
            "for which its distribution may be poor.",
            "Choose a teacher with the student's template, unless both render your rows alike.",
            count=1,
        )


def _check_identical_pairs(preferences: PreferenceSet) -> Iterator[Finding]:
    identical = preferences.identical_rows
    if identical:
        yield new_finding(
            FindingCode.chosen_equals_rejected,
            FindingLevel.error if len(identical) == preferences.rows else FindingLevel.warning,
            f"In {len(identical)} of {preferences.rows} rows the chosen and the rejected completion have the "
            "same tokens, so nothing is learned from them.",
            "Remove these rows, or raise max_length if the completions differ after it.",
            places=[(line, "the completions are identical") for line in identical],
            count=len(identical),
            rows=preferences.rows,
        )
