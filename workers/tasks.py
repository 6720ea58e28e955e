"""The Celery task with which a worker handles a notification."""

from celery import Celery

from app.scheduling.queue import NOTIFY_TASK
from workers.runs.dispatcher import RunDispatcher


def register_task(celery: Celery, dispatcher: RunDispatcher) -> None:
    """Register the task for the notifications of this worker's queues."""

    @celery.task(name=NOTIFY_TASK)
    def notify(queue: str) -> None:
        """Start runs, and wait until there is room for another one.

        The message only means that there may be work. While this task waits, the worker receives no further
        notification, which another worker may have room for.
        """
        dispatcher.fill()
        dispatcher.wait_for_room()
