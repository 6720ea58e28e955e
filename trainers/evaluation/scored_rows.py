"""The rows of an evaluation: a metric judges each completion against the row's reference."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainers.configs.stages.evaluate import EvaluateConfig, JudgedMetric
from trainers.metrics.maths import exact_match, final_answer
from trainers.rendering.render import PromptCompletion, dataset_path, read_prompt_completions
from trainers.runtime.errors import DatasetInvalid


@dataclass(frozen=True)
class Judge:
    """The functions of a metric whose value of a row is right or wrong."""

    is_correct: Callable[[str, str], bool]
    """Whether a completion agrees with the reference."""
    is_usable: Callable[[str], bool]
    """Whether a reference can be compared with."""
    requirement: str
    """What a usable reference contains, for the error of one that is not."""
    example: str
    """The text that makes a reference usable, for the hint of that error."""


JUDGES = {
    # To add a metric, add a line.
    JudgedMetric.maths_exact_match: Judge(
        exact_match,
        lambda reference: final_answer(reference) is not None,
        "final answer",
        "the answer, such as `#### 7`,",
    ),
}


def load_scored_rows(config: EvaluateConfig) -> list[PromptCompletion]:
    """Return the last turn of each row.

    Raises DatasetFileNotFound, or DatasetInvalid for a reference that the metric cannot use.
    """
    return read_scored_rows(dataset_path(config.dataset), config.metric, config.max_rows)


def read_scored_rows(
    path: Path, metric: JudgedMetric, max_rows: int | None, name: str | None = None
) -> list[PromptCompletion]:
    """Return the last turn of the first rows of a file, called `name`; raises as `load_scored_rows`."""
    pairs = [turns[-1] for turns in read_prompt_completions(str(path), max_rows)]
    if not pairs:
        raise DatasetInvalid(f"The dataset {path} has no rows to score.", "Add rows.")
    judge = JUDGES[metric]
    for pair in pairs:
        if not judge.is_usable(pair.completion_text):
            raise DatasetInvalid(
                f"Row {pair.row} of {name or path} has no {judge.requirement} in its reference, which the "
                f"metric {metric} needs.",
                f"Write {judge.example} at the end of each reference, or leave the evaluation out. "
                f"The metrics are {', '.join(JudgedMetric)}.",
            )
    return pairs
