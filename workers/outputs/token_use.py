"""The tokens that a run's program uses of models that already generate, counted for the key of its job."""

import re
from pathlib import Path

from sqlmodel import Session

from app.keys.token_use import record_total
from app.tables import Job, Run
from trainers.runtime.run_dir import MODEL_USE
from workers.runs.run_events import FileTail

# The program is not trusted: a line with more digits than a response can have tokens is skipped.
_LINE = re.compile(r"[0-9]{1,9}")


class TokenUseFollower:
    """The position up to which the token counts of one attempt have been read, and their total.

    It must be created before the program starts: what an earlier attempt has used is recorded already.
    """

    def __init__(self, run: Run, run_dir: Path) -> None:
        self._run = run
        self._tail = FileTail(run_dir / MODEL_USE, from_end=True)
        self._total = self._saved = 0

    def poll(self) -> None:
        """Read the new counts."""
        self._total += sum(int(line) for line in self._tail.read().split("\n") if _LINE.fullmatch(line))

    @property
    def has_unsaved(self) -> bool:
        """Whether tokens were used since the last `mark_saved`."""
        return self._total > self._saved

    def save(self, session: Session) -> None:
        """Record the total; call `mark_saved` after the commit."""
        job = session.get(Job, self._run.job_id)
        if self.has_unsaved and job is not None and job.created_by:
            record_total(session, job.created_by, f"{self._run.id}-{self._run.attempt}", self._total)

    def mark_saved(self) -> None:
        """Note that the total is committed."""
        self._saved = self._total
