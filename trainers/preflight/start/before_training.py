"""The checks that every training program runs before it trains."""

import logging
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from trainers.configs.training import PreflightMode, TrainingConfig
from trainers.preflight.check import RenderedRows, check_stage
from trainers.preflight.findings import FindingLevel, findings_to_json
from trainers.preflight.start.later_stages import check_later_stages
from trainers.runtime import run_dir as files
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ProgramError
from trainers.runtime.events import EventWriter
from trainers.runtime.program import is_main_process
from trainers.training.model_proof import prove_model

PREFLIGHT = "preflight.json"

logger = logging.getLogger("trainers")


class PreflightFailed(ProgramError):
    code = ErrorCode.preflight_failed


def check_before_training(
    config: TrainingConfig,
    tokenizer: PreTrainedTokenizerBase,
    rows: RenderedRows,
    run_dir: Path,
    events: EventWriter,
) -> None:
    """Prove the model, report the findings, and check the later stages of the job.

    Findings are written to the run directory and reported as warnings. Raises PreflightFailed for one that is
    an error, the errors of `prove_model`, and LaterStageInvalid. The stage `preflight` also runs the slow
    checks: near duplicates, held-out rows that are almost in the training data, and rewards on sampled
    completions.
    """
    prove_model(config)
    if is_main_process():
        if config.preflight is not PreflightMode.off:
            _report_findings(config, tokenizer, rows, run_dir, events)
        check_later_stages(run_dir)


def _report_findings(
    config: TrainingConfig,
    tokenizer: PreTrainedTokenizerBase,
    rows: RenderedRows,
    run_dir: Path,
    events: EventWriter,
) -> None:
    found = list(check_stage(config, tokenizer, rows))
    files.write_json(run_dir / PREFLIGHT, {"findings": findings_to_json(found)})
    is_resumed = files.last_complete_checkpoint(run_dir) is not None
    for one in found if not is_resumed else ():
        if one.level is FindingLevel.info:
            logger.info("%s: %s %s", one.code, one.message, one.hint)
            continue
        events.write_warning(one.code, f"{one.message} {one.hint}")
        logger.warning("%s: %s %s", one.code, one.message, one.hint)
    errors = [one for one in found if one.level is FindingLevel.error]
    if errors and config.preflight is PreflightMode.check:
        places = "; ".join(f"row {place.line}" for place in errors[0].examples[:3] if place.line)
        raise PreflightFailed(
            f"{errors[0].code}: {errors[0].message}" + (f" The first: {places}." if places else ""),
            f"{errors[0].hint} To train anyway, set preflight to warn.",
        )
