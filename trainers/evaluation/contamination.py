"""Rows of the test set on which a model, or an ancestor of it, was trained: their scores measure memory."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, Field

from trainers.configs.stages.evaluate import ModelOrigin
from trainers.data.filters.overlap import Overlap, find_overlap

MAX_LISTED = 20
MAX_SHOWN_LINES = 5
# Near matches take a hundred times as long as exact ones.
MAX_NEAR_BYTES = 8 << 20
NEAR_SIMILARITY = 0.9


class Contamination(BaseModel):
    """The comparison of the test set with one training set."""

    models: list[str] = Field(description="Names of the models that were trained on it.")
    training_data: str = Field(description="Name of the training set.")
    test_rows: int = Field(description="Rows of the test set.")
    exact_rows: int = Field(description="Test rows whose prompt is in the training set.")
    near_rows: int = Field(description="Test rows whose prompt is in it with small changes.")
    near_compared: bool = Field(
        description="Whether near matches were searched, which large files are spared."
    )
    first: list[Overlap] = Field(description="The first matches, with their lines in both files.")
    error: str | None = Field(None, description="Why the files could not be compared.")


def find_contamination(test: Path, origins: Mapping[str, ModelOrigin]) -> list[Contamination]:
    """Compare the prompts of the test set with each training set in the lineage of the models.

    Texts are equal as in the filter `held_out` of `prepare`: as people read them.
    """
    files: dict[tuple[str, str], list[str]] = {}
    for role, origin in origins.items():
        for name, path in origin.training_data.items():
            files.setdefault((name, path), []).append(role)
    missing: dict[str, list[str]] = {}
    for role, origin in origins.items():
        for name in origin.missing_data:
            missing.setdefault(name, []).append(role)
    return [
        *(_compare(test, Path(path), name, roles) for (name, path), roles in files.items()),
        *(_not_compared(name, roles, "it was deleted.") for name, roles in missing.items()),
    ]


def describe_contamination(sets: Iterable[Contamination]) -> list[str]:
    """Return a warning for each training set that has rows of the test set, or could not be compared."""
    warnings = []
    for one in sets:
        models = " and ".join(repr(role) for role in one.models)
        if one.error is not None:
            warnings.append(f"The training set {one.training_data} of {models} was not compared: {one.error}")
        elif found := one.exact_rows + one.near_rows:
            lines = ", ".join(f"{match.test_line}" for match in one.first[:MAX_SHOWN_LINES])
            near = f" ({one.near_rows} of them with small changes)" if one.near_rows else ""
            warnings.append(
                f"{found} of {one.test_rows} test rows{near} are in {one.training_data}, on which {models} "
                f"was trained, the first in lines {lines}: their scores measure memory. Drop them from the "
                "training data with the filter `held_out` of `prepare`, or evaluate on other rows."
            )
    return warnings


def _compare(test: Path, training: Path, name: str, roles: list[str]) -> Contamination:
    exact_only = max(test.stat().st_size, training.stat().st_size) > MAX_NEAR_BYTES
    try:
        report = find_overlap(
            training,
            test,
            threshold=NEAR_SIMILARITY,
            same_numbers=True,
            exact_only=exact_only,
            limit=MAX_LISTED,
        )
    except (ValueError, OSError) as error:
        return _not_compared(name, roles, str(error))
    return Contamination(
        models=roles,
        training_data=name,
        test_rows=report.test_rows,
        exact_rows=report.exact_test_rows,
        near_rows=report.near_test_rows,
        near_compared=not exact_only,
        first=report.first,
    )


def _not_compared(name: str, roles: list[str], reason: str) -> Contamination:
    return Contamination(
        models=roles,
        training_data=name,
        test_rows=0,
        exact_rows=0,
        near_rows=0,
        near_compared=False,
        first=[],
        error=reason,
    )
