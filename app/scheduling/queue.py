"""The Celery app and its one message, the notification that a queue has work.

A notification names no run. The worker that receives it reads from SQL which run to take, so a notification
that is lost, late or sent twice costs latency but no work.
"""

import logging
import os
import tempfile
from functools import lru_cache
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError
from kombu.transport import filesystem
from kombu.utils.encoding import str_to_bytes
from kombu.utils.json import dumps
from sqlalchemy import event
from sqlmodel import Session

from app.settings import Settings, get_settings
from trainers.configs import Queue

logger = logging.getLogger(__name__)

NOTIFY_TASK = "tunesmith.notify"
_PENDING = "pending_notifications"


class _NoPrefetch(filesystem.Channel.QoS):
    """A QoS that delivers a message only to a worker without a reserved task.

    Celery's own `worker_disable_prefetch` works on Redis only.
    """

    def can_consume(self) -> bool:
        from celery.worker import state

        return not state.reserved_requests and super().can_consume()


class _Channel(filesystem.Channel):
    QoS = _NoPrefetch

    @property
    def data_folder_in(self) -> str:
        """Return the folder of messages, created again if it was removed: a worker ends without it."""
        folder: str = self.transport_options["data_folder_in"]
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103
        return folder

    def _put(self, queue: str, payload: dict[str, Any], **kwargs: Any) -> None:
        """Write the message to a temporary file, then rename it: a reader never sees a partial message."""
        handle, temporary = tempfile.mkstemp(dir=self.data_folder_in, suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(str_to_bytes(dumps(payload)))
        name = os.path.basename(temporary).removesuffix(".part")  # noqa: PTH119
        os.replace(temporary, os.path.join(self.data_folder_in, f"{name}.{queue}.msg"))  # noqa: PTH105, PTH118


class FilesystemTransport(filesystem.Transport):
    """Celery's filesystem transport with atomic messages and without prefetching."""

    Channel = _Channel


def create_celery(settings: Settings) -> Celery:
    """Create the Celery app for these settings."""
    celery = Celery("tunesmith")
    celery.conf.update(
        broker_url=settings.broker_url.get_secret_value(),
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=False,
        task_publish_retry=False,
        task_create_missing_queues=True,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_hijack_root_logger=False,
        worker_enable_remote_control=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=2,
    )
    if settings.broker_url.get_secret_value().startswith("filesystem"):
        folder = settings.data_dir / "queue"
        (folder / "messages").mkdir(parents=True, exist_ok=True)
        celery.conf.update(
            broker_transport="app.scheduling.queue:FilesystemTransport",
            worker_disable_prefetch=False,
            broker_transport_options={
                "data_folder_in": str(folder / "messages"),
                "data_folder_out": str(folder / "messages"),
                "control_folder": str(folder / "control"),
                "polling_interval": 0.1,
            },
        )
    else:
        celery.conf.broker_transport_options = {"socket_timeout": 5, "socket_connect_timeout": 2}
    return celery


@lru_cache
def get_celery() -> Celery:
    """Return the process's Celery app."""
    return create_celery(get_settings())


def notify(queue: Queue) -> None:
    """Notify a queue once. An unreachable broker is logged only: the sweeper notifies again."""
    try:
        get_celery().send_task(NOTIFY_TASK, args=[queue.value], queue=queue.value)
    except (OperationalError, OSError) as error:
        logger.warning("cannot notify queue %s; the sweeper will notify it again: %s", queue, error)


def notify_after_commit(session: Session, queue: Queue) -> None:
    """Notify the queue once the transaction is committed: before that, a worker would find no work."""
    session.info.setdefault(_PENDING, []).append(queue)


@event.listens_for(Session, "after_commit")
def _send_pending(session: Session) -> None:
    for queue in session.info.pop(_PENDING, []):
        notify(queue)


@event.listens_for(Session, "after_rollback")
def _discard_pending(session: Session) -> None:
    session.info.pop(_PENDING, None)
