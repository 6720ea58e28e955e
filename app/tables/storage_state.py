"""The state of the artifact store: the installation that it belongs to, and its last collection."""

from datetime import datetime
from typing import Any

from sqlmodel import Field, SQLModel

from app.tables.base import Json, new_id, time_field

STORAGE_STATE_ID = 1


class StorageState(SQLModel, table=True):
    """The only row of its table. Its lease lets one process at a time collect garbage or write a backup."""

    __tablename__ = "storage_state"

    id: int = Field(default=STORAGE_STATE_ID, primary_key=True, sa_column_kwargs={"autoincrement": False})
    installation_id: str = Field(
        default_factory=lambda: new_id("installation"),
        description="Also written into the store: nothing is deleted from the store of another installation.",
    )
    version: str | None = Field(
        default=None, description="Version of the control plane that has used this database last."
    )
    holder: str | None = None
    lease_expires_at: datetime | None = time_field()
    collected_at: datetime | None = time_field()
    report: dict[str, Any] | None = Field(
        default=None, sa_type=Json, description="Result of the last collection."
    )
    requested: dict[str, Any] | None = Field(
        default=None, sa_type=Json, description="The last collection that a person has requested."
    )
