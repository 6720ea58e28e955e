"""Models: weights that can be served, with their lineage."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger
from sqlmodel import Field, SQLModel

from app.tables.base import enum_type, new_id, time_field


class ModelKind(StrEnum):
    """Full weights, or an adapter that needs its base."""

    base = "base"
    adapter = "adapter"


class Model(SQLModel, table=True):
    """The output of a training or merge run."""

    __tablename__ = "model"

    id: str = Field(default_factory=lambda: new_id("model"), primary_key=True)
    name: str = Field(index=True)
    kind: ModelKind = Field(sa_type=enum_type(ModelKind))
    base: str = Field(description="Hub id or folder that training started from.")
    parent_id: str | None = Field(
        default=None,
        foreign_key="model.id",
        index=True,
        description="Registry model that training started from.",
    )
    dataset_id: str | None = Field(default=None, foreign_key="dataset.id", index=True)
    run_id: str | None = Field(default=None, index=True)
    artifact: str
    sha256: str
    size_bytes: int = Field(sa_type=BigInteger)
    template_sha256: str | None = None
    created_at: datetime = time_field(default_now=True)
    deleted_at: datetime | None = time_field(
        description="Set when its files were deleted; the row remains as the origin of other models."
    )
