"""A stage of a job that is being posted, with its references resolved."""

import math
from dataclasses import dataclass

from app.jobs.graph.needs import ResolvedNeeds, StageNeed
from app.tables import Dataset
from trainers.configs import Queue, StageKind, TrainingConfig
from trainers.configs.stage_config import AnyStage
from trainers.data.mixture import count_shares


@dataclass(frozen=True)
class ResolvedStage:
    """A stage in which only the outputs of earlier stages are still unknown."""

    name: str
    kind: StageKind
    queue: Queue
    queue_reason: str
    config: AnyStage
    datasets: dict[str, Dataset]
    """The existing datasets that it reads, by the path of the field that names them."""
    resolved_needs: ResolvedNeeds
    warnings: tuple[str, ...] = ()

    @property
    def needs(self) -> tuple[StageNeed, ...]:
        """The earlier stages that it needs directly."""
        return self.resolved_needs.direct

    @property
    def mixture(self) -> list[tuple[Dataset, int]]:
        """The datasets of a mixture with their rows in an epoch; empty if one does not exist yet."""
        shares = getattr(self.config, "dataset", None)
        if not isinstance(shares, list):
            return []
        found = [self.datasets.get(f"dataset.{position}.dataset") for position in range(len(shares))]
        existing = [dataset for dataset in found if dataset is not None]
        if len(existing) < len(shares):
            return []
        counts = count_shares(shares, [dataset.row_count for dataset in existing])
        return list(zip(existing, counts, strict=True))

    @property
    def training_rows(self) -> int | None:
        """Rows of an epoch; None if an earlier stage produces some of them."""
        if (dataset := self.datasets.get("dataset")) is not None:
            return dataset.row_count
        return sum(rows for _, rows in self.mixture) or None

    @property
    def estimated_steps(self) -> int | None:
        """Optimizer steps of a training stage; None if an earlier stage produces its dataset."""
        if not isinstance(self.config, TrainingConfig):
            return None
        if self.config.max_steps or self.training_rows is None:
            return self.config.max_steps
        return math.ceil(self.training_rows * self.config.epochs / self.config.rows_per_step)
