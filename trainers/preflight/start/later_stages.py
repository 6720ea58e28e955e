"""Checks of the later stages of a job, in the first seconds of the job and before any stage trains.

A worker writes their configs into the run directory. In each of them, the model that the run starts from
stands in for the model that the stage will get: its tokenizer, template and architecture are the same.
"""

import logging
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from trainers.configs.base import AdaptedModel, ModelRef
from trainers.configs.references import get_base_model
from trainers.configs.rewards import GraderReward
from trainers.configs.stage_config import AnyStage, parse_stage
from trainers.configs.stages.deploy import DeployConfig
from trainers.configs.stages.distill import DistillConfig
from trainers.configs.stages.dpo import DpoConfig
from trainers.configs.stages.evaluate import EvaluateConfig
from trainers.configs.stages.export import ExportConfig
from trainers.configs.stages.generate import GenerateConfig
from trainers.configs.stages.grpo import GrpoConfig
from trainers.configs.stages.harness.lm_eval import LmEvalConfig
from trainers.configs.stages.import_model import ImportConfig
from trainers.configs.stages.kto import KtoConfig
from trainers.configs.stages.merge import MergeConfig
from trainers.configs.stages.sft import SftConfig
from trainers.configs.training import ChatTemplateName, PreflightMode, TrainingConfig
from trainers.evaluation.row_completions import load_prompts as load_generation_prompts
from trainers.evaluation.scored_rows import load_scored_rows
from trainers.modeling.architecture import check_mergeable, explain_hf_refusal
from trainers.modeling.load import ModelUnsupported, load_config, load_tokenizer
from trainers.preflight.check import RenderedRows, check_stage
from trainers.preflight.findings import Finding, FindingCode, FindingLevel, new_finding
from trainers.preflight.start.import_check import check_import
from trainers.preflight.token_findings import check_model_limits
from trainers.rendering.cache.folder import temporary_cache
from trainers.rendering.examples.labelled import render_labelled
from trainers.rendering.examples.preferences import render_preferences
from trainers.rendering.examples.sft import render_examples
from trainers.rendering.mixtures import has_mixture, mix_datasets
from trainers.rendering.render import PromptCompletion, dataset_path, tokenize_prompt
from trainers.runtime import run_dir as files
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import DatasetInvalid, ProgramError
from trainers.training.model_proof import prove_model
from trainers.training.on_policy.rollouts import load_prompts, load_student_prompts

# Rendering takes about a second for so many prompts; an evaluation seldom has more.
MAX_PROMPTS = 2000

logger = logging.getLogger("trainers")


class LaterStageInvalid(ProgramError):
    """A later stage of the job would fail."""

    code = ErrorCode.later_stage_invalid


def check_later_stages(run_dir: Path) -> None:
    """Raise LaterStageInvalid for the first stage in the run directory that would fail.

    A run that resumes has checked them before.
    """
    later = files.read_json(run_dir / files.LATER_STAGES)
    if later is None or files.last_complete_checkpoint(run_dir) is not None:
        return
    template = ChatTemplateName(later["template"]) if later["template"] else None
    for values in later["stages"]:
        config = parse_stage(values)
        faults = find_faults(config, template, is_trained=True)
        found = next((one for one in faults if one.level is FindingLevel.error), None)
        if found is not None:
            raise LaterStageInvalid(
                f"The later stage {config.name!r} ({config.stage}) would fail. {found.message}",
                f"{found.hint} Nothing has been trained yet.",
            )
        logger.info("Checked the later stage %s.", config.name)


def find_faults(
    config: AnyStage, template: ChatTemplateName | None = None, *, is_trained: bool = False
) -> Iterator[Finding]:
    """Yield the findings that the stage's own code makes before its model exists.

    `template` is the one with which the earlier stages train that model, and `is_trained` whether an adapter
    of it may be what the stage gets.
    """
    try:
        yield from _check(config, template, is_trained=is_trained)
    except DatasetInvalid as error:
        yield _finding(FindingCode.dataset_unusable, error)
    except ProgramError as error:
        if error.code.infrastructure:
            raise
        yield _finding(FindingCode.model_unfit, error)


