"""Column types, constraint names and ids that all tables share."""

import secrets
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar, cast

from pydantic_core import PydanticUndefined
from sqlalchemy import JSON, Enum, MetaData, inspect
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import configure_mappers
from sqlmodel import Field, SQLModel

from app.storage.database import UTCDateTime

Row = TypeVar("Row", bound=SQLModel)

# Constraints without names cannot be altered by a later migration on SQLite.
SQLModel.metadata.naming_convention = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_N_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
).naming_convention

Json = JSON().with_variant(JSONB(), "postgresql")

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u


class _Sequence:
    """The numbers of this process's ids; within a millisecond in the order of the calls."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def next(self) -> int:
        with self._lock:
            # The highest random bit is left for the sums of one millisecond, which stay in it.
            number = time.time_ns() // 1_000_000 << 80 | secrets.randbits(79)
            # The clock may also have been set back.
            if number >> 80 <= self._last >> 80:
                number = self._last + 1 + secrets.randbits(63)
            self._last = number
            return number


_SEQUENCE = _Sequence()


def new_id(prefix: str, separator: str = "_", created_at: datetime | None = None) -> str:
    """Return an id such as `run_06e5…`: 48 bits of milliseconds and 80 random bits; ids sort by age.

    Those of one process are strictly ordered; those of several, to the millisecond. Ids of OpenAI's objects
    have its separator, such as `file-06e5…`. What was created elsewhere sorts by the time at which that
    happened.
    """
    if created_at is None:
        number = _SEQUENCE.next()
    else:
        number = int(created_at.timestamp() * 1000) << 80 | secrets.randbits(80)
    digits = "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))
    return f"{prefix}{separator}{digits}"


def new_row(table: type[Row], **values: Any) -> Row:
    """Return a row with the defaults of its table, as the constructor does, at a tenth of its cost.

    The constructor examines the signature of each default and sets each value by itself.
    """
    assert values.keys() <= table.model_fields.keys(), "a value is not a column"
    constants, factories = _defaults(table)
    row: Row = inspect(table).class_manager.new_instance()
    row.__dict__.update(constants)
    row.__dict__.update({name: factory() for name, factory in factories if name not in values})
    row.__dict__.update(values)
    return row


@cache
def _defaults(table: type[SQLModel]) -> tuple[dict[str, Any], list[tuple[str, Callable[[], Any]]]]:
    configure_mappers()
    fields = table.model_fields.items()
    factories = [(name, cast(Callable[[], Any], field.default_factory)) for name, field in fields]
    constants = {name: field.default for name, field in fields if field.default is not PydanticUndefined}
    return constants, [(name, factory) for name, factory in factories if factory is not None]


def utc_now() -> datetime:
    """Return the time of this host's clock; for leases use `database_now`."""
    return datetime.now(UTC)


def enum_type(enum: type[StrEnum]) -> Enum:
    """Return a text column type: a native PostgreSQL enum cannot gain a member inside a transaction."""
    return Enum(enum, native_enum=False, length=32, values_callable=lambda e: [member.value for member in e])


def time_field(*, default_now: bool = False, **column: Any) -> Any:
    """Return a column of aware UTC times, null unless `default_now`."""
    if default_now:
        return Field(default_factory=utc_now, sa_type=UTCDateTime, **column)
    return Field(default=None, sa_type=UTCDateTime, **column)
