"""What the form of a new job begins with: a job, an example, a model, or a goal for a dataset."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlmodel import Session

from app.datasets import service as datasets
from app.datasets.training_job import JobGoal, plan_goal
from app.http.paging import PageQuery
from app.jobs import service
from app.jobs.examples import JOB_EXAMPLES
from app.models import service as models
from app.models.lineage import UNKNOWN_DATASET, make_evaluation_spec, make_next_spec
from app.storage.database import read_session
from app.tables import Dataset
from app.web.url_state import encode_query
from app.web.views.new_job.draft import Spec
from trainers.configs.base import UNPRINTABLE

MAX_SUGGESTIONS = 50


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
    newest, _ = datasets.list_datasets(session, PageQuery(limit=20), with_preflights=False)
    return next((each for each in newest if each.trainable), None)


def name_dataset(session: Session, dataset: Dataset) -> str:
    """Return the name of a dataset if jobs find it by that, and its id if a newer one has the same name.

    An older name may have characters that no reference may have.
    """
    if UNPRINTABLE.search(dataset.name):
        return dataset.id
    newest, _ = datasets.list_datasets(session, PageQuery(limit=1), dataset.name)
    return dataset.name if newest and newest[0].id == dataset.id else dataset.id


def suggest_datasets(session: Session) -> Sequence[str]:
    """Return the names of the newest datasets that jobs can use."""
    query = PageQuery(limit=MAX_SUGGESTIONS)
    newest, _ = datasets.list_datasets(session, query, with_preflights=False)
    return list(
        dict.fromkeys(each.name for each in newest if each.trainable and not UNPRINTABLE.search(each.name))
    )
