"""The embedded broker recreates its folder."""

import shutil
from queue import Empty

import pytest

from app.scheduling.queue import NOTIFY_TASK, get_celery, notify
from trainers.configs import Queue
from workers.hosts.worker import WorkerContext


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_notifications_are_sent_and_received_after_the_folder_was_removed(worker: WorkerContext) -> None:
    messages = worker.settings.data_dir / "queue" / "messages"
    with get_celery().connection_for_read() as connection:
        shutil.rmtree(messages)
        with pytest.raises(Empty):
            connection.default_channel._get(Queue.cpu.value)
        shutil.rmtree(messages)
        notify(Queue.cpu)
        assert connection.default_channel._get(Queue.cpu.value)["headers"]["task"] == NOTIFY_TASK
