"""W&B: our run's id is its id, so that every attempt goes on with the same run.

W&B drops what lies before the step that it has. Offline it cannot know that step, so it is left to ours:
what earlier attempts have sent is not sent again.
"""

from pathlib import Path

import wandb

from workers.tracking.protocol import Ending, Link, Point, Tracked, WandbTarget

INIT_TIMEOUT_SECONDS = 30
EXIT_CODES = {"succeeded": 0, "cancelled": 255}


class WandbService:
    """One attempt's way to W&B, through the process `wandb-core` that W&B starts for itself."""

    def __init__(self, target: WandbTarget, tracked: Tracked) -> None:
        self._target = target
        self._tracked = tracked

    def start(self) -> Link:
        tracked, target = self._tracked, self._target
        target.folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            entity=target.entity,
            project=target.project,
            dir=target.folder,
            id=tracked.run_id,
            resume="allow",
            name=f"{tracked.job_name}/{tracked.name}",
            group=tracked.job_id,
            job_type=tracked.stage,
            config=tracked.config | {"tunesmith": tracked.tags | {"labels": tracked.labels}},
            allow_val_change=True,
            settings=_settings(target),
        )
        url = self._run.url if target.mode == "online" else Path(self._run.dir).parent.as_uri()
        return Link(run_id=tracked.run_id, url=url)

    def metrics(self, points: list[Point]) -> None:
        for point in points:
            if point.step > self._tracked.sent_step and point.step >= self._run.step:
                self._run.log(point.values, step=point.step)

    def finish(self, ending: Ending) -> None:
        outcome = {"status": ending.status, "error": ending.error, "result": ending.result}
        self._run.summary.update({name: value for name, value in outcome.items() if value is not None})
        if ending.status in ("paused", "queued"):
            self._run.mark_preempting()
        self._run.finish(exit_code=EXIT_CODES.get(ending.status, 1))


def _settings(target: WandbTarget) -> wandb.Settings:
    """This process is not the one that trains: what W&B could see of it says nothing of the run."""
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
