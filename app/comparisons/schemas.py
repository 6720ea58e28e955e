"""Requests and responses of the endpoints of comparisons."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from app.jobs.schemas import JobName
from app.tables import Comparison
from trainers.configs import Config, Queue
from trainers.configs.base import NonEmpty
from trainers.configs.stages.evaluations.compare import MAX_COMPARED_METRICS, MAX_EVALUATIONS
from trainers.evaluation.results import EvaluationResult


class ComparisonCreate(Config):
    """Evaluations to compare. A worker pairs their rows, because that needs a library of statistics."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "evaluations": [
                        "evaluation_06e5w3p4hq9xk2m7rbntdvz8cy",
                        "evaluation_06e5w3n1aj8yd5s6gfkhmpqr0w",
                    ]
                }
            ]
        }
    )

    evaluations: list[NonEmpty] = Field(
        min_length=2,
        max_length=MAX_EVALUATIONS,
        description="Ids of evaluations; the first one is compared with each other one.",
    )
    metrics: list[NonEmpty] | None = Field(
        None,
        min_length=1,
        max_length=MAX_COMPARED_METRICS,
        description="Names of the metrics to compare; by default all that the evaluations have in common.",
    )
    name: JobName | None = Field(None, description="Name of the job.")
    queue: Queue | None = Field(None, description="Hardware to run on; by default a CPU.")


class ComparisonSummaryView(BaseModel):
    """A comparison in a list."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(description="Id of the comparison, `comparison_…`.")
    job_id: str = Field(description="Id of its job.")
    run_id: str = Field(description="Id of the run that computed it.")
    evaluations: list[str] = Field(
        description="Ids of the evaluations, the first one compared with the others; an evaluation of an "
        "earlier stage of the same job is `<stage>:<role>`."
    )
    n: int = Field(description="Number of rows that they have in common.")
    created_at: datetime = Field(description="When the run ended.")


class ComparisonView(ComparisonSummaryView):
    """A comparison with its result."""

    result: EvaluationResult = Field(description="Scores on the common rows, differences and warnings.")
    size_bytes: int = Field(description="Size of its rows and reports.")


def comparison_view(comparison: Comparison) -> ComparisonView:
    """Build the view of a comparison."""
    return ComparisonView.model_validate(comparison.model_dump(exclude={"artifact", "sha256"}))
