"""What the garbage collector keeps, and for how long."""

from enum import StrEnum

from pydantic import (
    Field,
)
from pydantic_settings import BaseSettings


class SucceededCheckpoints(StrEnum):
    """What stays of the checkpoints of a succeeded run."""

    all = "all"
    weights = "weights"
    none = "none"


class RetentionSettings(BaseSettings):
    """What the garbage collector keeps, and for how long."""

    gc_seconds: float = Field(
        3600,
        ge=0,
        description="Seconds between two collections, which apply the retention settings and delete files "
        "that no row names; 0 means that only `python -m app gc` collects.",
    )
    gc_store: bool = Field(
        True,
        description="Whether this process also collects what the database and the artifact store no longer "
        "need, not only this host's copies. A host that joins gets false: its role may delete no records.",
    )
    gc_grace_seconds: float = Field(
        86_400,
        ge=600,
        description="Age in seconds from which a file that no row has ever named is deleted: it may be part "
        "of a publication in progress.",
    )
    succeeded_checkpoints: SucceededCheckpoints = Field(
        SucceededCheckpoints.weights,
        description="What stays of the checkpoints of a succeeded run: `all`; `weights`, without optimizer "
        "and random state; or `none`.",
    )
    checkpoint_weights_days: float = Field(
        0,
        ge=0,
        description="Days after which the weights of a succeeded run's checkpoints are deleted; 0 means "
        "never. The model that the run produced stays.",
    )
    failed_checkpoint_days: float = Field(
        30,
        ge=0,
        description="Days until the checkpoints of a failed or cancelled run are deleted; 0 means never.",
    )
    event_detail_days: float = Field(
        7,
        ge=0,
        description="Days from the end of a run until its log, sample and progress events are deleted and "
        "its metrics are reduced; 0 means never. The files `log.txt` and `events.jsonl` stay.",
    )
    max_metric_points: int = Field(
        1000, ge=10, description="Values of each metric that stay then, with first, last and extremes."
    )
    max_run_files_bytes: int = Field(
        20 * 2**30,
        ge=0,
        description="Maximum size of the files of finished runs; the oldest are deleted. 0 means unlimited.",
    )
    max_cache_bytes: int = Field(
        100 * 2**30,
        ge=0,
        description="Maximum size of a host's copies of remote artifacts; those unused for longest are "
        "deleted. 0 means unlimited.",
    )
    max_row_cache_bytes: int = Field(
        50 * 2**30,
        ge=0,
        description="Maximum size of a host's cache of datasets that training stages have rendered and "
        "tokenized; of those that no run uses, the ones unused for longest are deleted. 0 means unlimited.",
    )
    record_days: float = Field(
        90,
        ge=0,
        description="Days after which the records of absent workers, ended deployments and deliveries of "
        "webhooks, revoked keys and credentials and deleted datasets and models are removed; 0 means never.",
    )
