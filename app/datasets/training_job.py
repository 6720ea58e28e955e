"""The job that a dataset is for: it is trained on, the model is evaluated on held-out rows, and served."""

import re
from enum import StrEnum
from typing import Any

from app.datasets import service
from app.jobs.examples import ARITHMETIC_JOB
from app.models.starter import STARTER
from app.storage.manifest import ArtifactCorrupt
from app.tables import Dataset
from trainers.configs.base import UNPRINTABLE
from trainers.data.formats import RowFormat

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


class JobGoal(StrEnum):
    """What a job should do with a dataset."""

    train = "train"
    compare = "compare"
    serve = "serve"


def plan_goal(goal: JobGoal, dataset: Dataset | None, reference: str | None) -> dict[str, Any]:
    """Return a job that trains on a dataset, evaluates the model on held-out rows, and serves it.

    Rows without a prompt or a completion cannot be held out for an evaluation.
    """
    row_format = dataset.format if dataset else None
    kind = "dpo" if row_format is RowFormat.preference else "sft"
    train: dict[str, Any] = {"stage": kind, "base": STARTER}
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
                "metrics": _choose_metrics(dataset.id),
                "max_new_tokens": STARTER_COMPLETION,
            },
        ]
    if goal is JobGoal.serve:
        deploy = {"stage": "deploy", "model": {"stage": kind}, "deployment": _name_deployment(dataset.name)}
        stages.append(deploy)
    return {"name": UNPRINTABLE.sub("", dataset.name) or "my-job", "stages": stages}


def _choose_metrics(dataset_id: str) -> list[str]:
    """Return metrics that fit the completions of the first rows; those of text if they cannot be read."""
    try:
        rows, _ = service.list_rows(dataset_id, 0, SAMPLED_ROWS)
    except ArtifactCorrupt:
        return TEXT_METRICS
    completions = [str(row.messages[-1].get("content")) for row in rows if row.messages]
    if completions and all(FINAL_NUMBER.search(text) for text in completions):
        return ["maths_exact_match"]
    return TEXT_METRICS


def _name_deployment(name: str) -> str:
    """Return a name of a dataset as one that a deployment may have."""
    return re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")[:60] or "my-model"
