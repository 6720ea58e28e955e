"""Judge a training stage before it runs: its data, its settings, its memory and, if asked, a few steps of it.

Faults are what it is there to find, so it succeeds with them; `passed` in the result tells whether the stage
would start.

    python -m trainers.preflight --config preflight.yaml --run-dir runs/judged
"""

import logging
import sys
from collections.abc import Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from trainers.configs.stages.dpo import DpoConfig
from trainers.configs.stages.grpo import GrpoConfig
from trainers.configs.stages.preflight import PreflightConfig
from trainers.configs.stages.sft import SftConfig
from trainers.modeling.load import load_tokenizer
from trainers.preflight.check import RenderedRows, check_stage
from trainers.preflight.duplicates import check_near_duplicates
from trainers.preflight.findings import Finding, FindingCode, FindingLevel, findings_to_json, new_finding
from trainers.preflight.memory_estimate import estimate_memory
from trainers.preflight.probe import run_probe
from trainers.preflight.reward_findings import check_rewards
from trainers.preflight.row_findings import check_file
from trainers.rendering.preference_examples import PreferenceSet, render_preferences
from trainers.rendering.preview import highlight_loss, preview_example
from trainers.rendering.render import PromptCompletion, dataset_path, render_prompt, tokenize_prompt
from trainers.rendering.sft_examples import ExampleSet, render_examples
from trainers.runtime.errors import DatasetInvalid
from trainers.runtime.events import EventWriter
from trainers.runtime.program import run_program
from trainers.training.rollouts import load_prompts

logger = logging.getLogger("trainers")


def run(config: PreflightConfig, run_dir: Path, report: EventWriter) -> dict[str, Any]:
    """All findings, the marked rows, the memory estimate and the probe's figures."""
    target = config.target
    tokenizer = load_tokenizer(target.base)
    try:
        rows = _rows(target, tokenizer)
    except DatasetInvalid as error:
        return _unusable(target, error)
    found = [*check_stage(target, tokenizer, rows, exact_only=False)]
    report.progress(1, 3)
    found += check_near_duplicates(dataset_path(target.dataset))
    if isinstance(target, GrpoConfig) and isinstance(rows, list):
        found += check_rewards(target, rows)
    report.progress(2, 3)
    seen = _shown(rows, tokenizer, config.shown_rows)
    _tell(found, seen)
    fit = estimate_memory(target, config.hosts, _longest(target, rows, tokenizer))
    passed = not any(told.level is FindingLevel.error for told in found)
    probed = run_probe(config, run_dir, fit) if config.probe_steps and passed else None
    report.progress(3, 3)
    return {
        "stage": "preflight",
        "target": target.stage,
        "passed": passed,
        "findings": findings_to_json(found),
        "rows": seen,
        "fit": fit,
        "probe": probed,
    }


def plan(config: PreflightConfig) -> dict[str, Any]:
    """How many rows would be judged."""
    rows = _rows(config.target, load_tokenizer(config.target.base))
    count = len(rows) if isinstance(rows, Sequence) else len(_examples(rows))
    return {"stage": "preflight", "target": config.target.stage, "examples": count}


def _unusable(target: SftConfig | DpoConfig | GrpoConfig, error: DatasetInvalid) -> dict[str, Any]:
    """The result where the stage could not even read or render its rows."""
    found = [
        new_finding(FindingCode.dataset_unusable, FindingLevel.error, error.message, error.hint or ""),
        *check_file(dataset_path(target.dataset)),
    ]
    _tell(found, [])
    return {
        "stage": "preflight",
        "target": target.stage,
        "passed": False,
        "findings": findings_to_json(found),
        "rows": [],
        "fit": None,
        "probe": None,
    }


def _rows(target: SftConfig | DpoConfig | GrpoConfig, tokenizer: PreTrainedTokenizerBase) -> RenderedRows:
    match target:
        case SftConfig():
            return render_examples(target.dataset, tokenizer, target.max_length)
        case DpoConfig():
            return render_preferences(target.dataset, tokenizer, target.max_length)
        case GrpoConfig():
            # Without rewards: references that cannot be judged by are a finding here.
            return load_prompts(str(dataset_path(target.dataset)), [], tokenizer)


def _examples(rows: RenderedRows) -> list[Any]:
    if isinstance(rows, ExampleSet):
        return rows.rendered
    return [example for pair in rows.pairs for example in pair] if isinstance(rows, PreferenceSet) else []


def _longest(target: Any, rows: RenderedRows, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of the longest sequence that a forward pass will see."""
    if isinstance(rows, ExampleSet | PreferenceSet):
        longest = max((len(example.input_ids) for example in _examples(rows)), default=1)
        return target.max_length if getattr(target, "packing", False) else longest
    prompts: Sequence[PromptCompletion] = rows
    return max(len(tokenize_prompt(pair, tokenizer)) for pair in prompts) + int(target.max_completion_length)


def _shown(rows: RenderedRows, tokenizer: PreTrainedTokenizerBase, count: int) -> list[dict[str, Any]]:
    """The first rows in tokens, for a page; prompts of GRPO carry no loss before they are answered."""
    if isinstance(rows, PreferenceSet):
        return [
            preview_example(example, 1, tokenizer) | {"answer": answer}
            for pair in rows.pairs[:count]
            for answer, example in zip(("chosen", "rejected"), pair, strict=True)
        ]
    if not isinstance(rows, ExampleSet):
        return [preview_example(render_prompt(pair, tokenizer), 1, tokenizer) for pair in rows[:count]]
    turns = groupby(rows.rendered, key=lambda example: example.row)
    return [
        preview_example(example, turn, tokenizer)
        for _, examples in islice(turns, count)
        for turn, example in enumerate(examples, start=1)
    ]


def _tell(found: Sequence[Finding], seen: Sequence[dict[str, Any]]) -> None:
    """The findings and the marked rows, for a person at the terminal or in the log."""
    colour = sys.stdout.isatty()
    for row in seen:
        sys.stdout.write(f"row {row['row']}: {highlight_loss(row, colour)}\n")
    sys.stdout.flush()
    for told in found:
        share = f" ({told.share:.1%})" if told.share is not None else ""
        logger.info("%s %s%s: %s %s", told.level, told.code, share, told.message, told.hint)
        for place in told.examples:
            logger.info("    row %s: %s", place.line, place.text)
    if not found:
        logger.info("Nothing was found.")


if __name__ == "__main__":
    run_program(PreflightConfig, run, plan)
