"""What the form of a new job begins with: a job, an example, a model, or a goal for a dataset."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlmodel import Session

from app.datasets import service as datasets
from app.http.paging import PageQuery
from app.jobs import service
from app.jobs.examples import ARITHMETIC_JOB, JOB_EXAMPLES
from app.jobs.preflight import NAME_PREFIX
from app.models import service as models
from app.models.lineage import UNKNOWN_DATASET, make_evaluation_spec, make_next_spec
from app.models.starter import STARTER
from app.runs.names import make_full_name
from app.storage.database import read_session
from app.storage.manifest import ArtifactCorrupt
from app.tables import Dataset
from app.web.url_state import encode_query
from app.web.views.new_job.draft import Spec
from trainers.data.formats import RowFormat

MAX_SUGGESTIONS = 50
# Rows that are held out. A tenth of few rows decides nothing.
HELD_OUT_SHARE, HELD_OUT_SHARE_OF_FEW, FEW_ROWS = 0.1, 0.25, 200
# Settings with which the example model learns from a few hundred rows in less than a minute.
STARTER_TRAINING = {
    name: ARITHMETIC_JOB["stages"][0][name] for name in ("max_steps", "batch_size", "learning_rate")
}
# It has room for 256 tokens.
STARTER_COMPLETION = 64
# References with a final number, such as `#### 7`, are compared by it; others by their characters.
FINAL_NUMBER = re.compile(r"####\s*-?[0-9]")
TEXT_METRICS = ["chrf", "exact_match"]
SAMPLED_ROWS = 20
# The names of the parts that a `prepare` stage has made for a preflight.
PREFLIGHT_DATASETS = make_full_name(NAME_PREFIX, "")


class JobGoal(StrEnum):
    """What a job should do with a dataset."""

    train = "train"
    compare = "compare"
    serve = "serve"


@dataclass(frozen=True)
class Goals:
    """The goal that a form began with, and its dataset: links choose another one."""

    chosen: JobGoal
    dataset: str | None

    def links(self) -> list[tuple[JobGoal, str]]:
        """Return each goal with its page."""
        query = {"dataset": self.dataset or ""}
        return [(goal, f"/jobs/new?{encode_query({**query, 'goal': goal.value})}") for goal in JobGoal]


def start_from_model(base: str | None, model: str | None, dataset_id: str | None) -> Spec:
    """Return the spec of a job that trains a base further, or evaluates a model of the registry.

    A base of the registry is trained as it was trained itself, by default on the same dataset.
    """
    with read_session() as session:
        chosen = datasets.get_dataset(session, dataset_id) if dataset_id is not None else None
        if base is None:
            assert model is not None, "one of both is given"
            row = models.get_model(session, model)
            tested = chosen or _find_dataset(session, None)
            return make_evaluation_spec(row, name_dataset(session, tested) if tested else None)
        stage: Spec = {"stage": "sft", "base": base, "dataset": UNKNOWN_DATASET}
        spec: Spec = {"name": "my-job", "stages": [stage]}
        if base.startswith("model_"):
            spec = make_next_spec(session, models.get_model(session, base))
            (stage,) = spec["stages"]
        dataset = chosen or (_find_dataset(session, None) if stage["dataset"] == UNKNOWN_DATASET else None)
        if dataset is not None:
            stage["dataset"] = name_dataset(session, dataset)
        elif stage["dataset"] == UNKNOWN_DATASET:
            del stage["dataset"]
        return spec


def start_spec(source: str | None, example: str | None, dataset_id: str | None, goal: JobGoal) -> Spec:
    """Return the spec that the form begins with; raises the errors of unknown jobs and datasets."""
    with read_session() as session:
        if source is not None:
            return dict(service.get_job(session, source).spec)
        if example in JOB_EXAMPLES:
            return dict(JOB_EXAMPLES[example]["value"])
        dataset = _find_dataset(session, dataset_id)
        reference = name_dataset(session, dataset) if dataset else None
    # No session is open while rows are read.
    return plan_goal(goal, dataset, reference)


def _find_dataset(session: Session, dataset_id: str | None) -> Dataset | None:
    """Return the dataset with this id, or else the newest that a person would train on."""
    if dataset_id is not None:
        return datasets.get_dataset(session, dataset_id)
    newest, _ = datasets.list_datasets(session, PageQuery(limit=20), None, None)
    return next((each for each in newest if _is_suggested(each)), None)


def _is_suggested(dataset: Dataset) -> bool:
    return dataset.trainable and not dataset.name.startswith(PREFLIGHT_DATASETS)


def plan_goal(goal: JobGoal, dataset: Dataset | None, reference: str | None) -> Spec:
    """Return a job that trains on a dataset, evaluates the model on held-out rows, and serves it.

    Rows without a prompt or a completion cannot be held out for an evaluation.
    """
    row_format = dataset.format if dataset else None
    kind = "dpo" if row_format is RowFormat.preference else "sft"
    train: Spec = {"stage": kind, "base": STARTER}
    if reference is not None:
        train["dataset"] = reference
    if goal is JobGoal.train or dataset is None:
        return {"name": "my-job", "stages": [train]}
    train |= STARTER_TRAINING
    stages = [train]
    if row_format not in (RowFormat.prompt, RowFormat.text, RowFormat.preference):
        share = HELD_OUT_SHARE_OF_FEW if dataset.row_count < FEW_ROWS else HELD_OUT_SHARE
        train["dataset"] = {"stage": "prepare", "part": "train"}
        stages = [
            {"stage": "prepare", "dataset": reference, "split": {"test": share}},
            train,
            {
                "stage": "evaluate",
                "model": {"stage": kind},
                "baseline": STARTER,
                "dataset": {"stage": "prepare", "part": "test"},
                "metrics": choose_metrics(dataset.id),
                "max_new_tokens": STARTER_COMPLETION,
            },
        ]
    if goal is JobGoal.serve:
        deploy = {"stage": "deploy", "model": {"stage": kind}, "deployment": name_deployment(dataset.name)}
        stages.append(deploy)
    return {"name": dataset.name, "stages": stages}


def choose_metrics(dataset_id: str) -> list[str]:
    """Return metrics that fit the completions of the first rows; those of text if they cannot be read."""
    try:
        rows, _ = datasets.list_rows(dataset_id, 0, SAMPLED_ROWS)
    except ArtifactCorrupt:
        return TEXT_METRICS
    completions = [str(row.messages[-1].get("content")) for row in rows if row.messages]
    if completions and all(FINAL_NUMBER.search(text) for text in completions):
        return ["maths_exact_match"]
    return TEXT_METRICS


def name_deployment(name: str) -> str:
    """Return a name of a dataset as one that a deployment may have."""
    return re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")[:60] or "my-model"


def name_dataset(session: Session, dataset: Dataset) -> str:
    """Return the name of a dataset if jobs find it by that, and its id if a newer one has the same name."""
    newest, _ = datasets.list_datasets(session, PageQuery(limit=1), dataset.name, None)
    return dataset.name if newest and newest[0].id == dataset.id else dataset.id


def suggest_datasets(session: Session) -> Sequence[str]:
    """Return the names of the newest datasets that jobs can use."""
    newest, _ = datasets.list_datasets(session, PageQuery(limit=MAX_SUGGESTIONS), None, None)
    return list(dict.fromkeys(each.name for each in newest if _is_suggested(each)))
