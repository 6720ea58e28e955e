"""Compare a running engine with the model as it was trained.

    python -m serving.parity --engine hf --address http://127.0.0.1:8001 --name ko-en \
        --base PATH_OR_ID --adapter PATH --report parity.json

The same chats go through transformers (with PEFT and the template of training) and through the engine:
rendered token ids must be equal, log-probabilities within the tolerance of the precision, greedy answers
equal or parted at a tie. Exit status: 0 if they agree, 1 if they differ, 2 if it could not be told.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from serving.engines import ENGINES, Engine, EngineRequestFailed, find_engine
from serving.parity.compare import TOLERANCES, Difference, ParityReport, compare
from serving.parity.prompts import comparison_chats
from serving.parity.reference import ReferenceModel
from trainers.configs.base import AdaptedModel
from trainers.runtime import run_dir as files
from trainers.runtime.errors import ProgramError

AGREES, DIFFERS, UNKNOWN = 0, 1, 2
ANSWER_TOKENS = 24
DATASET_ROWS = 4

logger = logging.getLogger("tunesmith.parity")


def main(arguments: list[str]) -> int:
    """Write the report, print it, and answer the exit status."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        report = run_comparison(options)
    except (EngineRequestFailed, ProgramError) as fault:
        logger.error("It cannot be told whether the served model is the trained one: %s", fault)
        return UNKNOWN
    if options.report is not None:
        files.write_json(options.report, report)
    sys.stdout.write(json.dumps(report, ensure_ascii=False) + "\n")
    return AGREES if report["passed"] else DIFFERS


def run_comparison(options: argparse.Namespace) -> dict[str, Any]:
    """The report of a comparison; raises EngineRefused or ProgramError where none can be made."""
    engine = find_engine(options.engine)
    precision = options.precision or default_precision(engine, options.base)
    reference = AdaptedModel(base=options.base, adapter=options.adapter) if options.adapter else options.base
    trained = ReferenceModel(reference)
    about = {"engine": options.engine, "precision": precision, "checked_at": files.utc_now()}
    if options.template_sha256 not in (None, trained.template_sha256):
        return about | ParityReport(difference=_other_template(options.template_sha256, trained)).json
    asked = comparison_chats(options.dataset, DATASET_ROWS)
    expected = [one for chat in asked if (one := trained.expect(chat, ANSWER_TOKENS)) is not None]
    logger.info("%d chats are compared at the tolerance of %s.", len(expected), precision)
    tolerance = TOLERANCES[precision]
    return about | compare(trained, expected, engine, options.address, options.name, tolerance).json


def default_precision(engine: Engine, base: str) -> str:
    """The number format in which an engine serves a model unless told otherwise: mostly that of its files."""
    dtype = str(AutoConfig.from_pretrained(base).dtype).removeprefix("torch.")
    stored = dtype if dtype in TOLERANCES else "float32"
    # Some GPUs get float16 instead, which is the finer of the two.
    return "bfloat16" if stored == "float32" and engine.auto_halves else stored


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        prog="python -m serving.parity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--engine", choices=list(ENGINES), required=True)
    options.add_argument("--address", required=True, help="root of the engine, without /v1")
    options.add_argument("--name", required=True, help="the model's name at the engine")
    options.add_argument(
        "--base", required=True, help="folder or hub id of the trained model's whole weights"
    )
    options.add_argument("--adapter", help="folder of the trained adapter")
    options.add_argument("--precision", choices=list(TOLERANCES), help="default: the engine's own choice")
    options.add_argument("--template-sha256", help="hash of the template that training has recorded")
    options.add_argument("--dataset", type=Path, help="JSONL whose first prompts are asked too")
    options.add_argument("--report", type=Path, help="file that receives the report as JSON")
    return options


def _other_template(recorded: str, trained: ReferenceModel) -> Difference:
    return Difference(
        "rendering",
        f"The chat template beside the weights has the hash {trained.template_sha256}, but the model was "
        f"trained with {recorded}: the files have been changed since.",
        0,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