def render_rows(config: TrainingConfig, tokenizer: PreTrainedTokenizerBase) -> RenderedRows:
    """Return the rows of a training stage as it would train on them; raises DatasetInvalid."""
    match config:
        case SftConfig():
            return render_examples(config.dataset, tokenizer, config.max_length)
        case DpoConfig():
            return render_preferences(config.dataset, tokenizer, config.max_length)
        case KtoConfig():
            return render_labelled(config.dataset, tokenizer, config.max_length)
        case DistillConfig():
            return load_student_prompts(config.dataset, tokenizer)
        case GrpoConfig():
            # Without other rewards: a reference without an answer is a finding here, not a failure.
            graders = [reward for reward in config.rewards if isinstance(reward, GraderReward)]
            return load_prompts(str(dataset_path(config.dataset)), graders, tokenizer)
    raise AssertionError(f"the stage {config.stage} has no rows to render")


def _check(config: AnyStage, template: ChatTemplateName | None, *, is_trained: bool) -> Iterator[Finding]:
    match config:
        case TrainingConfig():
            prove_model(config)
            tokenizer = load_tokenizer(config.base, config.template or template)
            with temporary_cache() as cache:
                mixed = mix_datasets(config, cache)[0] if has_mixture(config) else config
                found = list(check_stage(mixed, tokenizer, render_rows(mixed, tokenizer)))
            # Without `check`, the stage itself continues despite these.
            yield from found if config.preflight is PreflightMode.check else ()
        case EvaluateConfig():
            rows = load_scored_rows(config)
            if isinstance(config.model, str | AdaptedModel):
                tokenizer = load_tokenizer(config.model, template)
                yield from _check_prompts(config, config.model, tokenizer, rows)
                _check_engine(config, config.model)
        case GenerateConfig():
            tokenizer = load_tokenizer(config.model, template)
            yield from _check_prompts(config, config.model, tokenizer, load_generation_prompts(config))
            _check_engine(config, config.model)
        case LmEvalConfig():
            load_tokenizer(config.model, template)
            _check_tasks(config)
        case MergeConfig():
            load_tokenizer(config.model, template)
            check_mergeable(get_base_model(config.model))
        case ExportConfig():
            load_tokenizer(config.model, template)
            # An adapter is merged into its base before it is written.
            if is_trained or isinstance(config.model, AdaptedModel):
                check_mergeable(get_base_model(config.model))
        case ImportConfig():
            check_import(config)
            load_tokenizer(config.model)
        case DeployConfig():
            load_tokenizer(config.model, template)
            _check_engine(config, config.model)


def _check_prompts(
    config: EvaluateConfig | GenerateConfig,
    reference: ModelRef,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[PromptCompletion],
) -> Iterator[Finding]:
    """Yield findings in the first prompts as the model will read them."""
    rows = [(pair.row, tokenize_prompt(pair, tokenizer)) for pair in prompts[:MAX_PROMPTS]]
    model = load_config(get_base_model(reference))
    yield from check_model_limits(rows, tokenizer, model, config.max_new_tokens, "max_new_tokens")


def _check_tasks(config: LmEvalConfig) -> None:
    """Find all tasks, and load those with data of ours, without the hub."""
    if find_spec("lm_eval") is None:
        # Another worker runs the stage.
        return
    from trainers.lm_eval.stock_tasks import find_file
    from trainers.lm_eval.tasks import load_tasks

    for task in config.tasks:
        if task.definition is None:
            find_file(task.label)
    if own := [task for task in config.tasks if task.data is not None]:
        load_tasks(config.model_copy(update={"tasks": own}))


def _check_engine(config: DeployConfig | EvaluateConfig | GenerateConfig, reference: ModelRef) -> None:
    if config.engine != "hf":
        return
    base = get_base_model(reference)
    reason = explain_hf_refusal(load_config(base), config.options.max_model_len)
    if reason is not None:
        raise ModelUnsupported(f"The model {base} {reason}.", "Choose another engine.")


def _finding(code: FindingCode, error: ProgramError) -> Finding:
    return new_finding(code, FindingLevel.error, error.message, error.hint or "")
