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
from trainers.preflight.check import Rows, quick_findings
from trainers.preflight.duplicates import near_duplicate_findings
from trainers.preflight.findings import Finding, FindingCode, Level, as_json, finding
from trainers.preflight.memory_estimate import estimate_fit
from trainers.preflight.probe import probe
from trainers.preflight.reward_findings import reward_findings
from trainers.preflight.row_findings import file_findings
from trainers.rendering.preference_examples import Preferences, render_preferences
from trainers.rendering.preview import marked, shown
from trainers.rendering.render import Pair, dataset_path, prompt_tokens, render_prompt
from trainers.rendering.sft_examples import Examples, render_examples
from trainers.runtime.errors import DatasetInvalid
from trainers.runtime.events import Report
from trainers.runtime.program import run_program
from trainers.training.rollouts import load_prompts

logger = logging.getLogger("trainers")


def preflight(config: PreflightConfig, run_dir: Path, report: Report) -> dict[str, Any]:
    """All findings, the marked rows, the memory estimate and the probe's figures."""
    target = config.target
    tokenizer = load_tokenizer(target.base)
    try:
        rows = _rows(target, tokenizer)
    except DatasetInvalid as error:
        return _unusable(target, error)
    found = [*quick_findings(target, tokenizer, rows, exact_only=False)]
    report.progress(1, 3)
    found += near_duplicate_findings(dataset_path(target.dataset))
    if isinstance(target, GrpoConfig) and isinstance(rows, list):
        found += reward_findings(target, rows)
    report.progress(2, 3)
    seen = _shown(rows, tokenizer, config.shown_rows)
    _tell(found, seen)
    fit = estimate_fit(target, config.hosts, _longest(target, rows, tokenizer))
    passed = not any(told.level is Level.error for told in found)
    probed = probe(config, run_dir, fit) if config.probe_steps and passed else None
    report.progress(3, 3)
    return {
        "stage": "preflight",
        "target": target.stage,
        "passed": passed,
        "findings": as_json(found),
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
        finding(FindingCode.dataset_unusable, Level.error, error.message, error.hint),
        *file_findings(dataset_path(target.dataset)),
    ]
    _tell(found, [])
    return {
        "stage": "preflight",
        "target": target.stage,
        "passed": False,
        "findings": as_json(found),
        "rows": [],
        "fit": None,
        "probe": None,
    }


def _rows(target: SftConfig | DpoConfig | GrpoConfig, tokenizer: PreTrainedTokenizerBase) -> Rows:
    match target:
        case SftConfig():
            return render_examples(target.dataset, tokenizer, target.max_length)
        case DpoConfig():
            return render_preferences(target.dataset, tokenizer, target.max_length)
        case GrpoConfig():
            # Without rewards: references that cannot be judged by are a finding here.
            return load_prompts(str(dataset_path(target.dataset)), [], tokenizer)


def _examples(rows: Rows) -> list[Any]:
    if isinstance(rows, Examples):
        return rows.every
    return [example for pair in rows.pairs for example in pair] if isinstance(rows, Preferences) else []


def _longest(target: Any, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of the longest sequence that a forward pass will see."""
    if isinstance(rows, Examples | Preferences):
        longest = max((len(example.input_ids) for example in _examples(rows)), default=1)
        return target.max_length if getattr(target, "packing", False) else longest
    prompts: Sequence[Pair] = rows
    return max(len(prompt_tokens(pair, tokenizer)) for pair in prompts) + int(target.max_completion_length)


def _shown(rows: Rows, tokenizer: PreTrainedTokenizerBase, count: int) -> list[dict[str, Any]]:
    """The first rows in tokens, for a page; prompts of GRPO carry no loss before they are answered."""
    if isinstance(rows, Preferences):
        return [
            shown(example, 1, tokenizer) | {"answer": answer}
            for pair in rows.pairs[:count]
            for answer, example in zip(("chosen", "rejected"), pair, strict=True)
        ]
    if not isinstance(rows, Examples):
        return [shown(render_prompt(pair, tokenizer), 1, tokenizer) for pair in rows[:count]]
    turns = groupby(rows.every, key=lambda example: example.row)
    return [
        shown(example, turn, tokenizer)
        for _, examples in islice(turns, count)
        for turn, example in enumerate(examples, start=1)
    ]


def _tell(found: Sequence[Finding], seen: Sequence[dict[str, Any]]) -> None:
    """The findings and the marked rows, for a person at the terminal or in the log."""
    colour = sys.stdout.isatty()
    for row in seen:
        sys.stdout.write(f"row {row['row']}: {marked(row, colour)}\n")
    sys.stdout.flush()
    for told in found:
        share = f" ({told.share:.1%})" if told.share is not None else ""
        logger.info("%s %s%s: %s %s", told.level, told.code, share, told.message, told.hint)
        for place in told.examples:
            logger.info("    row %s: %s", place.line, place.text)
    if not found:
        logger.info("Nothing was found.")


if __name__ == "__main__":
    run_program(PreflightConfig, preflight, plan)
