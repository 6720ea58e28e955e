"""Checks of the rows that a job's stages read, as far as the API knows them, when the job is posted."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import NamedTemporaryFile

from pydantic import TypeAdapter
from sqlalchemy import or_, select
from sqlmodel import col

from app.http.errors import Conflict, UnprocessableContent, field_error
from app.storage.database import read_session
from app.storage.manifest import ArtifactCorrupt
from app.storage.opening import get_store
from app.tables import Dataset
from trainers.configs import EvaluateConfig, PreflightConfig, Rows, StageKind
from trainers.configs.metrics import MetricConfig, Metrics
from trainers.configs.references import DatasetField
from trainers.configs.stage_config import AnyStage
from trainers.data.formats import RowFormat
from trainers.evaluation.scored_rows import read_scored_rows
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import DatasetInvalid

# A fraction of a second; what a metric cannot score is seldom a single row of a large file.
MAX_ROWS = 1000
# A larger file takes seconds to verify or to download, so only its start is read.
MAX_BYTES = 64 << 20
MAX_START_BYTES = 8 << 20

_METRICS: TypeAdapter[list[MetricConfig]] = TypeAdapter(Metrics)


class DatasetNotReady(Conflict):
    """The dataset exists, but its file has faults."""

    code = ErrorCode.dataset_not_ready


def check_scored_rows(stages: Iterable[AnyStage]) -> None:
    """Raise UnprocessableContent for a stored dataset whose first rows its stage cannot score.

    The stage itself checks every row in its first second, and a training stage of the job before it trains.
    Of a file above 64 MiB, the first 8 MiB are read. This reads files: call it before the first statement of
    a transaction.
    """
    for position, stage in enumerate(stages):
        if isinstance(stage, EvaluateConfig) and isinstance(stage.dataset, str):
            dataset = _find_dataset(stage.dataset)
            if dataset is not None and dataset.trainable:
                _check(dataset, stage, f"stages.{position}.dataset")


def _find_dataset(reference: str) -> Dataset | None:
    """Return the dataset with this id, or the newest with this name."""
    stored = select(Dataset).where(col(Dataset.deleted_at).is_(None), col(Dataset.format).is_not(None))
    matches = or_(col(Dataset.id) == reference, col(Dataset.name) == reference)
    with read_session() as session:
        return session.scalars(stored.where(matches).order_by(col(Dataset.id).desc()).limit(1)).first()


def _check(dataset: Dataset, stage: EvaluateConfig, field: str) -> None:
    wanted = min(dataset.row_count, stage.max_rows or dataset.row_count)
    rows = min(wanted, MAX_ROWS)
    is_large = dataset.size_bytes > MAX_BYTES
    # A row that is not read may be one with the field of a slice.
    slice_fields = () if is_large or rows < wanted else stage.slice_fields
    try:
        found = _find_error(
            dataset.artifact,
            dataset.sha256,
            _dump(stage.metrics),
            stage.response_fields,
            stage.clusters,
            slice_fields,
            rows,
            starts_only=is_large,
        )
    except (OSError, ArtifactCorrupt):
        # Without the store a job can be posted, and its worker reports what the store lacks.
        return
    if found is not None:
        read = f" (the first {MAX_START_BYTES >> 20} of {dataset.size_bytes >> 20} MiB were read)"
        message = f"Dataset {dataset.id} cannot be scored{read if is_large else ''}. {found.message}"
        raise UnprocessableContent(
            f"{field}: {message}", hint=found.hint, fields=[{"field": field, "message": message}]
        )


@lru_cache(maxsize=256)
def _find_error(
    artifact: str,
    sha256: str,
    metrics: bytes,
    response_fields: tuple[str, ...],
    clusters: str | None,
    slice_fields: tuple[str, ...],
    max_rows: int,
    *,
    starts_only: bool,
) -> DatasetInvalid | None:
    """Return the error of the first row that a metric cannot score; a stored file never changes."""
    configs = _METRICS.validate_json(metrics)
    with ExitStack() as files:
        path = (
            files.enter_context(_start_of(artifact))
            if starts_only
            else get_store().fetch_file(artifact, sha256)
        )
        try:
            if path is not None:
                read_scored_rows(
                    path, configs, max_rows, "the dataset", response_fields, clusters, slice_fields
                )
        except DatasetInvalid as error:
            return error
    return None


@contextmanager
def _start_of(artifact: str) -> Iterator[Path | None]:
    """Yield a file with the first whole lines of a stored one; None if the first line is too long."""
    with get_store().open(artifact) as source, NamedTemporaryFile(suffix=".jsonl") as start:
        lines = source.read(MAX_START_BYTES)
        start.write(lines[: lines.rfind(b"\n") + 1])
        start.flush()
        yield Path(start.name) if b"\n" in lines else None


def _dump(metrics: list[MetricConfig]) -> bytes:
    # The key of a cache must be hashable, which a config with a list is not.
    return _METRICS.dump_json(metrics)


def reading_stage(reference: DatasetField, stage: AnyStage) -> StageKind | None:
    """Return the kind of stage that reads the dataset's rows; None if it accepts any format."""
    if reference.name not in ("dataset", "validation_dataset"):
        return None
    kind = StageKind(stage.target.stage if isinstance(stage, PreflightConfig) else stage.stage)
    return None if kind.stage.reads is Rows.any else kind


