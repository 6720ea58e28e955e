"""The report of a collection: what it removed and what the store contains."""

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.storage.inventory import ArtifactKind, StoredArtifact

COLLECTION_EXAMPLES: dict[str, Any] = {
    "preview": {"summary": "Show what would be removed", "value": {"dry_run": True}},
    "collect": {"summary": "Remove it", "value": {"dry_run": False}},
}


class RemovalReason(StrEnum):
    """Why something is removed."""

    checkpoint_state = "checkpoint_state"
    checkpoint_expired = "checkpoint_expired"
    events_thinned = "events_thinned"
    run_files_limit = "run_files_limit"
    record_expired = "record_expired"
    deleted = "deleted"
    unnamed = "unnamed"
    partial = "partial"


class Removal(BaseModel):
    """One thing that a collection removes."""

    reason: RemovalReason = Field(description="Why it is removed.")
    name: str = Field(description="Key in the artifact store, or id of the record.")
    size_bytes: int = Field(0, description="Size of its files; 0 for rows.")


class RemovalCount(BaseModel):
    """What a collection removed for one reason."""

    reason: RemovalReason = Field(description="Why it was removed.")
    count: int = Field(description="Number of objects.")
    size_bytes: int = Field(description="Size of their files.")


class StoredKind(BaseModel):
    """The artifacts of one kind in the store."""

    kind: ArtifactKind = Field(
        description="`datasets`, `models`, `checkpoints`, `evaluations` (with comparisons), `files` (of the "
        "OpenAI API) or `runs` (logs and other files of runs); `partial` for publications in progress or "
        "interrupted; `other` for files that the service did not write."
    )
    count: int = Field(description="Number of artifacts.")
    size_bytes: int = Field(description="Size of all their files.")


class CollectionReport(BaseModel):
    """The result of a collection."""

    started_at: datetime = Field(description="When it started.")
    seconds: float = Field(description="How long it took.")
    removed: list[RemovalCount] = Field(description="What it removed, by reason.")
    reclaimable_bytes: int = Field(
        description="Size of the files that no row names, but that are too young to be deleted."
    )
    stored: list[StoredKind] = Field(description="What the store contained afterwards, by kind.")


class CollectionCreate(BaseModel):
    """A collection of garbage."""

    model_config = ConfigDict(extra="forbid")

    dry_run: bool = Field(
        True, description="Whether it only shows what it would remove, and changes nothing."
    )


class RequestedCollectionView(BaseModel):
    """A collection that somebody has requested."""

    dry_run: bool = Field(description="Whether it only shows what it would remove.")
    started_at: datetime = Field(description="When it was requested.")
    ended_at: datetime | None = Field(
        None, description="When it ended. Null while it runs, or if its process ended before."
    )
    report: CollectionReport | None = Field(
        None, description="Its result; of a dry run what it would remove."
    )
    removals: list[Removal] = Field([], description="What it removes, at most the first 100.")
    error: str | None = Field(None, description="Why it did not complete.")


class RemovalCounts:
    """The number and size of removals by reason."""

    def __init__(self) -> None:
        self._counts: dict[RemovalReason, RemovalCount] = {}

    def add(self, removal: Removal) -> None:
        """Count a removal."""
        empty = RemovalCount(reason=removal.reason, count=0, size_bytes=0)
        count = self._counts.setdefault(removal.reason, empty)
        count.count += 1
        count.size_bytes += removal.size_bytes

    def list_counts(self) -> list[RemovalCount]:
        """Return the counts in the order of the reasons."""
        return [self._counts[reason] for reason in RemovalReason if reason in self._counts]


def count_stored(artifacts: Iterable[StoredArtifact]) -> list[StoredKind]:
    """Return the number and size of artifacts by kind."""
    kinds = {kind: StoredKind(kind=kind, count=0, size_bytes=0) for kind in ArtifactKind}
    for artifact in artifacts:
        kinds[artifact.kind].count += 1
        kinds[artifact.kind].size_bytes += artifact.size_bytes
    return list(kinds.values())
