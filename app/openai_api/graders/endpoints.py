"""OpenAI's alpha API of graders: a grader is tried on one completion before it grades a data set."""

from fastapi import APIRouter

from app.graders import service
from app.graders.run import run_grader
from app.http.auth import CallerDependency
from app.openai_api.graders.schemas import (
    GraderRunRequest,
    GraderRunResult,
    GraderValidateRequest,
    GraderValidateResult,
    view_grade,
)
from app.settings import get_settings
from app.storage.database import ReadSession, read_session

router = APIRouter(prefix="/fine_tuning/alpha/graders", tags=["graders"])


@router.post("/run")
def run(caller: CallerDependency, body: GraderRunRequest) -> GraderRunResult:
    """Grade a completion. It takes up to three minutes, if a model or code in Python grades."""
    settings = get_settings()
    # No session is open while the grader runs.
    with read_session() as session:
        grader = service.read_grader(session, body.grader, settings, caller.key_id)
    return view_grade(grader, run_grader(grader, body.model_sample, body.row, settings, caller.key_id))


@router.post("/validate")
def validate(
    session: ReadSession, caller: CallerDependency, body: GraderValidateRequest
) -> GraderValidateResult:
    """Check a grader without running it."""
    grader = service.read_grader(session, body.grader, get_settings(), caller.key_id)
    return GraderValidateResult(grader={**body.grader, "name": grader.name})
