"""What the stages of a job need: resolved when it is posted, so that every stage can start at some time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from app.http.errors import UnprocessableContent, field_error
from app.tables import RequiredEnd
from trainers.configs import GateConfig, GateOutcome, SelectConfig
from trainers.configs.stage_config import AnyStage


@dataclass(frozen=True)
class StageNeed:
    """An earlier stage that a stage needs, and how that one must have ended."""

    name: str
    required_status: RequiredEnd = RequiredEnd.succeeded


@dataclass(frozen=True)
class ResolvedNeeds:
    """What a stage needs."""

    direct: tuple[StageNeed, ...] = ()
    upstream: frozenset[str] = frozenset()
    """Names of the stages that it needs directly or through others: their outputs exist when it starts."""
    outcomes: frozenset[tuple[str, GateOutcome]] = frozenset()
    """The outcomes of gates after which it runs."""
    errors: list[UnprocessableContent] = field(default_factory=list)


def stage_name(stage: AnyStage) -> str:
    """Return the name of a stage, which is its kind unless it has one."""
    return stage.name or stage.stage


def resolve_needs(
    stages: Sequence[AnyStage], position: int, earlier: Mapping[str, ResolvedNeeds]
) -> ResolvedNeeds:
    """Resolve what a stage needs: by default the stage before it.

    `earlier` contains the resolved needs of the stages before this one, by name.
    """
    stage = stages[position]
    errors: list[UnprocessableContent] = []
    if stage.needs is None:
        names = [stage_name(other) for other in stages[max(position - 1, 0) : position]]
    else:
        names = list(dict.fromkeys(stage.needs))
        for index, name in enumerate(stage.needs):
            if (reason := _explain_unusable(stages, position, index)) is not None:
                errors.append(field_error(f"stages.{position}.needs.{index}", reason))
                names = [other for other in names if other != name]
    # A stage before this one can only be missing here if its name is taken, which is an error of its own.
    known = [earlier[name] for name in names if name in earlier]
    gates = [stage_name(other) for other in stages[:position] if isinstance(other, GateConfig)]
    own = [name for name in names if name in gates]
    outcomes = {(name, stage.when) for name in own}.union(*(each.outcomes for each in known))
    if stage.when is GateOutcome.not_met and len(own) != 1:
        found = ", ".join(own) or "none"
        message = f"`not_met` requires exactly one gate in `needs`; it contains {found}."
        errors.append(field_error(f"stages.{position}.when", message))
    for gate in gates:
        if {(gate, outcome) for outcome in GateOutcome} <= outcomes:
            message = f"This stage can never start: it needs stages of both outcomes of the gate {gate!r}."
            errors.append(field_error(f"stages.{position}.needs", message))
    return ResolvedNeeds(
        direct=tuple(StageNeed(name, _required_end(stage, name, name in gates)) for name in names),
        upstream=frozenset(names).union(*(each.upstream for each in known)),
        outcomes=frozenset(outcomes),
        errors=errors,
    )


def _required_end(stage: AnyStage, name: str, is_gate: bool) -> RequiredEnd:
    if isinstance(stage, SelectConfig) and any(name == each.stage for each in stage.tries):
        return RequiredEnd.finished
    not_met = is_gate and stage.when is GateOutcome.not_met
    return RequiredEnd.failed if not_met else RequiredEnd.succeeded


def _explain_unusable(stages: Sequence[AnyStage], position: int, index: int) -> str | None:
    """Return why a stage cannot need the one that `needs[index]` names, or None."""
    stage = stages[position]
    name = (stage.needs or [])[index]
    if name in (stage.needs or [])[:index]:
        return f"{name!r} is listed twice."
    earlier = [stage_name(other) for other in stages[:position]]
    if name in earlier:
        return None
    if name == stage_name(stage):
        return f"{name!r} is this stage itself."
    if name in (stage_name(other) for other in stages[position + 1 :]):
        return f"The stage {name!r} comes after this one: move it before this one."
    return f"No stage is called {name!r}. Stages before this one: {', '.join(earlier) or 'none'}."
