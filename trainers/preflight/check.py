"""All findings of a training stage: what its program looks at before it starts, and what takes longer."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from trainers.configs.references import get_base_model
from trainers.configs.rewards import BleuReward, ChrfReward, CorrectnessReward
from trainers.configs.stages.dpo import DpoConfig
from trainers.configs.stages.grpo import GrpoConfig
from trainers.configs.stages.sft import SftConfig
from trainers.configs.training import PreflightMode, TrainingConfig
from trainers.preflight.duplicates import check_overlap
from trainers.preflight.findings import Finding, FindingCode, FindingLevel, findings_to_json, new_finding
from trainers.preflight.reward_findings import check_references
from trainers.preflight.row_findings import check_file, check_texts
from trainers.preflight.setting_findings import check_settings
from trainers.preflight.token_findings import check_model_limits, check_tokens
from trainers.rendering.preference_examples import PreferenceSet
from trainers.rendering.render import (
    PromptCompletion,
    dataset_path,
    read_preferences,
    read_prompt_completions,
    tokenize_prompt,
)
from trainers.rendering.sft_examples import ExampleSet
from trainers.runtime import run_dir as files
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ProgramError
from trainers.runtime.events import EventWriter
from trainers.runtime.program import is_main_process

PREFLIGHT = "preflight.json"

RenderedRows = ExampleSet | PreferenceSet | Sequence[PromptCompletion]

logger = logging.getLogger("trainers")


class PreflightFailed(ProgramError):
    code = ErrorCode.preflight_failed


def check_before_training(
    config: TrainingConfig,
    tokenizer: PreTrainedTokenizerBase,
    rows: RenderedRows,
    run_dir: Path,
    report: EventWriter,
) -> None:
    """Look for what would waste the run, tell it as warnings, and raise PreflightFailed for an error.

    Left to the stage `preflight`, since they cost: near duplicates, held-out rows that are nearly trained on,
    and rewards on a sample of the model's own answers.
    """
    if config.preflight is PreflightMode.off or not is_main_process():
        return
    found = list(check_stage(config, tokenizer, rows))
    files.write_json(run_dir / PREFLIGHT, {"findings": findings_to_json(found)})
    is_resumed = files.last_complete_checkpoint(run_dir) is not None
    for told in found if not is_resumed else ():
        report.warning(told.code, f"{told.message} {told.hint}")
        logger.warning("%s: %s %s", told.code, told.message, told.hint)
    errors = [told for told in found if told.level is FindingLevel.error]
    if errors and config.preflight is PreflightMode.check:
        places = "; ".join(f"row {place.line}" for place in errors[0].examples[:3] if place.line)
        raise PreflightFailed(
            f"{errors[0].code}: {errors[0].message}" + (f" First: {places}." if places else ""),
            f"{errors[0].hint} To train all the same, set preflight to warn.",
        )


def check_stage(
    config: TrainingConfig, tokenizer: PreTrainedTokenizerBase, rows: RenderedRows, *, exact_only: bool = True
) -> Iterator[Finding]:
    """What a program can tell from the rows that it has read and rendered anyway."""
    dataset = dataset_path(config.dataset)
    yield from check_settings(config, model_config(config))
    yield from check_file(dataset)
    yield from check_texts(
        _said(config), tokenizer.all_special_tokens, are_answers_learned=_are_answers_read(config)
    )
    yield from _rendered_findings(config, tokenizer, rows)
    held_out = [dataset_path(reference) for reference in config.held_out]
    yield from check_overlap(dataset, held_out, exact_only=exact_only)


def model_config(config: TrainingConfig) -> PreTrainedConfig:
    """The base's config; raises what `load_tokenizer` would have raised before."""
    return AutoConfig.from_pretrained(get_base_model(config.base), trust_remote_code=False)


def end_tokens(config: TrainingConfig, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end generation: the tokenizer's, and those of the model's generation config."""
    try:
        ends = GenerationConfig.from_pretrained(get_base_model(config.base)).eos_token_id
    except OSError:  # The file is optional.
        ends = None
    listed = ends if isinstance(ends, list) else [ends]
    return frozenset(end for end in [*listed, tokenizer.eos_token_id] if end is not None)


def _said(config: TrainingConfig) -> Iterator[Sequence[PromptCompletion]]:
    """The turns of each row, or its two answers."""
    return (
        read_preferences(config.dataset)
        if isinstance(config, DpoConfig)
        else read_prompt_completions(config.dataset)
    )


def _are_answers_read(config: TrainingConfig) -> bool:
    """Whether a row's answer is learned, or at least compared with: some rewards look at the form alone."""
    return not isinstance(config, GrpoConfig) or any(
        isinstance(reward, ChrfReward | BleuReward) for reward in config.rewards
    )


def _rendered_findings(
    config: TrainingConfig, tokenizer: PreTrainedTokenizerBase, rows: RenderedRows
) -> Iterator[Finding]:
    model, ends = model_config(config), end_tokens(config, tokenizer)
    if isinstance(rows, PreferenceSet):
        assert isinstance(config, DpoConfig)
        yield from _equal_answers(rows)
        examples = [example for pair in rows.pairs for example in pair]
        yield from check_tokens(examples, tokenizer, model, ends, config.max_length)
    elif isinstance(rows, ExampleSet):
        assert isinstance(config, SftConfig)
        yield from check_tokens(rows.rendered, tokenizer, model, ends, config.max_length)
    else:
        assert isinstance(config, GrpoConfig)
        prompts = [(pair.row, tokenize_prompt(pair, tokenizer)) for pair in rows]
        yield from check_model_limits(prompts, tokenizer, model, config.max_completion_length)
        if any(isinstance(reward, CorrectnessReward) for reward in config.rewards):
            yield from check_references(rows)


def _equal_answers(preferences: PreferenceSet) -> Iterator[Finding]:
    equal = preferences.identical_rows
    if equal:
        yield new_finding(
            FindingCode.chosen_equals_rejected,
            FindingLevel.error if len(equal) == preferences.rows else FindingLevel.warning,
            f"In {len(equal)} of {preferences.rows} rows the chosen and the rejected answer are the same "
            "tokens and teach nothing.",
            "Remove these rows, or raise max_length if they differ at their end.",
            places=[(line, "both answers are alike") for line in equal],
            count=len(equal),
            rows=preferences.rows,
        )
