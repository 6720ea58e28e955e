"""The training of the starter model on this machine, which takes minutes on a busy one.

Jobs and deployments cannot name the model until it is published, so errors and pages show how far it is. The
program writes a file, and the process that has started the program renews the time of the file: a file that a
killed process has left behind is not read.
"""

import math
import time
from pathlib import Path

from pydantic import BaseModel, ValidationError

from app.settings import Settings, get_settings

# The example model of `python -m app --with-examples`, which the documentation's examples name.
STARTER = "starter"
MAX_AGE_SECONDS = 15.0


class StarterProgress(BaseModel):
    """How far the training is; its program is still starting if there are no steps."""

    step: int = 0
    total_steps: int = 0
    remaining_seconds: float | None = None

    @property
    def share(self) -> float:
        """The part of the steps that is done, from 0 to 1."""
        return self.step / self.total_steps if self.total_steps else 0.0

    def __str__(self) -> str:
        """Return the progress for a message, such as "step 340 of 800 (42 %), about 45 s left"."""
        if not self.total_steps:
            return "its program is starting"
        done = f"step {self.step:,} of {self.total_steps:,} ({math.floor(100 * self.share)} %)"
        if self.remaining_seconds is None:
            return done
        seconds = math.ceil(self.remaining_seconds)
        left = f"{seconds} s" if seconds < 120 else f"{math.ceil(seconds / 60)} min"
        return f"{done}, about {left} left"


def find_progress_file(settings: Settings) -> Path:
    """Return where the progress is written while the model is trained."""
    return settings.data_dir / "examples" / "starter-progress.json"


def read_starter_progress() -> StarterProgress | None:
    """Return how far the training on this machine is, or None if the model is not being trained."""
    path = find_progress_file(get_settings())
    try:
        if time.time() - path.stat().st_mtime > MAX_AGE_SECONDS:
            return None
        return StarterProgress.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
