"""Goal: the error of a field that does not exist names those that it may mean, in nested configs too."""

from typing import Any

import pytest
from pydantic import ValidationError

from app.http.error_responses import list_field_errors
from app.jobs.schemas import JobCreate


@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        ({"learnig_rate": 1e-4}, "learnig_rate", "Did you mean learning_rate?"),
        ({"tuning": {"rnak": 8}}, "tuning.rnak", "Did you mean rank?"),
        ({"tuning": {"kind": "lora"}}, "tuning.kind", "The fields are method, rank, alpha, "),
        ({"rank": 8}, "rank", "Did you mean tuning.rank?"),
        ({"zzz": 1}, "zzz", "The nearest ones are "),
        ({"base": {"stge": "sft"}}, "base.stge", "Did you mean stage?"),
    ],
    ids=str,
)
def test_an_unknown_field_names_the_nearest_ones(changes: dict[str, Any], field: str, expected: str) -> None:
    body = {"name": "job", "stages": [{"stage": "sft", "base": "b", "dataset": "d"} | changes]}
    with pytest.raises(ValidationError) as error:
        JobCreate.model_validate(body)
    faults = [fault | {"loc": ("body", *fault["loc"])} for fault in error.value.errors()]
    messages = {fault["field"]: fault["message"] for fault in list_field_errors(faults, body)}
    message = messages[f"stages.0.{field}"]
    assert message.startswith(f"There is no such field. {expected}") and not message.endswith("?.")


def test_other_errors_of_the_same_config_keep_their_messages() -> None:
    stage = {"stage": "sft", "base": "b", "dataset": "d", "batch_size": "x", "epoch": 3, "precision": "fp8"}
    with pytest.raises(ValidationError) as error:
        JobCreate.model_validate({"name": "job", "stages": [stage]})
    kinds = {fault["loc"][-1]: fault["type"] for fault in error.value.errors()}
    assert kinds == {"batch_size": "int_type", "epoch": "unknown_field", "precision": "enum"}
