"""The programs and models of metrics on this host."""

from pathlib import Path
from typing import TypeVar

from app.settings import Settings
from trainers.configs.base import StageConfig
from trainers.configs.metrics import MetricConfig
from trainers.configs.metrics.translation import Comet
from workers.inputs.errors import InputModelNotFound
from workers.inputs.models import check_folder, check_links

C = TypeVar("C", bound=StageConfig)


def place_metric_programs(config: C, settings: Settings) -> C:
    """Return the config with the environments of this host in its metrics, and their models checked.

    Raises InputModelNotFound for a model that is absent or not under an allowed root.
    """
    # The stage `compare` has names of metrics, or none.
    metrics: list[MetricConfig] = getattr(config, "metrics", None) or []
    if not any(isinstance(metric, Comet) for metric in metrics):
        return config
    placed = [_place_comet(one, settings) if isinstance(one, Comet) else one for one in metrics]
    changed: C = config.model_copy(update={"metrics": placed})
    return changed


def _place_comet(metric: Comet, settings: Settings) -> Comet:
    folder = check_folder(Path(metric.checkpoint), settings)
    check_links(folder, f"the COMET model {folder}", settings.model_roots, InputModelNotFound)
    update = {"checkpoint": str(folder), "environment": settings.comet_environment or None}
    return metric.model_copy(update=update)
