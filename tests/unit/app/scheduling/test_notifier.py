"""The thread that sends notifications: what it sends, and that callers never wait for it."""

import threading
from types import SimpleNamespace

import pytest

from app.scheduling.notifier import Notifier
from trainers.configs import Queue


class SlowBroker:
    """A broker that takes no notification until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.reached = threading.Event()
        self.notified: list[Queue] = []

    def notify(self, queue: Queue) -> None:
        self.reached.set()
        assert self.opened.wait(30)
        self.notified.append(queue)


def test_requests_return_while_the_broker_is_slow_and_are_combined() -> None:
    broker = SlowBroker()
    notifier = Notifier(broker.notify)
    notifier.request(Queue.cpu)
    assert broker.reached.wait(30)
    for _ in range(100):
        notifier.request(Queue.cpu)
        notifier.request(Queue.cuda)
    assert not notifier.wait(0)
    broker.opened.set()
    assert notifier.wait(30)
    assert broker.notified == [Queue.cpu, Queue.cpu, Queue.cuda]


def test_a_request_after_the_notification_was_taken_is_sent_again() -> None:
    broker = SlowBroker()
    broker.opened.set()
    notifier = Notifier(broker.notify)
    for expected in (1, 2, 3):
        notifier.request(Queue.mlx)
        assert notifier.wait(30)
        assert broker.notified == [Queue.mlx] * expected


def test_requests_during_the_pause_after_a_notification_are_sent_as_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paused, ended = threading.Event(), threading.Event()

    def pause(seconds: float) -> None:
        paused.set()
        assert seconds == 0.5 and ended.wait(30)

    monkeypatch.setattr("app.scheduling.notifier.time", SimpleNamespace(sleep=pause))
    broker = SlowBroker()
    broker.opened.set()
    notifier = Notifier(broker.notify, pause_seconds=0.5)
    notifier.request(Queue.cpu)
    assert paused.wait(30)
    for _ in range(100):
        notifier.request(Queue.cpu)
    assert broker.notified == [Queue.cpu]
    ended.set()
    assert notifier.wait(30)
    assert broker.notified == [Queue.cpu] * 2
