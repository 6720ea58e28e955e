"""The checkpoint from which all processes of a run resume."""

from pathlib import Path

from torch import distributed

from trainers.runtime import run_dir as files
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ProgramError
from trainers.runtime.ranks import is_first_of_host
from trainers.training.callback import waiting_group


class CheckpointsDiffer(ProgramError):
    code = ErrorCode.artifact_corrupt


def find_checkpoint(run_dir: Path) -> Path | None:
    """Return the newest complete checkpoint, or None; only the first process of each host reads its files.

    Raises:
        CheckpointsDiffer: The hosts have different ones.
    """
    # The others wait while the first ones hash files, which of large weights may take many minutes.
    group = waiting_group() if distributed.is_initialized() else None
    found = files.last_complete_checkpoint(run_dir) if is_first_of_host() else None
    if group is None:
        return found
    name = None if found is None else found.relative_to(run_dir).as_posix()
    answers: list[tuple[bool, str | None]] = [(False, None)] * distributed.get_world_size()
    distributed.all_gather_object(answers, (is_first_of_host(), name), group=group)
    names = sorted({name or "none" for is_first, name in answers if is_first})
    if len(names) > 1:
        raise CheckpointsDiffer(
            f"The hosts of the run have different last checkpoints: {', '.join(names)}.",
            "Retry the run: its hosts then fetch the checkpoint again.",
        )
    agreed = answers[0][1]
    return None if agreed is None else run_dir / agreed
