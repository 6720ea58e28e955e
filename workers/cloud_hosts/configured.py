"""The clouds whose variables this worker has."""

import logging
from collections.abc import Mapping

from app.settings import Settings
from trainers.configs.clouds import CloudName

# What no other use of the variables needs: AWS's keys may be those of a bucket.
DECISIVE: dict[CloudName, tuple[str, ...]] = {
    CloudName.aws: ("AWS_ACCESS_KEY_ID", "AWS_EC2_SUBNET_ID"),
    CloudName.lambda_cloud: ("LAMBDA_API_KEY",),
}

logger = logging.getLogger(__name__)


def find_clouds(settings: Settings, environment: Mapping[str, str]) -> list[CloudName]:
    """Return the clouds in which this worker can launch hosts: the variables that decide it are set.

    There are none without PostgreSQL and Redis: a launched host can reach neither SQLite nor a folder.
    """
    found = [
        cloud for cloud, names in DECISIVE.items() if all(environment.get(name, "").strip() for name in names)
    ]
    is_embedded = settings.database_url.get_secret_value().startswith(
        "sqlite"
    ) or settings.broker_url.get_secret_value().startswith("filesystem")
    if found and is_embedded:
        logger.warning(
            "This worker has the keys of %s, but launches no hosts: they need PostgreSQL and Redis. Set "
            "TUNESMITH_DATABASE_URL and TUNESMITH_BROKER_URL.",
            " and ".join(found),
        )
        return []
    return found
