"""The thread that sends notifications, so that no request and no transaction waits for the broker."""

import threading
import time
from collections.abc import Callable

from trainers.configs import Queue

# The first notification is sent at once; those of a burst are joined: each costs a tenth of a post.
PAUSE_SECONDS = 0.02


class Notifier:
    """A thread that notifies the queues that were requested since its last turn, each once.

    A notification names no run, so that one is enough for all jobs that were committed before it is sent.
    After each turn the thread waits for `pause_seconds`.
    """

    def __init__(self, notify: Callable[[Queue], None], pause_seconds: float = PAUSE_SECONDS) -> None:
        self._notify = notify
        self._pause_seconds = pause_seconds
        self._requested: set[Queue] = set()
        self._changed = threading.Condition()
        self._is_sending = False
        self._thread: threading.Thread | None = None

    def request(self, queue: Queue) -> None:
        """Request a notification and return at once."""
        with self._changed:
            self._requested.add(queue)
            # A thread does not exist in a process that was forked after it was started.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="notifier", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Wait until all requested notifications have been sent; return whether they were in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._requested and not self._is_sending, seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._requested))
                queues, self._requested, self._is_sending = self._requested, set(), True
            try:
                for queue in sorted(queues):
                    self._notify(queue)
            finally:
                with self._changed:
                    self._is_sending = False
                    self._changed.notify_all()
            time.sleep(self._pause_seconds)
