"""The Celery task with which a worker handles a notification."""

from celery import Celery

from app.scheduling.queue import NOTIFY_TASK
from workers.hosts.worker import WorkerContext
from workers.runs.execute import execute_next


def register_task(celery: Celery, worker: WorkerContext) -> None:
    """Register the task for the notifications of this worker's queues."""

    @celery.task(name=NOTIFY_TASK)
    def notify(queue: str) -> bool:
        """Execute runs until none is left; return False if there was none.

        The message only means that there may be work. A busy worker therefore needs no further notification.
        """
        found = False
        while not worker.stopping.is_set() and execute_next(worker):
            found = True
        return found