def require_format(dataset: Dataset, stage: StageKind, path: str) -> None:
    """Refuse rows that a stage cannot read, before hardware is used."""
    if dataset.format is RowFormat.text and not stage.stage.reads_documents:
        raise field_error(
            path,
            f"Dataset {dataset.id} contains rows of `text` without a prompt, on which only `sft` can train: "
            f"{stage} needs rows with a prompt.",
        )
    if dataset.format is RowFormat.prompt and not stage.stage.reads_prompts:
        raise field_error(
            path,
            f"Dataset {dataset.id} contains prompts without a completion, which `grpo` reads: {stage} needs "
            "rows whose last message is the assistant's.",
        )
    reads = stage.stage.reads
    if dataset.format is None or (dataset.format.has_pairs and reads is Rows.labels):
        return
    if reads is Rows.labels:
        _require_labels(dataset, stage, path)
        return
    if reads is Rows.completions and (n_bad := (_count_labels(dataset) or {}).get("false")):
        raise field_error(
            path,
            f"{n_bad} of {dataset.row_count} rows of {dataset.id} have `label: false`, which only kto reads: "
            "use that stage, or remove these rows.",
        )
    if dataset.format.has_pairs == (reads is Rows.pairs):
        return
    if dataset.format.has_pairs:
        raise field_error(
            path,
            f"Dataset {dataset.id} contains preference pairs, but {stage} needs rows with one completion: "
            "keep only `prompt` and `chosen`, under the names `prompt` and `completion`.",
        )
    raise field_error(
        path,
        f"Dataset {dataset.id} contains rows of the format {dataset.format}, but {stage} needs preference "
        "pairs: rows with `prompt`, `chosen` and `rejected`.",
    )


def _require_labels(dataset: Dataset, stage: StageKind, path: str) -> None:
    """Refuse rows without a label, and labels of one kind, from which KTO learns nothing."""
    labels = _count_labels(dataset)
    if labels is None:
        return  # The stage itself checks them.
    expected = "each row needs a `label` that is true or false, or is a pair of `chosen` and `rejected`"
    if (labelled := sum(labels.values())) < dataset.row_count:
        raise field_error(
            path,
            f"{dataset.row_count - labelled} of {dataset.row_count} rows of {dataset.id} have no label, "
            f"but for {stage} {expected}.",
        )
    if len(labels) == 1:
        [found] = labels
        raise field_error(
            path,
            f"All {labelled} rows of dataset {dataset.id} have the label {found}, but {stage} learns from "
            "the difference between good and bad completions: add rows with the other label.",
        )


def _count_labels(dataset: Dataset) -> dict[str, int] | None:
    """Return the number of rows by label; None for a dataset that was validated before they were counted."""
    counts: dict[str, int] | None = dataset.report.get("statistics", {}).get("labels")
    return counts


def require_ready(dataset: Dataset, path: str) -> None:
    """Raise DatasetNotReady for a dataset whose file has faults or no rows."""
    if dataset.trainable:
        return
    faults = dataset.report.get("faults") or [{"message": "The file has no rows."}]
    line, message = faults[0].get("line"), faults[0]["message"]
    first = f"Line {line}: {message}" if line else message
    count = "1 fault" if dataset.fault_count == 1 else f"{dataset.fault_count} faults"
    raise DatasetNotReady(
        f"Dataset {dataset.id} has {count}, so no stage can read it. The first: {first}",
        hint=f"Correct the file and upload it again. The report is at GET /api/v1/datasets/{dataset.id}.",
        fields=[{"field": path, "message": first}],
    )
