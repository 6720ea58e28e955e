"""Progress of a stage that appends completions to a file, and checkpoints of that file."""

import shutil
import time
from pathlib import Path

from trainers.runtime import run_dir as files
from trainers.runtime.events import EventWriter

CHECKPOINT_SECONDS = 60.0


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
    """Publish the file of completions as the only checkpoint of its run directory, by its number of lines."""
    run_dir = output.parent
    folder = run_dir / files.SCRATCH
    folder.mkdir(exist_ok=True)
    shutil.copyfile(output, folder / output.name)
    files.publish_checkpoint(run_dir, _count_lines(output), folder)
    files.prune_checkpoints(run_dir, 1)


def publish_unsaved(output: Path) -> None:
    """Publish the completions that a program has left without a checkpoint; it is not trusted."""
    run_dir = output.parent
    written = (output, run_dir / files.SCRATCH, run_dir / files.CHECKPOINTS)
    if not output.is_file() or any(path.is_symlink() for path in written):
        return
    saved = max((checkpoint.step for checkpoint in files.checkpoints(run_dir)), default=0)
    if _count_lines(output) > saved:
        publish_completions(output)


def restore_completions(output: Path) -> None:
    """Copy the completions of the last checkpoint into the run directory, unless it has more already."""
    checkpoint = files.last_complete_checkpoint(output.parent)
    if checkpoint is None or not (checkpoint / output.name).exists():
        return
    if _count_lines(checkpoint / output.name) > _count_lines(output):
        shutil.copyfile(checkpoint / output.name, output)


def _count_lines(path: Path) -> int:
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
