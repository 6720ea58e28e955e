"""Checks of gates when a job is posted: a gate that no outcome could pass is refused with its field."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from sqlmodel import Session

from app.evaluations.latest import find_latest_evaluation
from app.http.errors import UnprocessableContent, field_error
from app.jobs.graph.gate_power import list_gate_warnings
from app.jobs.graph.gated_evaluation import GatedEvaluation, MetricUnknown, describe_evaluation
from app.jobs.graph.resolved_stage import ResolvedStage
from app.jobs.graph.selection import find_selecting_stage
from app.tables import Evaluation
from trainers.configs import EvaluationFolder, GateBasis, GateConfig, StageEvaluation
from trainers.configs.stages.evaluate import MODEL
from trainers.configs.stages.evaluations.gate import EVALUATION_PREFIX, LatestEvaluation

# Squared quantile of the normal distribution for a 95 % interval (Wilson's).
Z_SQUARED = 1.96**2
# Rows on all of which one model is better, and with which the evidence of a sequential test reaches 20.
MIN_SEQUENTIAL_ROWS = 9


def check_gate(
    session: Session, resolved: ResolvedStage, gate: GateConfig, path: str, earlier: Sequence[ResolvedStage]
) -> tuple[ResolvedStage, list[UnprocessableContent]]:
    """Return the gate with its warnings, and an error for each field with which it could not be met."""
    checker = GateChecker(session, gate, path, earlier, resolved.resolved_needs.upstream)
    if errors := checker.list_errors():
        return resolved, errors
    warnings = tuple(list_gate_warnings(gate, checker.find_evaluation()))
    return replace(resolved, warnings=warnings), []


class GateChecker:
    """The checks of one gate against the stages before it."""

    def __init__(
        self,
        session: Session,
        gate: GateConfig,
        path: str,
        earlier: Sequence[ResolvedStage],
        upstream: frozenset[str],
    ) -> None:
        """Check a gate against the stages before it; `upstream` are the names of those that it needs."""
        self._session = session
        self._gate = gate
        self._path = path
        self._earlier = {stage.name: stage for stage in earlier}
        self._upstream = upstream

    def list_errors(self) -> list[UnprocessableContent]:
        """Return an error for each field with which the gate could not be met."""
        try:
            evaluation = self.find_evaluation()
        except UnprocessableContent as error:
            return [error]
        if self._gate.on is GateBasis.sequential or evaluation.early_stop is not None:
            return [*self._check_selection(evaluation), *self._check_early_stop(evaluation)]
        return [
            *self._check_selection(evaluation),
            *self._check_row_values(evaluation),
            *(
                self._check_constant(evaluation, float(self._gate.against))
                if isinstance(self._gate.against, float | int)
                else self._check_pair(evaluation)
            ),
        ]

    def find_evaluation(self) -> GatedEvaluation:
        """Return what the gate decides on; raises UnprocessableContent naming the field."""
        gate = self._gate
        if isinstance(gate.evaluation, EvaluationFolder):
            raise field_error(f"{self._path}.evaluation", "Name an earlier stage instead of a folder.")
        return self._find_stage(StageEvaluation(stage=gate.evaluation, role=gate.role), "evaluation", "role")

    def _find_stage(self, reference: StageEvaluation, field: str, role_field: str) -> GatedEvaluation:
        name, path = reference.stage, f"{self._path}.{field}"
        stage = self._earlier.get(name)
        if stage is None:
            names = ", ".join(self._earlier) or "none"
            raise field_error(path, f"No earlier stage is called {name!r}. Stages before this one: {names}.")
        try:
            evaluation = describe_evaluation(stage, self._gate.metric)
        except MetricUnknown as error:
            message = f"Stage {name!r} does not measure {self._gate.metric!r}; it measures {error}."
            raise field_error(f"{self._path}.metric", message) from error
        if evaluation is None:
            raise field_error(path, f"Stage {name!r} is of kind {stage.kind}, which evaluates no model.")
        if name not in self._upstream:
            raise field_error(
                path, f"This stage may start before stage {name!r} has ended: add {name!r} to `needs`."
            )
        self._require_role(evaluation, reference.role, f"{self._path}.{role_field}")
        return evaluation

    @staticmethod
    def _require_role(evaluation: GatedEvaluation, role: str, field: str) -> None:
        if role not in evaluation.models:
            roles = ", ".join(evaluation.models)
            raise field_error(
                field, f"Stage {evaluation.name!r} evaluates no model called {role!r}; it evaluates {roles}."
            )

    def _check_selection(self, evaluation: GatedEvaluation) -> Iterator[UnprocessableContent]:
        """Yield an error if the rows have already selected the model: its score on them is too good."""
        model = evaluation.models[self._gate.role]
        earlier = {name: stage.config for name, stage in self._earlier.items()}
        found = (find_selecting_stage(self._session, model, one, earlier) for one in evaluation.datasets)
        selecting = next((stage for stage in found if stage is not None), None)
        if selecting is not None:
            yield field_error(
                f"{self._path}.evaluation",
                f"The rows of stage {evaluation.name!r} have selected the model: they are the validation "
                f"rows of {selecting}, which keeps the best model. Evaluate it on other rows.",
            )

    def _check_early_stop(self, evaluation: GatedEvaluation) -> Iterator[UnprocessableContent]:
        """Yield an error unless the gate repeats the early stop of the evaluation."""
        gate, stop = self._gate, evaluation.early_stop
        if stop is None:
            message = f"Stage {evaluation.name!r} has no `early_stop`, whose decision the gate would use."
            yield field_error(f"{self._path}.on", message)
        elif gate.on is not GateBasis.sequential:
            message = (
                f"Stage {evaluation.name!r} may stop early, which no other test allows for: set `sequential`."
            )
            yield field_error(f"{self._path}.on", message)
        else:
            repeated = {"metric": evaluation.metric, "against": gate.against, "margin": gate.margin}
            decided = stop.model_dump(include=set(repeated))
            for field, value in repeated.items():
                if value != decided[field]:
                    message = (
                        f"The early stop of stage {evaluation.name!r} has {decided[field]!r}: repeat it here."
                    )
                    yield field_error(f"{self._path}.{field}", message)
            if gate.role != MODEL:
                message = f"The early stop of stage {evaluation.name!r} decides about {MODEL!r}."
                yield field_error(f"{self._path}.role", message)
            rows, is_pair = evaluation.rows, isinstance(gate.against, str)
            if rows is not None and rows < MIN_SEQUENTIAL_ROWS and is_pair and gate.margin <= 0:
                yield self._too_few_rows(rows, MIN_SEQUENTIAL_ROWS)

    def _check_row_values(self, evaluation: GatedEvaluation) -> Iterator[UnprocessableContent]:
        is_constant = isinstance(self._gate.against, float | int)
        if evaluation.has_row_values or (is_constant and self._gate.on is GateBasis.value):
            return
        missing = "has no interval" if is_constant else "cannot be compared row by row"
        yield field_error(
            f"{self._path}.{'on' if is_constant else 'against'}",
            f"{evaluation.metric} is not a mean of the rows' values, so that it {missing}. Decide on: value "
            "against a constant, or use another metric.",
        )

    def _check_constant(self, evaluation: GatedEvaluation, constant: float) -> Iterator[UnprocessableContent]:
        gate, scale, rows = self._gate, evaluation.scale, evaluation.rows
        limit, best = scale.loosen(constant, gate.margin), scale.best
        name, field = evaluation.metric, f"{self._path}.against"
        if best is not None and not scale.is_good(best, limit):
            yield field_error(field, f"No model can reach {limit:g}: the best value of {name} is {best:g}.")
        elif gate.on is GateBasis.bound and scale.is_share and rows is not None:
            # Wilson's interval of rows that are all right.
            low = rows / (rows + Z_SQUARED)
            bound = low if scale.higher_is_better else 1 - low
            if not scale.is_good(bound, limit):
                yield field_error(
                    field,
                    f"No outcome can reach {limit:g}: with {rows:,} rows that are all right, the bound of "
                    f"the 95 % interval is {bound:.3f}. Use more rows, or decide on: value.",
                )

    def _check_pair(self, evaluation: GatedEvaluation) -> Iterator[UnprocessableContent]:
        try:
            self._check_other(evaluation)
        except UnprocessableContent as error:
            yield error
        gate, scale, rows = self._gate, evaluation.scale, evaluation.rows
        is_strict = gate.on is not GateBasis.value
        if scale.high is not None:
            width = scale.high - scale.low
            if -gate.margin > width or (is_strict and -gate.margin == width):
                yield field_error(
                    f"{self._path}.margin",
                    f"No difference of {evaluation.metric} is above {width:g}; a margin of "
                    f"{gate.margin:g} asks for one of more than {-gate.margin:g}.",
                )
        # The smallest p-value that n rows can give is 2 / 2^n, of a mid-p test 1 / 2^n; half of it one-sided.
        needed = {GateBasis.value: 1, GateBasis.bound: 6, GateBasis.test: 5}[gate.on] - int(scale.is_share)
        if rows is not None and rows < needed and gate.margin <= 0:
            yield self._too_few_rows(rows, needed)

    def _too_few_rows(self, rows: int, needed: int) -> UnprocessableContent:
        return field_error(
            f"{self._path}.evaluation",
            f"{rows} row{'' if rows == 1 else 's'} cannot show that one model is better than another "
            f"with 95 % confidence, whatever the outcome: use at least {needed}.",
        )

    def _check_other(self, evaluation: GatedEvaluation) -> None:
        """Raise UnprocessableContent if the evaluation to compare with lacks the metric or the rows."""
        against, field = self._gate.against, f"{self._path}.against"
        if isinstance(against, EvaluationFolder):
            raise field_error(field, "Name the id of an evaluation (`evaluation_…`) instead of a folder.")
        if isinstance(against, LatestEvaluation):
            if find_latest_evaluation(
                self._session, against.deployment, evaluation.metric, evaluation.dataset
            ):
                return
            raise field_error(
                f"{field}.deployment",
                f"No evaluation of the model of deployment {against.deployment!r} measures "
                f"{evaluation.metric} on this dataset: evaluate it first.",
            )
        if isinstance(against, StageEvaluation):
            other = self._find_stage(against, "against.stage", "against.role")
            if other.early_stop is not None:
                raise field_error(
                    f"{field}.stage",
                    f"{other.name!r} may stop early, which no test of two stages allows for.",
                )
            if other.source != evaluation.source:
                raise field_error(
                    f"{field}.stage",
                    f"{other.name!r} evaluates other rows than {evaluation.name!r}: there are no pairs.",
                )
        elif str(against).startswith(EVALUATION_PREFIX):
            self._check_stored(evaluation, str(against), field)
        elif against == self._gate.role:
            raise field_error(field, f"{against!r} is the model itself.")
        else:
            self._require_role(evaluation, str(against), field)

    def _check_stored(self, evaluation: GatedEvaluation, evaluation_id: str, field: str) -> None:
        # The lock makes a request that deletes the evaluation's job wait until this job is visible to it.
        stored = self._session.get(Evaluation, evaluation_id, with_for_update={"read": True})
        if stored is None:
            message = f"There is no evaluation {evaluation_id}. List them with GET /api/v1/evaluations."
            raise field_error(field, message)
        metrics = [score["metric"] for score in stored.scores]
        if evaluation.metric not in metrics:
            message = f"{evaluation_id} does not measure {evaluation.metric}; it measures "
            raise field_error(field, f"{message}{', '.join(metrics)}.")
        if evaluation.dataset is not None and stored.dataset_sha256 != evaluation.dataset.sha256:
            message = f"{evaluation_id} is of another dataset than {evaluation.name!r}: there are no pairs."
            raise field_error(field, message)
