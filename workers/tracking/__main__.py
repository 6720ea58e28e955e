"""Sends what one attempt tells to one tracking service, until the attempt has ended and all has arrived.

It follows the program's own `events.jsonl`, so that a service which is away costs nothing but time: the
file waits. It runs under the worker's guard and ends with it.

python -m workers.tracking FOLDER
"""

import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from app.logs import redact
from trainers.runtime import run_dir as files
from trainers.runtime.events import MetricsEvent
from workers.runs.run_events import EVENT, FileTail, parse_lines
from workers.tracking.protocol import (
    ENDING,
    ORDER,
    PROGRAM_ENDED,
    TOLD,
    Ending,
    MlflowTarget,
    Order,
    Point,
    Service,
    Told,
    WandbTarget,
)

LOOK_SECONDS = 0.3
MAX_RETRY_SECONDS = 15.0
# A single failure may be a server that is just starting, or two workers that make one experiment.
FAILURES_TO_TELL = 2
MAX_TROUBLE_CHARACTERS = 500

T = TypeVar("T")
P = ParamSpec("P")


def main(folder: Path) -> None:
    """Carry out the order in this folder."""
    order = Order.model_validate_json((folder / ORDER).read_bytes())
    sender = _Sender(folder)
    service = sender.patiently(_service, order)
    sender.tell(Told(link=sender.patiently(service.start)))
    _follow(folder, FileTail(order.metrics), service, sender)


def _service(order: Order) -> Service:
    """The service of the order; its package is loaded here and nowhere else."""
    if isinstance(order.target, MlflowTarget):
        from workers.tracking.mlflow import MlflowService

        return MlflowService(order.target, order.tracked)
    if isinstance(order.target, WandbTarget):
        from workers.tracking.wandb import WandbService

        return WandbService(order.target, order.tracked)
    from workers.tracking.tensorboard import TensorboardService

    return TensorboardService(order.target, order.tracked)


def _follow(folder: Path, lines: FileTail, service: Service, sender: "_Sender") -> None:
    has_told_all = False
    while True:
        # In this order: what the program has written before it ended is read after the end is seen.
        ending = files.read_json(folder / ENDING)
        program_ended = (folder / PROGRAM_ENDED).exists()
        points = _points(lines.read(to_end=program_ended))
        if points:
            sender.patiently(service.metrics, points)
            sender.tell(Told(step=points[-1].step))
        elif ending is not None:
            sender.patiently(service.finish, Ending.model_validate(ending))
            return
        elif program_ended and not has_told_all:
            sender.tell(Told(sent_all=True))
            has_told_all = True
        else:
            time.sleep(LOOK_SECONDS)


def _points(text: str) -> list[Point]:
    events = [event for event in parse_lines(EVENT, text) if isinstance(event, MetricsEvent)]
    told = (
        Point(
            step=event.step, time=event.time, values={k: v for k, v in event.values.items() if v is not None}
        )
        for event in events
    )
    return [point for point in told if point.values]


class _Sender:
    """Calls a service until it answers, and tells the worker how that goes."""

    def __init__(self, folder: Path) -> None:
        self._told = folder / TOLD
        self._program_ended = folder / PROGRAM_ENDED
        self._has_told_trouble = False

    def tell(self, told: Told) -> None:
        files.append_line(self._told, told.model_dump(mode="json", exclude_defaults=True))

    def patiently(self, call: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """What the call answers, however long that takes: the worker kills a sender that takes too long."""
        failures = 0
        while True:
            try:
                return call(*args, **options)
            except Exception as error:
                traceback.print_exc()
                failures += 1
                if failures >= FAILURES_TO_TELL:
                    self._tell_trouble(error)
            self._rest(min(MAX_RETRY_SECONDS, 0.5 * 2**failures))

    def _tell_trouble(self, error: Exception) -> None:
        told = Told(stuck=self._program_ended.exists())
        if not self._has_told_trouble:
            told.trouble = redact(f"{type(error).__name__}: {error}"[:MAX_TROUBLE_CHARACTERS])
            self._has_told_trouble = True
        self.tell(told)

    def _rest(self, seconds: float) -> None:
        """Sleep, but try at once when the program ends: what is left has little time then."""
        until, had_ended = time.monotonic() + seconds, self._program_ended.exists()
        while time.monotonic() < until and self._program_ended.exists() == had_ended:
            time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
