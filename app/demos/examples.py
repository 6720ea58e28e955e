"""The example model and datasets: a tiny starter model and generated word problems.

The examples of the API's documentation name them, so that they work without changes.
"""

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from app.datasets import service as datasets
from app.deployments import service as deployments
from app.deployments.schemas import DeploymentCreate
from app.http.paging import PageQuery
from app.models.starter import STARTER, StarterProgress, find_progress_file
from app.settings import Settings
from app.storage.database import read_session, transaction
from trainers.data.recipes import arithmetic

logger = logging.getLogger(__name__)

TRAIN, TEST = "arithmetic-train", "arithmetic-test"
TRAIN_ROWS, TEST_ROWS = 1000, 240
POLL_SECONDS = 0.2


def create_examples(settings: Settings, stopping: threading.Event) -> None:
    """Create the starter model, its datasets and its deployment, unless they exist."""
    ensure_starter_model(settings, stopping)
    if stopping.is_set():
        return
    for name, path in write_datasets(settings.data_dir / "examples").items():
        datasets.create_dataset(path, name=name)
    with read_session() as session:
        newest, _ = deployments.list_deployments(session, PageQuery(limit=1), None, STARTER)
    if not newest or newest[0].status.finished:
        with transaction() as session:
            deployments.create_deployment(session, DeploymentCreate(name=STARTER, model=STARTER), "")


def ensure_starter_model(settings: Settings, stopping: threading.Event | None = None) -> Path:
    """Return the folder of the starter model, which is trained first if it does not exist.

    The training takes a minute on an idle machine; it is abandoned when `stopping` is set.
    """
    folder = settings.model_roots[0] / STARTER
    if not folder.exists():
        logger.info("training the starter model, which takes about a minute")
        folder.parent.mkdir(parents=True, exist_ok=True)
        progress = find_progress_file(settings)
        command = [settings.trainer_python or sys.executable, "-m", "trainers.starter", "--out", str(folder)]
        _run([*command, "--progress", str(progress)], progress, stopping or threading.Event())
    return folder


def _run(command: Sequence[str], progress: Path, stopping: threading.Event) -> None:
    progress.parent.mkdir(parents=True, exist_ok=True)
    progress.write_text(StarterProgress().model_dump_json(), encoding="utf-8")
    try:
        with subprocess.Popen(command) as program:
            while program.poll() is None:
                # The file of a process that was killed grows old.
                progress.touch()
                if stopping.wait(POLL_SECONDS):
                    program.terminate()
                    return
    finally:
        progress.unlink(missing_ok=True)
    if program.returncode:
        raise subprocess.CalledProcessError(program.returncode, command)


def write_datasets(folder: Path) -> dict[str, Path]:
    """Write word problems for training, and held-out ones with other number combinations."""
    rows = {
        TRAIN: arithmetic.generate_problems(TRAIN_ROWS, arithmetic.ProblemSplit.train, seed=0),
        TEST: arithmetic.generate_problems(TEST_ROWS, arithmetic.ProblemSplit.held_out, seed=0),
    }
    return {name: write_rows(folder, name, problems) for name, problems in rows.items()}


def write_rows(folder: Path, name: str, rows: Sequence[Mapping[str, str]]) -> Path:
    """Write rows to a JSONL file that can be uploaded."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def get_held_out_question() -> str:
    """Return a problem that is not a training row."""
    return arithmetic.generate_problems(1, arithmetic.ProblemSplit.held_out, seed=1)[0]["question"]
