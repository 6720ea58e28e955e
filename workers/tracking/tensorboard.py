"""TensorBoard: event files in a folder for each run, `<job>/<stage>`.

An attempt that resumes writes the step from which it goes on, and TensorBoard then leaves out what an
earlier one has written from there on. The writer is TensorBoard's own: tensorboardX would load torch.
"""

import json
import time

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from workers.tracking.protocol import Ending, Link, Point, TensorboardTarget, Tracked, numbers


class TensorboardService:
    """One attempt's event file."""

    def __init__(self, target: TensorboardTarget, tracked: Tracked) -> None:
        self._folder = target.folder / tracked.job_id / tracked.name
        self._tracked = tracked

    def start(self) -> Link:
        tracked = self._tracked
        self._writer = EventFileWriter(str(self._folder))
        if tracked.attempt > 1:
            # Whoever reads the folder drops what the files before this one tell of this step and later ones.
            self._add(tracked.first_step, session_log=SessionLog(status=SessionLog.START))
        told = {**tracked.tags, "labels": tracked.labels, "config": tracked.config}
        text = json.dumps(told, ensure_ascii=False, indent=1)
        self._add(tracked.first_step, summary=text_pb("run", f"```json\n{text}\n```"))
        self._writer.flush()
        return Link(run_id=f"{tracked.job_id}/{tracked.name}", url=self._folder.as_uri())

    def metrics(self, points: list[Point]) -> None:
        for point in points:
            self._add_scalars(point.step, point.values, point.time.timestamp())
        self._writer.flush()

    def finish(self, ending: Ending) -> None:
        self._add_scalars(ending.step, numbers(ending.result), time.time())
        self._add(ending.step, summary=text_pb("status", ending.status))
        self._writer.close()

    def _add_scalars(self, step: int, values: dict[str, float], wall_time: float) -> None:
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        if scalars:
            self._writer.add_event(Event(step=step, wall_time=wall_time, summary=Summary(value=scalars)))

    def _add(self, step: int, **what: Summary | SessionLog) -> None:
        self._writer.add_event(Event(step=step, wall_time=time.time(), **what))
