"""The Celery app and its one message: a bell that says "there is work in this queue".

A bell names no run. Which run to take is read from SQL by whoever hears it, so a bell that is lost,
late or rung twice costs latency and never work.
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

NOTIFY_TASK = "tunesmith.bell"
_BELLS = "bells"


class _OneAtATime(filesystem.Channel.QoS):
    """Hands out a message only when the worker has nothing in hand.

    Celery's own `worker_disable_prefetch` does the same for Redis alone.
    """

    def can_consume(self) -> bool:
        from celery.worker import state

        return not state.reserved_requests and super().can_consume()


class _Channel(filesystem.Channel):
    QoS = _OneAtATime

    @property
    def data_folder_in(self) -> str:
        """Where messages lie, made anew if it is gone: without it a worker would end."""
        folder: str = self.transport_options["data_folder_in"]
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103
        return folder

    def _put(self, queue: str, payload: dict[str, Any], **kwargs: Any) -> None:
        """Write the message aside, then rename it: a reader must never find half of one."""
        handle, written = tempfile.mkstemp(dir=self.data_folder_in, suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(str_to_bytes(dumps(payload)))
        name = os.path.basename(written).removesuffix(".part")  # noqa: PTH119
        os.replace(written, os.path.join(self.data_folder_in, f"{name}.{queue}.msg"))  # noqa: PTH105, PTH118


class FilesystemTransport(filesystem.Transport):
    """Celery's filesystem transport with whole messages and without prefetching."""

    Channel = _Channel


def create_celery(settings: Settings) -> Celery:
    """The Celery app for these settings."""
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
    """The process's Celery app."""
    return create_celery(get_settings())


def notify(queue: Queue) -> None:
    """Ring a queue's bell once. A broker out of reach is logged: the sweeper rings again."""
    try:
        get_celery().send_task(NOTIFY_TASK, args=[queue.value], queue=queue.value)
    except (OperationalError, OSError) as error:
        logger.warning("could not ring the bell of queue %s; the sweeper will: %s", queue, error)


def notify_after_commit(session: Session, queue: Queue) -> None:
    """Ring once the session's transaction is committed; a bell before that would find no work."""
    session.info.setdefault(_BELLS, []).append(queue)


@event.listens_for(Session, "after_commit")
def _ring_bells(session: Session) -> None:
    for queue in session.info.pop(_BELLS, []):
        notify(queue)


@event.listens_for(Session, "after_rollback")
def _forget_bells(session: Session) -> None:
    session.info.pop(_BELLS, None)
