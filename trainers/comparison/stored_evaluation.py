"""A stored evaluation that a comparison reads: one model of the folder that an `evaluate` run has left."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from pydantic import ValidationError

from trainers.configs.stages.evaluations.compare import EvaluationFolder, StageEvaluation
from trainers.evaluation.results import EvaluationResult, ModelScores, Score
from trainers.evaluation.row_index import INDEX, ROWS, IndexedRow, StoredRow, read_index, read_stored_rows
from trainers.runtime import run_dir as files
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ConfigInvalid, ProgramError

HINT = "Name the folder `evaluation` of the run directory of an `evaluate` stage, and a model's role in it."


class EvaluationUnreadable(ProgramError):
    code = ErrorCode.evaluation_not_found


@dataclass(frozen=True)
class StoredEvaluation:
    """One model of a stored evaluation."""

    label: str
    folder: Path
    result: EvaluationResult
    model: ModelScores
    index: list[IndexedRow]

    @property
    def scores(self) -> dict[str, Score]:
        """The scores by the name of their metric."""
        return {score.metric: score for score in self.model.scores}

    def read_rows(self, indexed: Sequence[IndexedRow]) -> list[StoredRow]:
        """Read these rows."""
        return read_stored_rows(self.folder / ROWS, indexed)


def load_evaluation(reference: str | StageEvaluation | EvaluationFolder) -> StoredEvaluation:
    """Return the evaluation; raises ConfigInvalid if only a job can resolve it, or EvaluationUnreadable."""
    if not isinstance(reference, EvaluationFolder):
        raise ConfigInvalid(f"The evaluation {reference} is one that only a job can resolve.", HINT)
    folder = Path(reference.folder)
    try:
        result = EvaluationResult.model_validate_json((folder / files.RESULT).read_bytes())
        index = list(read_index(folder / INDEX))
    except (OSError, ValidationError, msgspec.MsgspecError) as error:
        raise EvaluationUnreadable(
            f"The evaluation {reference.label} cannot be read: {error}", HINT
        ) from error
    model = next((model for model in result.models if model.role == reference.role), None)
    if model is None:
        roles = ", ".join(model.role for model in result.models)
        raise EvaluationUnreadable(
            f"The evaluation {reference.label} has no model {reference.role!r}; it has {roles}.", HINT
        )
    return StoredEvaluation(reference.label, folder, result, model, index)
