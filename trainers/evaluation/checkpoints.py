"""Progress of a stage that appends completions to a file, and checkpoints of that file."""

import shutil
import time
from pathlib import Path

from trainers.runtime import run_dir as files
from trainers.runtime.events import EventWriter

CHECKPOINT_SECONDS = 60.0
# Answers of judge models, which are paid for as completions are.
JUDGEMENTS = "*.judgements.jsonl"


class CompletionProgress:
    """Writes progress, and now and then a checkpoint, from which another worker can resume."""

    def __init__(self, output: Path, events: EventWriter, total: int) -> None:
        """`output` is the file of completions in the run directory, and `total` the number that it gets."""
        self._output = output
        self._events = events
        self._total = total
        self._saved_at = time.monotonic()

    def report(self, n_completed: int) -> None:
        """Write the progress, and a checkpoint if the last one is older than `CHECKPOINT_SECONDS`."""
        self._events.write_progress(n_completed, self._total)
        if time.monotonic() - self._saved_at < CHECKPOINT_SECONDS or n_completed == self._total:
            return
        self._saved_at = time.monotonic()
        publish_completions(self._output)


def publish_completions(output: Path) -> None:
    """Publish completions and judgements, by their number of lines, as the only checkpoint."""
    run_dir = output.parent
    folder = run_dir / files.SCRATCH
    folder.mkdir(exist_ok=True)
    paths = list_responses(output)
    for path in paths:
        shutil.copyfile(path, folder / path.name)
    files.publish_checkpoint(run_dir, sum(map(_count_lines, paths)), folder)
    files.prune_checkpoints(run_dir, 1)


def publish_unsaved(output: Path) -> None:
    """Publish the completions that a program has left without a checkpoint; it is not trusted."""
    run_dir = output.parent
    written = (output, run_dir / files.SCRATCH, run_dir / files.CHECKPOINTS)
    if not output.is_file() or any(path.is_symlink() for path in written):
        return
    saved = max((checkpoint.step for checkpoint in files.checkpoints(run_dir)), default=0)
    if sum(map(_count_lines, list_responses(output))) > saved:
        publish_completions(output)


def list_responses(output: Path) -> list[Path]:
    """Return the files that must survive an attempt: `output`, and the judgements next to it."""
    paths = [output, *sorted(output.parent.glob(JUDGEMENTS))]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def restore_completions(output: Path) -> None:
    """Copy completions and judgements of the last checkpoint into the run directory, unless it has more."""
    checkpoint = files.last_complete_checkpoint(output.parent)
    if checkpoint is None:
        return
    for saved in list_responses(checkpoint / output.name):
        if _count_lines(saved) > _count_lines(output.with_name(saved.name)):
            shutil.copyfile(saved, output.with_name(saved.name))


def _count_lines(path: Path) -> int:
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
