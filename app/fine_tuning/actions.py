"""Cancel, pause and resume of fine-tuning jobs: actions on the jobs that carry them out."""

from sqlmodel import Session

from app.fine_tuning.service import FineTuningState, get_state
from app.jobs import actions
from app.jobs.actions import ActionState, JobAction
from app.jobs.service import list_runs

ACTIONS = (JobAction.pause, JobAction.resume, JobAction.cancel)


def list_actions(session: Session, state: FineTuningState) -> list[ActionState]:
    """Return each action on a fine-tuning job, with the result of the check that the action makes."""
    states = actions.list_actions(list_runs(session, state.job.job_id))
    return [each for each in states if each.action in ACTIONS]


def cancel_job(session: Session, fine_tuning_job_id: str) -> None:
    """Cancel a fine-tuning job; raises FineTuningJobNotFound and JobStatusConflict."""
    actions.cancel(session, get_state(session, fine_tuning_job_id).job.job_id)


def pause_job(session: Session, fine_tuning_job_id: str) -> None:
    """Pause a fine-tuning job after a checkpoint; raises FineTuningJobNotFound and JobStatusConflict."""
    actions.pause(session, get_state(session, fine_tuning_job_id).job.job_id)


def resume_job(session: Session, fine_tuning_job_id: str, key_id: str) -> None:
    """Queue a paused fine-tuning job again; raises FineTuningJobNotFound, and as `actions.resume`."""
    actions.resume(session, get_state(session, fine_tuning_job_id).job.job_id, key_id)
