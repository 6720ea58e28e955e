"""What a worker does when it hears a bell."""

from celery import Celery

from app.scheduling.queue import NOTIFY_TASK
from workers.hosts.worker import WorkerContext
from workers.runs.execute import execute_next


def register_task(celery: Celery, host: WorkerContext) -> None:
    """Let this worker's bells lead to its runs."""

    @celery.task(name=NOTIFY_TASK)
    def bell(queue: str) -> bool:
        """There may be work: which, SQL tells. False when another was faster or nothing is left.

        A worker goes on until nothing is left, so that it needs no bell to wait for it while it is busy.
        """
        found = False
        while not host.stopping.is_set() and execute_next(host):
            found = True
        return found
