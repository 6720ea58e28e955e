"""The Celery app and its one message, the notification that a queue has work.

A notification names no run. The worker that receives it reads from SQL which run to take, so a notification
that is lost, late or sent twice costs latency but no work.
"""

import logging
import os
import tempfile
from pathlib import Path
from queue import Empty
from typing import Any

from celery import Celery
from kombu.transport import TRANSPORT_ALIASES, filesystem
from kombu.utils.encoding import str_to_bytes
from kombu.utils.json import dumps, loads
from sqlalchemy import event
from sqlmodel import Session

from app.once import Once
from app.scheduling.incidents import Incident
from app.scheduling.notifier import Notifier
from app.settings import Settings, get_settings
from trainers.configs import Queue

logger = logging.getLogger(__name__)

NOTIFY_TASK = "tunesmith.notify"
# Loaded where the broker is Redis only.
REDIS_TRANSPORT = "app.scheduling.redis_transport:RedisTransport"
PAUSE_AFTER_FAILURE_SECONDS = 5.0
_PENDING = "pending_notifications"


class _NoPrefetch(filesystem.Channel.QoS):
    """A QoS that delivers a message only to a worker without a reserved task.

    Celery's own `worker_disable_prefetch` works on Redis only.
    """

    def can_consume(self) -> bool:
        from celery.worker import state

        return not state.reserved_requests and super().can_consume()


class _Channel(filesystem.Channel):
    """A channel whose only files are complete messages.

    kombu's own keeps the bindings of each exchange in a file that it writes in place: after a full disk or a
    crash that file is empty, and no worker can start. Here every queue has the exchange of its own name.
    """

    QoS = _NoPrefetch

    def get_table(self, exchange: str) -> list[Any]:
        return [filesystem.exchange_queue_t(exchange, "", exchange)]

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        """Write nothing: the binding follows from the name."""

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        self._purge(queue)

    @property
    def data_folder_in(self) -> str:
        """Return the folder of messages, created again if it was removed: a worker ends without it."""
        folder: str = self.transport_options["data_folder_in"]
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103
        return folder

    def _get(self, queue: str) -> dict[str, Any]:
        """Return the next message; one that cannot be read is deleted, since a notification names no run."""
        for path in sorted(Path(self.data_folder_in).glob(f"*.{queue}.msg")):
            try:
                content = path.read_bytes()
                # The reader that deletes the file has the message; another one may have been faster.
                path.unlink()
            except FileNotFoundError:
                continue
            try:
                message = loads(content.decode())
            except (ValueError, RecursionError):
                message = None
            if isinstance(message, dict):
                return message
            logger.warning("deleted the unreadable notification %s (%d bytes)", path.name, len(content))
        raise Empty

    def check(self) -> None:
        """Write and delete a file in the folder of messages."""
        handle, path = tempfile.mkstemp(dir=self.data_folder_in, suffix=".part")
        try:
            os.write(handle, b"check")
        finally:
            os.close(handle)
            Path(path).unlink()

    def _put(self, queue: str, payload: dict[str, Any], **kwargs: Any) -> None:
        """Write the message to a temporary file, then rename it: a reader never sees a partial message."""
        handle, temporary = tempfile.mkstemp(dir=self.data_folder_in, suffix=".part")
        part = Path(temporary)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(str_to_bytes(dumps(payload)))
            part.replace(part.with_name(f"{part.stem}.{queue}.msg"))
        except OSError:
            part.unlink(missing_ok=True)
            raise


class FilesystemTransport(filesystem.Transport):
    """Celery's filesystem transport with atomic messages, without other state, and without prefetching."""

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
                "polling_interval": 0.1,
            },
        )
    else:
        # kombu chooses the transport by the scheme of the URL whenever it connects.
        TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), REDIS_TRANSPORT))
        celery.conf.broker_transport_options = {"socket_timeout": 5, "socket_connect_timeout": 2}
    return celery


@Once
def get_celery() -> Celery:
    """Return the process's Celery app."""
    return create_celery(get_settings())


def check_broker() -> None:
    """Check that the broker accepts notifications; raise what is wrong."""
    with get_celery().connection_for_write() as connection:
        connection.connect()
        channel = connection.default_channel
        if isinstance(channel, _Channel):
            channel.check()
        else:
            # Fails on a server that is full, read-only, or asks for another password.
            channel.client.set(f"{NOTIFY_TASK}.check", 1, ex=60)
            for queue in Queue:
                channel.client.llen(queue.value)
    get_notify_incident().resolve()


@Once
def get_notify_incident() -> Incident:
    """Return the incident of notifications that this process cannot send."""
    return Incident("notification", consequence="; workers find runs by polling meanwhile")


def notify(queue: Queue) -> None:
    """Notify a queue once; a failure is logged only, since workers also poll and the sweeper notifies again.

    After a failure no notification is sent for a few seconds, so that a broker that does not respond costs
    little.
    """
    incident = get_notify_incident()
    if incident.seconds_since_failure < PAUSE_AFTER_FAILURE_SECONDS:
        return
    try:
        get_celery().send_task(NOTIFY_TASK, args=[queue.value], queue=queue.value)
    except Exception as error:
        # Whatever a broken broker raises, the row is committed, and its request must not fail.
        incident.record(error)
    else:
        incident.resolve()


def notify_after_commit(session: Session, queue: Queue) -> None:
    """Notify the queue once the transaction is committed: before that, a worker would find no work."""
    session.info.setdefault(_PENDING, set()).add(queue)


@Once
def get_notifier() -> Notifier:
    """Return the process's sender of notifications."""
    return Notifier(notify)


@event.listens_for(Session, "after_commit")
def _send_pending(session: Session) -> None:
    for queue in session.info.pop(_PENDING, ()):
        get_notifier().request(queue)


@event.listens_for(Session, "after_rollback")
def _discard_pending(session: Session) -> None:
    session.info.pop(_PENDING, None)
