"""W&B: our run id is the id of the W&B run, so that every attempt continues the same one.

W&B drops steps before its current one, so it may be sent a step twice. It confirms none: its own process
buffers them, to upload them or to write them to disk, until the run is finished. An exporter that was killed
therefore starts again at the first step. Offline, it then leaves another folder with the same run id.
"""

from pathlib import Path
from typing import ClassVar

import wandb

from workers.tracking.protocol import AttemptEnd, MetricPoint, TrackingJob, WandbTarget

INIT_TIMEOUT_SECONDS = 30
EXIT_CODES = {"succeeded": 0, "cancelled": 255}


class WandbTrackingClient:
    """A client that sends one attempt to W&B, through the process `wandb-core` that the library starts."""

    is_buffered: ClassVar[bool] = True

    def __init__(self, target: WandbTarget, job: TrackingJob, sent_step: int) -> None:
        self._target = target
        self._job = job
        self._sent_step = sent_step
        self._run: wandb.Run | None = None

    def start(self) -> tuple[str, str]:
        job, target = self._job, self._target
        run_id = job.tags["run_id"]
        target.folder.mkdir(parents=True, exist_ok=True)
        run = self._run = wandb.init(
            entity=target.entity,
            project=target.project,
            dir=target.folder,
            id=run_id,
            resume="allow",
            # Runs of several attempts are open in this process at once.
            reinit="create_new",
            name=target.name or job.name,
            tags=target.tags or None,
            group=job.tags["job_id"],
            job_type=job.tags["stage"],
            config=job.config | {"tunesmith": job.tags | {"labels": job.labels}},
            allow_val_change=True,
            settings=_settings(target),
        )
        url = run.url if target.mode == "online" else Path(run.dir).parent.as_uri()
        assert url is not None
        return run_id, url

    def log(self, points: list[MetricPoint]) -> None:
        assert self._run is not None
        for point in points:
            if point.step > self._sent_step and point.step >= self._run.step:
                self._run.log(point.values, step=point.step)

    def finish(self, end: AttemptEnd) -> None:
        assert self._run is not None
        summary = {"status": end.status, "error": end.error, "result": end.result}
        self._run.summary.update({name: value for name, value in summary.items() if value is not None})
        if end.status in ("paused", "queued"):
            self._run.mark_preempting()
        self._run.finish(exit_code=EXIT_CODES.get(end.status, 1))


def _settings(target: WandbTarget) -> wandb.Settings:
    """Return settings without what W&B collects about its process, which is not the one that trains."""
    return wandb.Settings(
        mode=target.mode,
        silent=True,
        console="off",
        init_timeout=INIT_TIMEOUT_SECONDS,
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )
