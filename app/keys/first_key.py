"""The first API key of a service, whose value is a setting: a container then starts without a person."""

import logging

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlmodel import col

from app.http.auth import hash_key
from app.keys.service import HINT_CHARACTERS
from app.settings import Settings
from app.storage.database import transaction
from app.tables import ApiKey, Scope

NAME = "first admin key"

logger = logging.getLogger(__name__)


def create_first_key(settings: Settings) -> None:
    """Create the key of the settings, unless any key exists: a revoked one is not created again."""
    secret = settings.first_admin_key.get_secret_value()
    if not secret:
        return
    try:
        with transaction() as session:
            if session.scalar(select(col(ApiKey.id)).limit(1)) is not None:
                return
            session.add(
                ApiKey(
                    name=NAME,
                    sha256=hash_key(secret),
                    hint=secret[:HINT_CHARACTERS],
                    scopes=[Scope.admin.value],
                )
            )
    except IntegrityError:
        return  # Another API has created it at the same time.
    logger.info("created the first API key, %s…, with the scope admin", secret[:HINT_CHARACTERS])
