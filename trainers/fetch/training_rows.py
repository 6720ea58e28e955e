"""The rows to train on, and those that are held out of training."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainers.configs.base import DatasetPart
from trainers.data.files.jsonl import iter_rows
from trainers.data.fingerprint import prompt_text, text_digest
from trainers.data.formats import Row, detect_format
from trainers.data.splits import SplitReport, split_file
from trainers.runtime.errors import DatasetInvalid

# Few rows are worth more in training than in a comparison.
MAX_HELD_OUT_SHARE = 5
MIN_ROWS = 10
MAX_SPLITS = 10
HELD_OUT = "held_out"


@dataclass(frozen=True)
class TrainingSplit:
    """The number of rows to train on, and the file of those that are held out."""

    n_training: int
    held_out: Path
    prompt_of: Callable[[Row], str]
    """What rows in different parts differ in."""


def split_training_rows(path: Path, folder: Path, held_out_rows: int, seed: int) -> TrainingSplit:
    """Write `train.jsonl` and `held_out.jsonl`; the same file and seed give the same parts.

    Rows with equal prompts are in one part. Raises DatasetInvalid for a file of few rows.
    """
    n_rows = sum(1 for _ in iter_rows(path))
    n_held_out = min(held_out_rows, n_rows // MAX_HELD_OUT_SHARE)
    if n_rows < MIN_ROWS:
        raise DatasetInvalid(
            f"The training file has {n_rows} rows; at least {MIN_ROWS} are needed to train and to compare.",
            "Add rows to a copy of the file, and create the rescue again with it.",
        )
    report, prompt_of = _split(path, folder, n_held_out, seed)
    held_out = (folder / f"{DatasetPart.test}.jsonl").rename(folder / f"{HELD_OUT}.jsonl")
    return TrainingSplit(report.rows[DatasetPart.train], held_out, prompt_of)


def _split(path: Path, folder: Path, n_held_out: int, seed: int) -> tuple[SplitReport, Callable[[Row], str]]:
    """Split by the first hash that takes about as many rows as asked from training.

    A prompt that many rows have would otherwise take all of them, by chance. If all users write the same,
    such as "Go.", rows differ in what the system says. Raises DatasetInvalid for rows with one prompt.
    """
    fault = "too many rows have the same prompt"
    for group_of in (_read_prompt, _read_whole_prompt):
        for attempt in range(MAX_SPLITS):
            try:
                report = split_file(path, folder, test=n_held_out, seed=seed + attempt, group_of=group_of)
            except ValueError as error:
                fault = str(error)
                continue
            if report.rows[DatasetPart.test] <= 2 * n_held_out:
                return report, group_of
    raise DatasetInvalid(f"The training file cannot be split: {fault}", "Add rows with other prompts.")


def _read_prompt(row: Row, *, with_system: bool = False) -> str:
    row_format = detect_format(row)
    assert row_format is not None, "the file is valid"
    return text_digest(prompt_text(row, row_format, with_system=with_system)).hex()


def _read_whole_prompt(row: Row) -> str:
    return _read_prompt(row, with_system=True)
