r"""Compare a running engine with the model as it was trained.

    python -m serving.parity --engine hf --address http://127.0.0.1:8001 --name ko-en \
        --base PATH_OR_ID --adapter PATH --report parity.json

The same chats are processed by transformers (with PEFT and the training's template) and by the engine:
rendered token ids must be equal, log-probabilities within the tolerance of the precision, and greedy
completions equal or diverging at a tie. With `--task embed`, embeddings of the same texts must agree.

Exit status: 0 if they agree, 1 if they differ, 2 if they could not be compared.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from serving.engines import Engine, EngineKind, EngineRequestFailed, find_engine
from serving.engines.cli_options import PoolingOption, Task
from serving.engines.decoding.base import ModelNotLoadable
from serving.parity.compare import TOLERANCES, Difference, ParityReport, compare
from serving.parity.embeddings import compare_embeddings
from serving.parity.prompts import comparison_chats
from serving.parity.quantization import compare_training
from serving.parity.reference import ReferenceModel
from trainers.configs.base import AdaptedModel
from trainers.configs.engines import EngineTask, Pooling
from trainers.modeling.load import load_config
from trainers.modeling.model_source import open_adapter
from trainers.modeling.quantization.record import QUANTIZED_BASE, QuantizedBase, read_quantized_base
from trainers.runtime import run_dir as files
from trainers.runtime.command_line import make_help, make_typer
from trainers.runtime.errors import ProgramError

AGREES, DIFFERS, UNKNOWN = 0, 1, 2
MAX_NEW_TOKENS = 24
DATASET_ROWS = 4

logger = logging.getLogger("tunesmith.parity")
program = make_typer()


def check_precision(value: str | None) -> str | None:
    """Raise BadParameter for a precision without a tolerance."""
    if value is not None and value not in TOLERANCES:
        raise typer.BadParameter(f"{value!r} is unknown; choose one of: {', '.join(TOLERANCES)}.")
    return value


@program.command(help=make_help(__doc__))
def main(
    *,
    engine: Annotated[EngineKind, typer.Option(help="Kind of the engine.")],
    address: Annotated[str, typer.Option(help="Root URL of the engine, without /v1.")],
    name: Annotated[str, typer.Option(help="Name of the model in requests to the engine.")],
    base: Annotated[str, typer.Option(help="Folder or hub id of the trained model's whole weights.")],
    adapter: Annotated[str | None, typer.Option(help="Folder of the trained adapter.")] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="Precision of the engine. Default: its own choice.", callback=check_precision),
    ] = None,
    template_sha256: Annotated[
        str | None, typer.Option(help="Hash of the chat template that training recorded.")
    ] = None,
    dataset: Annotated[Path | None, typer.Option(help="JSONL file whose first prompts are compared.")] = None,
    task: Task = EngineTask.generate,
    pooling: PoolingOption = None,
    report: Annotated[Path | None, typer.Option(help="File for the report as JSON.")] = None,
) -> None:
    """Compare, write and print the report, and exit with the status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        result = (
            run_embedding_comparison(find_engine(engine), address, name, base, pooling, precision)
            if task is EngineTask.embed
            else run_comparison(
                find_engine(engine), address, name, base, adapter, precision, template_sha256, dataset
            )
        )
    except (EngineRequestFailed, ProgramError, ModelNotLoadable) as error:
        logger.error("The served model could not be compared with the trained one: %s", error)
        raise typer.Exit(UNKNOWN) from error
    if report is not None:
        files.write_json(report, result)
    sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
    raise typer.Exit(AGREES if result["passed"] else DIFFERS)


def run_comparison(
    engine: Engine,
    address: str,
    name: str,
    base: str,
    adapter: str | None = None,
    precision: str | None = None,
    template_sha256: str | None = None,
    dataset: Path | None = None,
) -> dict[str, Any]:
    """Return the report of a comparison.

    Raises:
        EngineRequestFailed: The engine did not respond.
        ProgramError: The trained model or the dataset cannot be loaded.
    """
    precision = precision or default_precision(engine, base)
    reference = ReferenceModel(AdaptedModel(base=base, adapter=adapter) if adapter else base)
    head = {"engine": engine.kind, "precision": precision, "checked_at": files.utc_now()}
    if template_sha256 not in (None, reference.template_sha256):
        difference = Difference(
            "rendering",
            f"The chat template saved with the weights has the hash {reference.template_sha256}, but "
            f"training recorded {template_sha256}: the files have changed since.",
            0,
        )
        return head | ParityReport(difference=difference).json
    chats = comparison_chats(dataset, DATASET_ROWS)
    outputs = [output for chat in chats if (output := reference.run(chat, MAX_NEW_TOKENS)) is not None]
    logger.info("Comparing %d chats with the tolerance of %s.", len(outputs), precision)
    report = compare(reference, outputs, engine, address, name, TOLERANCES[precision])
    if (quantized_base := find_quantized_base(adapter)) is not None:
        compare_training(reference, quantized_base, report)
    return head | report.json


def find_quantized_base(adapter: str | None) -> QuantizedBase | None:
    """Return the quantized base on which an adapter was trained, or None; raises ModelRefused."""
    path = None if adapter is None else Path(open_adapter(adapter)) / QUANTIZED_BASE
    return read_quantized_base(path) if path is not None and path.is_file() else None


def run_embedding_comparison(
    engine: Engine, address: str, name: str, base: str, pooling: Pooling | None, precision: str | None = None
) -> dict[str, Any]:
    """Return the report of a comparison of embeddings; raises as `run_comparison`, and ModelNotLoadable."""
    precision = precision or default_precision(engine, base)
    head = {"engine": engine.kind, "precision": precision, "checked_at": files.utc_now()}
    return head | compare_embeddings(engine, address, name, base, pooling, precision).json


def default_precision(engine: Engine, base: str) -> str:
    """Return the precision in which an engine serves a model by default, usually that of its files."""
    dtype = str(load_config(base).dtype).removeprefix("torch.")
    stored = dtype if dtype in TOLERANCES else "float32"
    # Some GPUs use float16 instead, whose tolerance is smaller.
    return "bfloat16" if stored == "float32" and engine.auto_dtype_is_16_bit else stored


if __name__ == "__main__":
    program(prog_name="python -m serving.parity")
