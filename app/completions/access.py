"""Who may read a stored answer: the key that requested it, and admins; nobody after its expiry."""

from typing import Any

from sqlalchemy import ColumnElement
from sqlmodel import col

from app.http.auth import Caller
from app.storage.database import database_now
from app.tables import Scope, StoredCompletion, StoredResponse


def readable_by(table: type[StoredCompletion] | type[StoredResponse], caller: Caller) -> Any:
    """Return the condition of the rows that exist for a caller."""
    condition: ColumnElement[bool] = col(table.expires_at) > database_now()
    return condition if Scope.admin in caller.scopes else condition & (col(table.key_id) == caller.key_id)
