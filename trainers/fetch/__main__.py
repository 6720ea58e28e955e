"""Download the files of a fine-tuned model at OpenAI, and hold out the rows to compare models by.

The key is read from OPENAI_API_KEY. `datasets/` in the run directory gets the files as they are at OpenAI,
the rows to train on, and the rows to record.

    OPENAI_API_KEY=… python -m trainers.fetch --config fetch.yaml --run-dir runs/fetched
"""

import hashlib
import logging
import shutil
from pathlib import Path
from typing import Any

from trainers.configs.base import DatasetPart
from trainers.configs.stages.migration.fetch import FetchConfig
from trainers.data.validate import validate_file
from trainers.fetch.recorded_rows import estimate_tokens, write_recorded_rows
from trainers.fetch.training_rows import split_training_rows
from trainers.openai_account.client import AccountClient, AccountObjectMissing
from trainers.openai_account.fine_tuned_models import (
    METHODS,
    REINFORCEMENT,
    FineTunedModel,
    list_fine_tuned_models,
)
from trainers.openai_account.pace import Pace
from trainers.rendering.render import dataset_path
from trainers.runtime.errors import ConfigInvalid, DatasetInvalid
from trainers.runtime.events import EventWriter
from trainers.runtime.program import run_program

FOLDER = "datasets"
TRAINING, VALIDATION = "training_file", "validation_file"

logger = logging.getLogger("trainers")


class MethodUnknown(ConfigInvalid):
    """The model was trained by a method that is not offered here, or that lacks a part."""


class TrainingFileDeleted(AccountObjectMissing):
    """The training file is not at OpenAI any more, and no local rows replace it."""


def run(config: FetchConfig, run_dir: Path, events: EventWriter) -> dict[str, Any]:
    """Fetch the files, split the rows, and return what was found with an estimate of the tokens."""
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    with AccountClient.from_environment(Pace(config.requests_per_minute)) as client:
        source = _find_model(client, config.fine_tuned_model)
        _check_method(source)
        files = {
            TRAINING: _fetch(client, source.training_file, config.dataset, folder / f"{TRAINING}.jsonl"),
            VALIDATION: _fetch(
                client, source.validation_file, config.validation_dataset, folder / f"{VALIDATION}.jsonl"
            ),
        }
    events.write_progress(1, 2)
    if files[TRAINING]["path"] is None:
        raise TrainingFileDeleted(
            f"The training file {source.training_file} of {config.fine_tuned_model} is deleted at OpenAI.",
            "Upload your own copy as a dataset, and create the rescue again with `training_file`: "
            "`python -m app rescue … --training-file FILE`.",
        )
    for name, file in files.items():
        if file["path"] is None and file["id"] is not None:
            events.write_warning(
                "file_deleted", f"The {name} {file['id']} is deleted at OpenAI: {file['missing']}"
            )
    training = folder / f"{TRAINING}.jsonl"
    split = split_training_rows(training, folder, config.held_out_rows, config.seed)
    prompts = None if config.prompts is None else dataset_path(config.prompts)
    counts = write_recorded_rows(
        split, prompts, folder / f"{DatasetPart.train}.jsonl", folder / f"{DatasetPart.test}.jsonl"
    )
    if counts.repeated:
        events.write_warning(
            "prompts_repeated",
            f"{counts.repeated} of the rows to record repeat the prompt of another, which is recorded once.",
        )
    if counts.trained:
        events.write_warning(
            "prompts_trained",
            f"{counts.trained} of the further prompts are among the rows to train on: they count in the "
            f"agreement alone.",
        )
    events.write_progress(2, 2)
    return {
        "stage": "fetch",
        "source": source.model_dump(mode="json"),
        "files": files,
        "rows": {"training": split.n_training, "held_out": counts.held_out, "prompts": counts.prompts},
        "references": counts.describe(),
        "tokens": estimate_tokens(source, training, folder / f"{DatasetPart.test}.jsonl"),
        "datasets": [
            {"part": name, "path": f"{FOLDER}/{name}.jsonl"}
            for name in (TRAINING, VALIDATION, DatasetPart.train, DatasetPart.test)
            if (folder / f"{name}.jsonl").exists()
        ],
    }


def plan(config: FetchConfig) -> dict[str, Any]:
    """Return what would be fetched, without a request."""
    return {
        "stage": "fetch",
        "fine_tuned_model": config.fine_tuned_model,
        "held_out_rows": config.held_out_rows,
        "requests_per_minute": config.requests_per_minute,
    }


def _find_model(client: AccountClient, name: str) -> FineTunedModel:
    """Return the model with its job; raises AccountObjectMissing."""
    for model in list_fine_tuned_models(client):
        if model.fine_tuned_model == name:
            return model
    raise AccountObjectMissing(
        f"No succeeded fine-tuning job of the organization has the model {name!r}.",
        "`python -m app rescue --list` lists the models that the key may see. For a checkpoint, name the "
        "model of its job.",
    )


def _check_method(source: FineTunedModel) -> None:
    """Raise MethodUnknown for a method that no stage here trains by."""
    if source.method_type not in METHODS:
        raise MethodUnknown(
            f"{source.fine_tuned_model} was trained by {source.method_type[:100]!r}; known are: "
            f"{', '.join(METHODS)}.",
            "Download its file, and train by a method that suits it: POST /api/v1/jobs.",
        )
    if source.method_type == REINFORCEMENT and not isinstance(source.method_config.get("grader"), dict):
        raise MethodUnknown(
            f"The job {source.id} of {source.fine_tuned_model} names no grader.",
            "Download its file, and train with a grader of your own: POST /v1/fine_tuning/jobs.",
        )


def _fetch(client: AccountClient, file_id: str | None, local: Any, target: Path) -> dict[str, Any]:
    """Write a file's rows to `target`, from OpenAI or from a dataset; return where they come from."""
    found: dict[str, Any] = {"id": file_id, "path": None}
    if local is not None:
        shutil.copyfile(dataset_path(local), target)
        found["replaced"] = True
    elif file_id is None:
        return found
    else:
        try:
            found["filename"] = client.get(f"/files/{file_id}").get("filename")
            client.download(f"/files/{file_id}/content", target)
        except AccountObjectMissing as error:
            target.unlink(missing_ok=True)
            return found | {"missing": error.message}
    report = validate_file(target, max_faults=1)
    if report.fault_count:
        raise DatasetInvalid(
            f"The file {file_id} has {report.fault_count} faults. {report.faults[0].message}",
            "Correct a copy of it, upload that as a dataset, and create the rescue again with it.",
        )
    content = target.read_bytes()
    return found | {
        "path": f"{FOLDER}/{target.name}",
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "rows": report.row_count,
        "format": report.format,
    }


if __name__ == "__main__":
    run_program(FetchConfig, run, plan)
