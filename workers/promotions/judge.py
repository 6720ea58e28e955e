"""The judge of a promotion: the program of `evaluate` as a child, which compares both deployments."""

import shutil
import sys
from collections.abc import Sequence
from typing import Any

from app.aliases.targets import find_name_holders
from app.deployments import lifecycle as deployments
from app.settings import Settings
from app.storage.database import transaction
from app.tables import DeploymentStatus, Run
from trainers.configs import EvaluateConfig
from trainers.configs.base import DeployedModel
from trainers.configs.metrics.judge import JudgePreference
from trainers.configs.stages.evaluate import BASELINE, MODEL
from trainers.configs.stages.serving.promote import JudgeCondition
from trainers.evaluation.results import EvaluationResult
from trainers.runtime import launch_command
from trainers.runtime import run_dir as files
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError
from workers.hosts.devices import NO_DEVICES
from workers.hosts.environments import empty_folder, program_environment, row_cache_environment
from workers.hosts.guarded_process import GuardedProcess, start_guarded_process
from workers.hosts.lease import Lease
from workers.hosts.stage_limits import choose_limits
from workers.hosts.worker import WorkerContext
from workers.inputs.datasets import fetch_dataset, find_dataset
from workers.inputs.errors import STORE_HINT, InputUnreadable
from workers.inputs.served_models import DeploymentUse, served_model_environment
from workers.outputs.token_use import TokenUseFollower
from workers.runs import results
from workers.runs.complete import publish_files


class JudgeProgramEnded(TunesmithError):
    code = ErrorCode.program_without_result


class PromotionJudge:
    """The judge's program, started for the first look and followed by `poll`.

    What an earlier attempt on this host has already asked is in its run directory, which is taken over.
    """

    def __init__(self, worker: WorkerContext, run: Run, condition: JudgeCondition) -> None:
        self._worker = worker
        self._run = run
        self._condition = condition
        self._run_dir = worker.settings.data_dir / "runs" / run.id / f"attempt-{run.attempt}"
        self._process: GuardedProcess | None = None
        self._tokens: TokenUseFollower | None = None
        self._use: DeploymentUse | None = None

    def poll(self, candidate: str, present: str, lease: Lease) -> dict[str, Any] | None:
        """Start the program once both deployments are ready; return its result when it has ended.

        Raises LaunchError if its inputs cannot be fetched, and the error of the program if it failed.
        """
        if self._process is None:
            if not wake_deployments([candidate, present]):
                return None
            self._process = self._start(candidate, present, lease)
        status = self._process.wait(0)
        self._record_tokens()
        if self._use is not None:
            self._use.poll()
        if status is None:
            return None
        lease.unbind(self._process)
        self._process = None
        publish_files(self._run_dir, self._run)
        result = results.read_result(self._run, self._run_dir)
        if result is None:
            raise results.read_error(self._run_dir) or JudgeProgramEnded(
                f"The program of the judge ended with status {status} and left no result.",
                f"Read its log: GET /api/v1/runs/{self._run.id}/files/{files.LOG}.",
            )
        return result

    def close(self) -> None:
        """Kill the program if it still runs."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def remove_files(self) -> None:
        """Remove the files of the program, which the run's end has made useless."""
        shutil.rmtree(self._run_dir.parent, ignore_errors=True)

    def _start(self, candidate: str, present: str, lease: Lease) -> GuardedProcess:
        settings = self._worker.settings
        try:
            dataset = fetch_dataset(find_dataset(self._run.job_id, self._condition.dataset))
            self._take_over_run_dir()
        except OSError as error:
            raise InputUnreadable(f"The judge's dataset cannot be read: {error}", STORE_HINT) from error
        config = build_evaluation(self._condition, candidate, present, str(dataset))
        files.write_json(self._run_dir / files.CONFIG, config.model_dump(mode="json"))
        self._tokens = TokenUseFollower(self._run, self._run_dir)
        self._use = DeploymentUse(config)
        python = settings.trainer_python or sys.executable
        process = start_guarded_process(
            launch_command.build_command(python, config, self._run_dir / files.CONFIG, self._run_dir),
            log=self._run_dir / files.LOG,
            folder=empty_folder(self._run_dir),
            environment=_environment(config, settings),
            seconds=lease.seconds_left,
            limits=choose_limits(self._run, config, settings, str(self._run_dir)),
            fork_server=self._worker.fork_server,
        )
        lease.bind(process)
        return process

    def _record_tokens(self) -> None:
        assert self._tokens is not None, "the program has started"
        self._tokens.poll()
        if self._tokens.has_unsaved:
            with transaction() as session:
                self._tokens.save(session)
            self._tokens.mark_saved()

    def _take_over_run_dir(self) -> None:
        earlier = sorted(self._run_dir.parent.glob("attempt-*"), key=lambda path: path.stat().st_mtime)
        if self._run_dir not in earlier:
            if earlier:
                earlier[-1].replace(self._run_dir)
            self._run_dir.mkdir(parents=True, exist_ok=True)
        # Of an attempt that failed; what was asked before stays.
        for name in (files.ERROR, files.RESULT):
            (self._run_dir / name).unlink(missing_ok=True)


def wake_deployments(names: Sequence[str]) -> bool:
    """Wake deployments that sleep; return whether none has to be waited for.

    The judge's requests go to the engines directly, and so wake nothing. A missing one is not waited for.
    """
    with transaction() as session:
        holders = find_name_holders(session, names).values()
        for deployment in holders:
            if deployment.status is DeploymentStatus.asleep:
                deployments.wake(session, deployment.id)
        return all(deployment.is_ready for deployment in holders)


def build_evaluation(condition: JudgeCondition, candidate: str, present: str, dataset: str) -> EvaluateConfig:
    """Return the config of the evaluation of the new deployment against the present one."""
    return EvaluateConfig(
        model=DeployedModel(deployment=candidate),
        baseline=DeployedModel(deployment=present),
        dataset=dataset,
        metrics=[
            JudgePreference(
                judge=condition.judge,
                rubric=condition.rubric,
                against=BASELINE,
                show_reference=condition.show_reference,
                max_error_share=condition.max_error_share,
            )
        ],
        max_rows=condition.max_rows,
        max_new_tokens=condition.max_new_tokens,
    )


def describe_judgement(result: dict[str, Any]) -> dict[str, Any]:
    """Return what a promotion keeps of the evaluation's result."""
    evaluation = EvaluationResult.model_validate(result)
    score = next(model for model in evaluation.models if model.role == MODEL).scores[0]
    return score.model_dump(mode="json", include={"value", "n", "interval_95", "signature", "details"})


def _environment(config: EvaluateConfig, settings: Settings) -> dict[str, str]:
    return {
        **served_model_environment(config, settings),
        **program_environment(NO_DEVICES),
        **row_cache_environment(settings),
    }
