"""The engines of a batch's models, as the worker keeps them current."""

import random
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from serving.batch.files import CONTROL, Availability, Control, EngineTarget, ModelTargets
from trainers.configs.stages.serving.batch import BatchConfig

# A deployment that is replaced, or an alias that is moved, is absent for a moment.
MISSING_SECONDS = 60.0


class EngineTable:
    """The last control file, and since when each model has been missing."""

    def __init__(
        self, config: BatchConfig, run_dir: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = run_dir / CONTROL
        self._clock = clock
        self._missing_since: dict[str, float] = {}
        self._read_version: tuple[int, int] | None = None
        self.control = Control(
            known_models=list(config.engines),
            models={
                name: ModelTargets(
                    availability=Availability.ready,
                    targets=[EngineTarget(base_url=engine.url.rstrip("/"), model=engine.model)],
                )
                for name, engine in config.engines.items()
            },
        )
        self.refresh()

    def refresh(self) -> None:
        """Read the control file if it has changed."""
        try:
            status = self._path.stat()
            version = status.st_mtime_ns, status.st_ino
            if version == self._read_version:
                return
            control = Control.model_validate_json(self._path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return
        self._read_version, self.control = version, control
        missing = {
            name for name, found in control.models.items() if found.availability is Availability.missing
        }
        self._missing_since = {name: self._missing_since.get(name, self._clock()) for name in missing}

    def choose(self, model: str) -> EngineTarget | None:
        """Return an engine of the model by the shares of its targets; None while it has none."""
        found = self.control.models.get(model)
        if found is None or not found.targets:
            return None
        if len(found.targets) == 1:
            return found.targets[0]
        shares = [target.share for target in found.targets]
        return random.choices(found.targets, shares)[0]  # noqa: S311

    def is_gone(self, model: str) -> bool:
        """Return whether nothing has served the model for longer than a replacement takes."""
        since = self._missing_since.get(model)
        return since is not None and self._clock() - since > MISSING_SECONDS
