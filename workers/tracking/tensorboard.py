"""TensorBoard: event files in one folder per run, `<job>/<stage>`.

An attempt that resumes, or an exporter that restarts, writes the step from which it continues, and
TensorBoard hides the later steps of earlier files. The writer is TensorBoard's own, because tensorboardX
would import torch.
"""

import json
import time
from typing import ClassVar

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from workers.tracking.protocol import (
    AttemptEnd,
    MetricPoint,
    TensorboardTarget,
    TrackingJob,
    result_metrics,
)

# Of 32 possible values each: names of equal jobs do not collide.
ID_CHARACTERS = 8


class TensorboardTrackingClient:
    """A client that writes one attempt to an event file."""

    is_buffered: ClassVar[bool] = False

    def __init__(self, target: TensorboardTarget, job: TrackingJob, sent_step: int) -> None:
        # TensorBoard shows the path of the folder; the end of the id makes it unique.
        self._run_id = f"{job.name}-{job.tags['run_id'][-ID_CHARACTERS:]}"
        self._folder = target.folder / self._run_id
        self._job = job
        # Steps that this attempt executes again replace those that an earlier one has sent.
        self._first_step = min(sent_step + 1, job.first_step)

    def start(self) -> tuple[str, str]:
        self._writer = EventFileWriter(str(self._folder))
        self._add(self._first_step, session_log=SessionLog(status=SessionLog.START))
        fields = {**self._job.tags, "labels": self._job.labels, "config": self._job.config}
        text = json.dumps(fields, ensure_ascii=False, indent=1)
        self._add(self._first_step, summary=text_pb("run", f"```json\n{text}\n```"))
        self._writer.flush()
        return self._run_id, self._folder.as_uri()

    def log(self, points: list[MetricPoint]) -> None:
        for point in points:
            if point.step >= self._first_step:
                self._add_scalars(point.step, point.values, point.time.timestamp())
        self._writer.flush()

    def finish(self, end: AttemptEnd) -> None:
        self._add_scalars(end.step, result_metrics(end), end.time.timestamp())
        self._add(end.step, summary=text_pb("status", end.status))
        self._writer.close()

    def _add_scalars(self, step: int, values: dict[str, float], wall_time: float) -> None:
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        if scalars:
            self._writer.add_event(Event(step=step, wall_time=wall_time, summary=Summary(value=scalars)))

    def _add(self, step: int, **fields: Summary | SessionLog) -> None:
        self._writer.add_event(Event(step=step, wall_time=time.time(), **fields))
