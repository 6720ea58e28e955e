"""Promotions of an alias: the form that starts one as a job, and the button that aborts it."""

from typing import Annotated, Any

from fastapi import Form, Path, Request, Response
from pydantic import BaseModel, Field

from app.http.errors import field_error
from app.jobs.schemas import JobCreate
from app.jobs.service import submit_job
from app.promotions.service import abort_promotion
from app.settings import get_settings
from app.storage.database import WriteSession
from app.web.errors import parse_form
from app.web.rendering import go_to
from app.web.views.aliases.page import AliasName
from app.web.visitor import CurrentVisitor, view_router
from trainers.configs.graders.served_model import parse_grader_model
from trainers.configs.stages.serving.promote import FailureAction

router = view_router()

RunId = Annotated[str, Path(pattern=r"^run_[0-9a-z]{1,40}$")]


class PromotionForm(BaseModel):
    """The form of a promotion: shares and rates in percent; without a number, the stage's default applies."""

    key: str = Field("", max_length=64)
    deployment: str = Field(max_length=100)
    steps: str = Field(max_length=200)
    min_seconds: float | None = None
    min_requests: int | None = None
    max_error_percent: float | None = None
    max_increase_percent: float | None = None
    max_p95_seconds: float | None = None
    judge: str = Field("", max_length=600)
    judge_rubric: str = Field("", max_length=8000)
    judge_dataset: str = Field("", max_length=200)
    judge_min_percent: float | None = None
    judge_rows: int | None = None
    on_failure: FailureAction = FailureAction.roll_back

    def stage(self, alias: str) -> dict[str, Any]:
        """Return the stage of a job; raises UnprocessableContent for steps that are not numbers."""
        conditions = {
            "max_error_rate": _share_of(self.max_error_percent),
            "max_error_rate_increase": _share_of(self.max_increase_percent),
            "max_p95_seconds": self.max_p95_seconds,
            "judge": self._judge_condition(),
        }
        values = {"min_seconds": self.min_seconds, "min_requests": self.min_requests}
        return {
            "stage": "promote",
            "alias": alias,
            "deployment": self.deployment,
            "steps": [{"share": share} for share in self._shares()],
            "conditions": {name: value for name, value in conditions.items() if value is not None},
            "on_failure": self.on_failure,
            **{name: value for name, value in values.items() if value is not None},
        }

    def _judge_condition(self) -> dict[str, Any] | None:
        """Return the condition of the judge, or None if no field of it is filled."""
        required = ("judge", "judge_rubric", "judge_dataset", "judge_min_percent")
        given = [name for name in required if getattr(self, name) not in ("", None)]
        if not given and self.judge_rows is None:
            return None
        missing = [name for name in required if name not in given]
        if missing:
            raise field_error(missing[0], f"It is empty, and a judge needs all of {', '.join(required)}.")
        try:
            judge = parse_grader_model(self.judge)
        except ValueError as error:
            raise field_error("judge", f"{error}.") from None
        return {
            "judge": judge.model_dump(),
            "rubric": self.judge_rubric,
            "dataset": self.judge_dataset,
            "min_preference": _share_of(self.judge_min_percent),
            **({"max_rows": self.judge_rows} if self.judge_rows is not None else {}),
        }

    def _shares(self) -> list[float]:
        try:
            return [float(each.strip().removesuffix("%")) / 100 for each in self.steps.split(",")]
        except ValueError:
            raise field_error(
                "steps", f"{self.steps!r} must be percentages with commas between them, such as 5, 25, 100."
            ) from None


@router.post("/aliases/{name}/promotions")
def start_promotion(
    request: Request,
    visitor: CurrentVisitor,
    name: AliasName,
    form: Annotated[PromotionForm, Form()],
) -> Response:
    """Submit a job with a stage that moves the alias to a deployment by steps."""
    assert visitor.caller is not None
    spec = parse_form(JobCreate, name=f"promote-{name}", stages=[form.stage(name)])
    submit_job(get_settings(), spec, visitor.caller.key_id, f"page-{form.key}" if form.key else None)
    return go_to(request, f"/aliases/{name}")


@router.post("/aliases/{name}/promotions/{run_id}/abort")
def abort(request: Request, session: WriteSession, name: AliasName, run_id: RunId) -> Response:
    """Cancel the job of a promotion; the alias gets the targets that it had before."""
    abort_promotion(session, name, run_id)
    return go_to(request, f"/aliases/{name}")


def _share_of(percent: float | None) -> float | None:
    return percent / 100 if percent is not None else None
