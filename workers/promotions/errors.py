"""Why a promotion has failed, in words, with condition, value, bound and count."""

from collections.abc import Sequence
from typing import Any

from app.promotions.decision import Assessment, ConditionState, StepOutcome, count_requests
from app.tables import Promotion
from serving.gateway.traffic.counts import TrafficCounts
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError


class PromotionRolledBack(TunesmithError):
    code = ErrorCode.promotion_rolled_back


class PromotionStopped(TunesmithError):
    code = ErrorCode.promotion_stopped


class PromotionUndecided(TunesmithError):
    code = ErrorCode.promotion_undecided


def explain_outcome(
    promotion: Promotion,
    measured: dict[str, Any],
    assessments: Sequence[Assessment],
    outcome: StepOutcome,
    candidate: TrafficCounts,
    min_requests: int,
) -> str:
    """Return why a step has not passed."""
    where = (
        f"In step {promotion.step + 1} (share {measured['share']:g}) of {promotion.alias!r}, after "
        f"{measured['seconds']:.0f} s"
    )
    if outcome is StepOutcome.violated:
        found = [one for one in assessments if one.state is ConditionState.violated]
        return f"{where}: " + "; ".join(f"{one.condition}: {one.message}" for one in found) + "."
    open_ones = [one for one in assessments if one.state is ConditionState.undecided]
    parts = [f"{one.condition}: {one.message}" for one in open_ones]
    if (n := count_requests(candidate)) < min_requests:
        parts.insert(0, f"{n} of the {min_requests} requests that the step needs were served")
    return f"{where}, there is no decision: " + "; ".join(parts) + "."


def build_error(
    kind: type[TunesmithError],
    reason: str,
    promotion: Promotion,
    details: dict[str, Any],
    *,
    keeps: bool,
    restored: bool,
) -> TunesmithError:
    """Return the error of a promotion that has failed; `keeps` says that the alias shall stay as it is."""
    before, url = promotion.version_before, f"POST /api/v1/aliases/{promotion.alias}/rollback"
    if restored:
        ending = f"The alias has the targets of version {before} again."
        hint = "The values are in the run's error and events. A retry begins from the first step."
    elif keeps:
        ending = "The alias keeps the share of this step."
        hint = f"Roll back: {url} with version {before}; or move the alias by hand."
    else:
        ending = f"The alias keeps the share of this step, because no target of version {before} is ready."
        hint = "Deploy a model that works, and point the alias at it."
    return kind(f"{reason} {ending}", hint, details)
