"""Goal: a worker gives a training program the later stages of the job that it can check already."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.storage.database import transaction
from app.tables import Run, RunNeed
from tests.integration.workers.conftest import row
from trainers.configs import Queue, StageKind
from trainers.runtime import run_dir as files
from workers.hosts.devices import NO_DEVICES
from workers.hosts.worker import WorkerContext
from workers.runs.launch import prepare_launch

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
Submit = Callable[..., str]


def add_stages(first: Run, stages: list[dict[str, Any]]) -> None:
    needed_id = first.id
    with transaction() as session:
        for position, config in enumerate(stages, start=1):
            fields: dict[str, Any] = {"stage": StageKind(config["stage"]), "queue": Queue.cpu}
            name = config.get("name", config["stage"])
            run = Run(job_id=first.job_id, position=position, name=name, config=config, **fields)
            session.add(run)
            session.flush()
            session.add(RunNeed(run_id=run.id, needed_id=needed_id))
            needed_id = run.id


def test_a_program_receives_what_starts_from_its_own_model(worker: WorkerContext, submit: Submit) -> None:
    run = row(submit("succeed()"))
    dataset, base = run.config["dataset"], run.config["base"]
    add_stages(
        run,
        [
            {"stage": "prepare", "dataset": dataset, "filters": [{"kind": "duplicates"}]},
            {"stage": "dpo", "base": {"stage": "run"}, "dataset": {"stage": "prepare"}},
            {"stage": "evaluate", "model": {"stage": "dpo"}, "baseline": base, "dataset": dataset},
            {"stage": "merge", "model": "model_other"},
            {"stage": "deploy", "model": {"stage": "run"}, "deployment": "name"},
        ],
    )
    launch = prepare_launch(run, worker.settings, NO_DEVICES)
    later = json.loads((launch.run_dir / files.LATER_STAGES).read_text())
    evaluate, deploy = later["stages"]
    assert (evaluate["stage"], deploy["stage"]) == ("evaluate", "deploy")
    assert launch.base is not None
    assert evaluate["model"] == evaluate["baseline"] == deploy["model"] == launch.base.reference
    assert evaluate["dataset"] == launch.config.dataset  # type: ignore[attr-defined]


def test_a_program_without_later_stages_receives_none(worker: WorkerContext, submit: Submit) -> None:
    launch = prepare_launch(row(submit("succeed()")), worker.settings, NO_DEVICES)
    assert not (launch.run_dir / files.LATER_STAGES).exists()


def test_a_program_receives_an_import_that_needs_no_download(worker: WorkerContext, submit: Submit) -> None:
    run = row(submit("succeed()"))
    folder = shutil.copytree(
        worker.settings.model_roots[0] / "base", worker.settings.model_roots[0] / "whole"
    )
    named = {"local": str(folder), "hub": "org/elsewhere"}
    imports = [{"stage": "import", "name": name, "model": model} for name, model in named.items()]
    add_stages(run, imports)
    launch = prepare_launch(run, worker.settings, NO_DEVICES)
    [found] = json.loads((launch.run_dir / files.LATER_STAGES).read_text())["stages"]
    assert found["stage"] == "import" and Path(found["model"]).is_absolute()
