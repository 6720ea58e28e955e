"""Check a training stage before it runs: its data, its settings, its memory and, optionally, a few steps.

The program succeeds whatever it finds; `passed` in the result is true if the stage would start.

    python -m trainers.preflight --config preflight.yaml --run-dir runs/checked
"""

import logging
import sys
from collections.abc import Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from trainers.configs.stage_config import AnyStage
from trainers.configs.stages.grpo import GrpoConfig
from trainers.configs.stages.preflight import PreflightConfig
from trainers.configs.training import ChatTemplateName, TrainingConfig
from trainers.modeling.load import ModelUnsupported, TemplateUnsuitable, load_tokenizer
from trainers.preflight.check import RenderedRows, check_stage
from trainers.preflight.duplicates import check_near_duplicates
from trainers.preflight.feedback.reward_findings import check_rewards
from trainers.preflight.findings import Finding, FindingCode, FindingLevel, findings_to_json, new_finding
from trainers.preflight.memory.estimate import estimate_memory
from trainers.preflight.memory.findings import check_memory
from trainers.preflight.probe import run_probe
from trainers.preflight.row_findings import check_file
from trainers.preflight.start.later_stages import find_faults, render_rows
from trainers.rendering.examples.labelled import LabelledSet
from trainers.rendering.examples.preferences import PreferenceSet
from trainers.rendering.examples.prompts import PromptSet
from trainers.rendering.examples.sft import ExampleSet
from trainers.rendering.plain_text import TemplateMissing
from trainers.rendering.preview import highlight_loss, preview_example
from trainers.rendering.render import dataset_path, render_prompt
from trainers.runtime.errors import ConfigInvalid, DatasetInvalid, ProgramError
from trainers.runtime.events import EventWriter
from trainers.runtime.program import run_program
from trainers.training.model_proof import prove_model
from trainers.training.on_policy.generation import longest_sequence

logger = logging.getLogger("trainers")


def run(config: PreflightConfig, run_dir: Path, events: EventWriter) -> dict[str, Any]:
    """Return all findings, the first rows as tokens, the memory estimate and the results of the probe."""
    target = config.target
    if not isinstance(target, TrainingConfig):
        return _check_other_stage(target, config.model_template)
    try:
        prove_model(target)
        tokenizer = load_tokenizer(target.base, target.template or config.model_template)
        rows = render_rows(target, tokenizer)
    except (DatasetInvalid, ConfigInvalid, ModelUnsupported, TemplateMissing, TemplateUnsuitable) as error:
        return _unusable_result(target, error)
    memory = estimate_memory(target, config.hosts, _longest_sequence(target, rows))
    found = [*check_stage(target, tokenizer, rows, exact_only=False), *check_memory(target, memory)]
    events.write_progress(1, 3)
    found += check_near_duplicates(dataset_path(target.dataset))
    if isinstance(target, GrpoConfig) and isinstance(rows, PromptSet):
        found += check_rewards(target, rows.pairs)
    events.write_progress(2, 3)
    preview = _preview_rows(rows, tokenizer, config.shown_rows)
    _print_findings(found, preview)
    probed = run_probe(config, run_dir, memory) if config.probe_steps and not _has_error(found) else None
    events.write_progress(3, 3)
    return _make_result(target, found, rows=preview, memory=memory, probe=probed)


def _check_other_stage(target: AnyStage, template: ChatTemplateName | None) -> dict[str, Any]:
    """Return the findings of a stage that does not train."""
    found = list(find_faults(target, template))
    _print_findings(found, [])
    return _make_result(target, found)


def plan(config: PreflightConfig) -> dict[str, Any]:
    """Return how many examples would be checked; null for a stage that does not train."""
    if not isinstance(config.target, TrainingConfig):
        return {"stage": "preflight", "target": config.target.stage, "examples": None}
    rows = render_rows(config.target, load_tokenizer(config.target.base, config.target.template))
    count = rows.rows if isinstance(rows, PromptSet) else len(_list_examples(rows))
    return {"stage": "preflight", "target": config.target.stage, "examples": count}


def _unusable_result(target: TrainingConfig, error: ProgramError) -> dict[str, Any]:
    """Return the result for rows that cannot be rendered, or a model that the settings do not suit."""
    is_of_rows = isinstance(error, DatasetInvalid | TemplateMissing)
    code = FindingCode.dataset_unusable if is_of_rows else FindingCode.model_unfit
    found = [
        new_finding(code, FindingLevel.error, error.message, error.hint or ""),
        *check_file(dataset_path(target.dataset)),
    ]
    _print_findings(found, [])
    return _make_result(target, found)


def _make_result(target: AnyStage, found: Sequence[Finding], **parts: Any) -> dict[str, Any]:
    return {
        "stage": "preflight",
        "target": target.stage,
        "passed": not _has_error(found),
        "findings": findings_to_json(found),
        "rows": [],
        "memory": None,
        "probe": None,
        **parts,
    }


def _has_error(found: Sequence[Finding]) -> bool:
    return any(one.level is FindingLevel.error for one in found)


def _list_examples(rows: RenderedRows) -> Sequence[Any]:
    if isinstance(rows, ExampleSet):
        return rows.rendered
    if isinstance(rows, LabelledSet):
        return rows.examples
    return [example for pair in rows.pairs for example in pair] if isinstance(rows, PreferenceSet) else []


def _longest_sequence(target: Any, rows: RenderedRows) -> int:
    """Return the tokens of the longest sequence of a forward pass."""
    if isinstance(rows, PromptSet):
        return longest_sequence(target, rows)
    longest = max((len(example.input_ids) for example in _list_examples(rows)), default=1)
    return target.max_length if getattr(target, "packing", False) else longest


def _preview_rows(rows: RenderedRows, tokenizer: PreTrainedTokenizerBase, count: int) -> list[dict[str, Any]]:
    """Return the first rows as tokens; GRPO has prompts only, which carry no loss."""
    if isinstance(rows, PreferenceSet):
        return [
            preview_example(example, 1, tokenizer) | {"side": side}
            for pair in rows.pairs[:count]
            for side, example in zip(("chosen", "rejected"), pair, strict=True)
        ]
    if isinstance(rows, LabelledSet):
        return [
            preview_example(example, 1, tokenizer) | {"side": "chosen" if label else "rejected"}
            for example, label in rows.labelled[:count]
        ]
    if isinstance(rows, PromptSet):
        return [preview_example(render_prompt(pair, tokenizer), 1, tokenizer) for pair in rows.pairs[:count]]
    turns = groupby(rows.rendered, key=lambda example: example.row)
    return [
        preview_example(example, turn, tokenizer)
        for _, examples in islice(turns, count)
        for turn, example in enumerate(examples, start=1)
    ]


def _print_findings(found: Sequence[Finding], preview: Sequence[dict[str, Any]]) -> None:
    """Print the first rows with their loss tokens highlighted, and log the findings."""
    colour = sys.stdout.isatty()
    for row in preview:
        sys.stdout.write(f"row {row['row']}: {highlight_loss(row, colour)}\n")
    sys.stdout.flush()
    for one in found:
        share = f" ({one.share:.1%})" if one.share is not None else ""
        logger.info("%s %s%s: %s %s", one.level, one.code, share, one.message, one.hint)
        for example in one.examples:
            logger.info("    row %s: %s", example.line, example.text)
    if not found:
        logger.info("No findings.")


if __name__ == "__main__":
    run_program(PreflightConfig, run, plan)
