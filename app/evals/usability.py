"""Why an eval cannot judge new runs here: it comes from OpenAI, or the settings have changed."""

from pydantic import ValidationError
from sqlmodel import Session

from app.deployments.served_models import explain_missing_model
from app.evals.imports.schemas import UnusableCriterion
from app.graders.service import parse_grader
from app.settings import Settings
from app.tables import Eval
from trainers.configs.metrics import MAX_METRICS
from trainers.configs.parsing.json_schema import compile_schema
from trainers.configs.references import find_served_models

SOURCES = frozenset({"custom", "logs", "stored_completions"})


def list_unusable(session: Session, definition: Eval, settings: Settings) -> list[UnusableCriterion]:
    """Return the criteria by which no new run can judge, and `data_source_config` if its source cannot be."""
    found = []
    config = definition.data_source_config
    source = str(config.get("type"))
    if reason := _explain_source(definition, source):
        found.append(UnusableCriterion(name="data_source_config", type=source, reason=reason))
    if not 0 < len(definition.testing_criteria) <= MAX_METRICS:
        reason = f"it has {len(definition.testing_criteria)} graders; a run has 1 to {MAX_METRICS}"
        found.append(UnusableCriterion(name="testing_criteria", type="", reason=reason))
    for criterion in definition.testing_criteria:
        if reason := _explain_criterion(session, criterion, settings):
            name, kind = (str(criterion.get(field, ""))[:200] for field in ("name", "type"))
            found.append(UnusableCriterion(name=name, type=kind, reason=reason))
    return found


def _explain_source(definition: Eval, source: str) -> str | None:
    if source not in SOURCES:
        return f"the source {source[:100]!r} is unknown; known are: {', '.join(sorted(SOURCES))}"
    if not isinstance(definition.data_source_config.get("metadata") or {}, dict):
        return "metadata is not an object"
    try:
        compile_schema(definition.data_source_config.get("item_schema", {}))
    except ValueError as error:
        return str(error)
    return None


def _explain_criterion(session: Session, criterion: dict[str, object], settings: Settings) -> str | None:
    try:
        grader = parse_grader(criterion, settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        message = first["msg"].removeprefix("Value error, ")
        return f"{place}: {message}" if place else message
    except ValueError as error:
        return str(error)
    faults = (
        explain_missing_model(session, model, settings, path) for path, model in find_served_models(grader)
    )
    fault = next((fault for fault in faults if fault is not None), None)
    if fault is None:
        return None
    model = criterion.get("model")
    return f"{fault} TUNESMITH_GRADER_MODELS can name another model for {model!r}." if model else fault
