"""Check of the rows that a job's evaluations score, as far as the API reads them, when the job is posted.

The stage itself checks every row in its first second, and a training stage of the job before it trains.
"""

from collections.abc import Iterable
from functools import lru_cache

from sqlalchemy import or_, select
from sqlmodel import col

from app.http.errors import UnprocessableContent
from app.storage.artifacts import get_store
from app.storage.database import read_session
from app.storage.manifest import ArtifactCorrupt
from app.tables import Dataset
from trainers.configs import EvaluateConfig
from trainers.configs.stage_config import AnyStage
from trainers.configs.stages.evaluate import Metric
from trainers.evaluation.scored_rows import read_scored_rows
from trainers.runtime.errors import DatasetInvalid

# A fraction of a second; what the metric cannot score is seldom a single row of a large file.
MAX_ROWS = 1000
# A larger file takes seconds to verify or to download.
MAX_BYTES = 64 << 20


def check_scored_rows(stages: Iterable[AnyStage]) -> None:
    """Raise UnprocessableContent for a stored dataset whose first rows the metric of its stage cannot score.

    It reads files: call it before the first statement of a transaction.
    """
    for position, stage in enumerate(stages):
        if isinstance(stage, EvaluateConfig) and isinstance(stage.dataset, str):
            dataset = _find_dataset(stage.dataset)
            if dataset is not None and dataset.trainable and dataset.size_bytes <= MAX_BYTES:
                _check(dataset, stage, f"stages.{position}.dataset")


def _find_dataset(reference: str) -> Dataset | None:
    """Return the dataset with this id, or the newest with this name."""
    stored = select(Dataset).where(col(Dataset.deleted_at).is_(None), col(Dataset.format).is_not(None))
    matches = or_(col(Dataset.id) == reference, col(Dataset.name) == reference)
    with read_session() as session:
        return session.scalars(stored.where(matches).order_by(col(Dataset.id).desc()).limit(1)).first()


def _check(dataset: Dataset, stage: EvaluateConfig, field: str) -> None:
    rows = min(stage.max_rows or MAX_ROWS, MAX_ROWS)
    try:
        found = _find_error(dataset.artifact, dataset.sha256, stage.metric, rows)
    except (OSError, ArtifactCorrupt):
        # Without the store a job can be posted, and its worker reports what the store lacks.
        return
    if found is not None:
        message = f"Dataset {dataset.id} cannot be scored. {found.message}"
        raise UnprocessableContent(
            f"{field}: {message}", hint=found.hint, fields=[{"field": field, "message": message}]
        )


@lru_cache(maxsize=256)
def _find_error(artifact: str, sha256: str, metric: Metric, max_rows: int) -> DatasetInvalid | None:
    """Return the error of the first row that cannot be scored; a stored file never changes."""
    try:
        read_scored_rows(get_store().fetch_file(artifact, sha256), metric, max_rows, name="the dataset")
    except DatasetInvalid as error:
        return error
    return None
