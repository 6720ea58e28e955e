"""Checks of promotions when a job is posted: what could not work is refused with its field."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from sqlmodel import Session

from app.aliases.promotions import list_others
from app.aliases.targets import find_name_holders, list_all_aliases
from app.http.errors import UnprocessableContent, field_error
from app.jobs.graph.resolved_stage import ResolvedStage
from app.tables import Alias
from trainers.configs import DeployConfig, PromoteConfig
from trainers.statistics.event_rate import requests_needed

SLOW_SHARE = 0.05
"""Share of the requests that may be slower than a 95th percentile."""
MAX_LISTED = 10


def check_promotion(
    session: Session,
    resolved: ResolvedStage,
    promotion: PromoteConfig,
    path: str,
    earlier: Sequence[ResolvedStage],
) -> tuple[ResolvedStage, list[UnprocessableContent]]:
    """Return the stage with its deployment and its warnings, and an error for each field that cannot work."""
    errors: list[UnprocessableContent] = []
    alias = session.get(Alias, promotion.alias)
    if alias is None:
        names = ", ".join(each.name for each in list_all_aliases(session)[:MAX_LISTED]) or "none"
        message = f"There is no alias {promotion.alias!r}; there are: {names}. Create it before the job: PUT "
        errors.append(field_error(f"{path}.alias", f"{message}/api/v1/aliases/{promotion.alias}."))
    deployed = {stage.config.deployment: stage for stage in earlier if isinstance(stage.config, DeployConfig)}
    try:
        name = _find_deployment(session, resolved, promotion, path, deployed)
    except UnprocessableContent as error:
        return resolved, [*errors, error]
    if alias is not None and not list_others(alias.targets, name):
        message = (
            f"The alias {alias.name!r} routes to {name!r} alone, so there is nothing to compare with, or to "
            "roll back to. Deploy the new model under another name."
        )
        errors.append(field_error(f"{path}.deployment", message))
    warnings = tuple(_list_warnings(promotion))
    config = resolved.config.model_copy(update={"deployment": name})
    return replace(resolved, config=config, warnings=warnings), errors


def _find_deployment(
    session: Session,
    resolved: ResolvedStage,
    promotion: PromoteConfig,
    path: str,
    deployed: Mapping[str, ResolvedStage],
) -> str:
    """Return the name of the new deployment; raises UnprocessableContent."""
    field, upstream = f"{path}.deployment", resolved.resolved_needs.upstream
    if promotion.deployment is None:
        names = [name for name, stage in deployed.items() if stage.name in upstream]
        if len(names) == 1:
            return names[0]
        found = (
            f"stages before this one deploy {', '.join(names)}" if names else "no stage before this one does"
        )
        raise field_error(field, f"Name the deployment to promote, or deploy exactly one: {found}.")
    if (stage := deployed.get(promotion.deployment)) is not None:
        if stage.name not in upstream:
            message = f"This stage may start before stage {stage.name!r} has ended: add it to `needs`."
            raise field_error(field, message)
    elif promotion.deployment not in find_name_holders(session, [promotion.deployment]):
        message = (
            f"No deployment {promotion.deployment!r} is ready or asleep, and no stage before this one "
            "creates it."
        )
        raise field_error(field, message)
    return promotion.deployment


def _list_warnings(promotion: PromoteConfig) -> Iterator[str]:
    """Yield how many requests a condition needs, where that is more than `min_requests` suggests."""
    conditions = promotion.conditions
    rates = {
        "max_error_rate": conditions.max_error_rate,
        "max_p95_seconds": SLOW_SHARE if conditions.max_p95_seconds else None,
        "max_p95_first_token_seconds": SLOW_SHARE if conditions.max_p95_first_token_seconds else None,
    }
    fewest = min(promotion.resolve_step(step).min_requests or 0 for step in range(len(promotion.steps)))
    for name, rate in rates.items():
        if rate is not None and (needed := requests_needed(rate)) > fewest:
            yield (
                f"{name} needs at least {needed:,} requests to the new deployment in a step, even if none "
                f"violates it: with fewer it cannot be shown to hold with 95 % confidence. min_requests is "
                f"{fewest:,}, and the step lasts until there are enough, or for max_seconds."
            )
