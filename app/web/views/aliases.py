"""An alias: the shares of its deployments, canaries, promotions by steps, and its earlier versions."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Form, Path, Query, Request, Response
from pydantic import BaseModel, Field
from sqlmodel import Session

from app.aliases import service
from app.aliases.schemas import AliasUpdate, AliasVersionView, AliasView
from app.deployments.requests import ServedRequests, count_requests
from app.http.errors import field_error
from app.http.paging import PageQuery
from app.jobs.schemas import JobCreate
from app.jobs.service import submit_job
from app.promotions.schemas import PromotionView
from app.promotions.service import abort_promotion, can_be_promoted, list_candidates, list_promotions
from app.settings import get_settings
from app.storage.database import ReadSession, WriteSession
from app.web.errors import parse_form
from app.web.live import LiveView, Parts, Version, stream_view
from app.web.rendering import go_to, render_macro, render_page
from app.web.url_state import ListFilters
from app.web.visitor import CurrentVisitor, Visitor, view_router
from trainers.configs.base import NAME_PATTERN
from trainers.configs.stages.serving.promote import FailureAction

PARTS = "aliases/parts.jinja"

router = view_router()

AliasName = Annotated[str, Path(pattern=NAME_PATTERN)]
NameText = Annotated[str, Form(max_length=100)]
RunId = Annotated[str, Path(pattern=r"^run_[0-9a-z]{1,40}$")]
After = Annotated[str | None, Query(pattern=r"^aliasversion_[0-9a-z]{26}$")]


@dataclass(frozen=True)
class AliasPosition(ListFilters):
    """The position in the list of versions, which is in the URL."""

    after: str | None


@dataclass(frozen=True)
class AliasDetails:
    """An alias with its promotions and a page of its versions, and the deployments that can get a share."""

    alias: AliasView
    requests: ServedRequests
    previous: int
    """The version that a rollback restores: a form that is sent twice goes back once. 0 without one."""
    candidates: Sequence[str]
    promotions: Sequence[PromotionView]
    versions: Sequence[AliasVersionView]
    next: str | None

    @property
    def promotable(self) -> list[str]:
        """The deployments that a promotion can name."""
        return [name for name in self.candidates if can_be_promoted(name)]

    @property
    def active(self) -> PromotionView | None:
        """The promotion that moves the alias now."""
        return next((each for each in self.promotions if each.is_active), None)


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
    on_failure: FailureAction = FailureAction.roll_back

    def stage(self, alias: str) -> dict[str, Any]:
        """Return the stage of a job; raises UnprocessableContent for steps that are not numbers."""
        conditions = {
            "max_error_rate": _share_of(self.max_error_percent),
            "max_error_rate_increase": _share_of(self.max_increase_percent),
            "max_p95_seconds": self.max_p95_seconds,
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

    def _shares(self) -> list[float]:
        try:
            return [float(each.strip().removesuffix("%")) / 100 for each in self.steps.split(",")]
        except ValueError:
            raise field_error(
                "steps", f"{self.steps!r} must be percentages with commas between them, such as 5, 25, 100."
            ) from None


@router.post("/aliases")
def create_alias(
    request: Request,
    session: WriteSession,
    visitor: CurrentVisitor,
    name: Annotated[str, Form(pattern=NAME_PATTERN)],
    deployment: NameText,
) -> Response:
    """Create an alias that routes to one deployment."""
    body = parse_form(AliasUpdate, targets=[{"deployment": deployment}])
    service.update_alias(session, name, body, _key_of(visitor))
    return go_to(request, f"/aliases/{name}")


@router.get("/aliases/{name}")
def show_alias(
    request: Request, session: ReadSession, visitor: CurrentVisitor, name: AliasName, after: After = None
) -> Response:
    """Show an alias."""
    view = _page_view(name, after)
    state = view.load(session)
    return render_page(
        request,
        "aliases/page.jinja",
        state=state,
        parts=view.render(state, visitor),
        filters=AliasPosition(after),
        key=secrets.token_hex(16),
    )


@router.get("/aliases/{name}/stream")
def stream_alias(request: Request, name: AliasName, after: After = None, version: Version = "") -> Response:
    """Stream the parts of an alias's page that change."""
    return stream_view(request, _page_view(name, after), version)


@router.post("/aliases/{name}/share")
def give_share(
    request: Request,
    session: WriteSession,
    visitor: CurrentVisitor,
    name: AliasName,
    deployment: NameText,
    percent: Annotated[float, Form(gt=0, le=100)],
) -> Response:
    """Give a deployment a share of an alias's requests."""
    service.give_share(session, name, deployment, percent / 100, _key_of(visitor))
    return go_to(request, f"/aliases/{name}")


@router.post("/aliases/{name}/rollback")
def roll_back(
    request: Request,
    session: WriteSession,
    visitor: CurrentVisitor,
    name: AliasName,
    version: Annotated[int | None, Form(ge=1, lt=2**31)] = None,
) -> Response:
    """Restore the targets of a version, by default those from before the last change."""
    service.roll_back_alias(session, name, version, _key_of(visitor))
    return go_to(request, f"/aliases/{name}")


@router.post("/aliases/{name}/delete")
def delete_alias(
    request: Request, session: WriteSession, visitor: CurrentVisitor, name: AliasName
) -> Response:
    """Delete an alias; its deployments and its versions remain."""
    service.delete_alias(session, name, _key_of(visitor))
    return go_to(request, "/deployments")


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


def _key_of(visitor: Visitor) -> str | None:
    assert visitor.caller is not None
    return visitor.caller.key_id or None


def _page_view(name: str, after: str | None) -> LiveView[AliasDetails]:
    def load(session: Session) -> AliasDetails:
        alias = service.get_alias(session, name)
        versions, following = service.list_alias_versions(session, name, PageQuery(limit=20, after=after))
        return AliasDetails(
            alias=service.view_alias(session, alias),
            requests=count_requests(name),
            previous=service.find_previous_version(session, alias),
            candidates=[each.name for each in list_candidates(session, alias)],
            promotions=list_promotions(session, name),
            versions=[AliasVersionView.model_validate(version) for version in versions],
            next=following,
        )

    def render(state: AliasDetails, visitor: Visitor) -> Parts:
        language = visitor.language
        names = ("head", "targets", "share-choice", "promotion-choice", "promotions")
        parts = {
            f"alias-{each}": render_macro(language, PARTS, each.replace("-", "_"), state, visitor)
            for each in names
        }
        rows = {
            f"version-{each.version}": render_macro(language, PARTS, "version", each, state.alias, visitor)
            for each in state.versions
        }
        return Parts(parts=parts, rows=rows, table="versions")

    return LiveView(load, render)
