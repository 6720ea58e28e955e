"""The tokens that keys have used, by day and by the gateway process that has counted them."""

from datetime import date

from sqlalchemy import BigInteger, UniqueConstraint
from sqlmodel import Field, SQLModel

from app.tables.base import new_id


class TokenUse(SQLModel, table=True):
    """The tokens of a key on one day in UTC that one gateway process has counted since it started."""

    __tablename__ = "token_use"
    __table_args__ = (UniqueConstraint("key_id", "day", "reporter"),)

    id: str = Field(default_factory=lambda: new_id("tokens"), primary_key=True)
    key_id: str
    day: date
    reporter: str
    tokens: int = Field(sa_type=BigInteger)
