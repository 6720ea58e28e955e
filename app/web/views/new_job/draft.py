"""A job spec that is being written: from the inputs of the form to JSON, and back to inputs.

The name of an input is the letter of its kind and the path in the spec, such as `n:stages.0.epochs`. An empty
input removes the field, so that its default applies. What has no input stays as it is in the JSON.
"""

import json
import math
import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from app.http.errors import UnprocessableContent
from app.http.text_check import find_unstorable
from app.jobs.schemas import MAX_STAGES
from app.web.views.new_job.schema import InputKind, stage_form
from trainers.configs import StageKind
from trainers.configs.parsing.json_schema import is_nested_deeper

Spec = dict[str, Any]
# More than any config has; copies of a value recurse.
MAX_LEVELS = 60
# The output of an earlier stage, in place of its JSON.
REFERENCE = re.compile(r"stage:(?P<stage>[a-z0-9][a-z0-9_-]*)(?:/(?P<part>[a-z]+))?")


class DraftUnreadable(UnprocessableContent):
    """The JSON of a draft cannot be read."""


def parse_json(text: str) -> Spec:
    """Return the spec of a text; raises DraftUnreadable with the line of the error."""
    try:
        spec = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise DraftUnreadable(f"The text is not JSON: {place}.", hint="Correct the named line.") from error
    except (ValueError, RecursionError) as error:
        raise DraftUnreadable(f"The text is not JSON: {error}.", hint="Shorten it.") from error
    if not isinstance(spec, dict):
        raise DraftUnreadable("The text is not a JSON object.", hint="A job spec begins with {.")
    if not _is_storable(spec):
        raise DraftUnreadable(
            "The text is nested too deeply, or contains the character NUL or an unpaired surrogate.",
            hint="Remove it.",
        )
    return spec


def format_json(spec: Spec) -> str:
    """Return a spec as people read it."""
    return json.dumps(spec, ensure_ascii=False, indent=2)


def apply_inputs(spec: Spec, inputs: Mapping[str, list[str]]) -> Spec:
    """Return the spec with the values of the form's inputs."""
    spec = deepcopy(spec)
    changed = _change_kinds(spec, inputs)
    for name, texts in inputs.items():
        letter, colon, path = name.partition(":")
        parts = path.split(".")
        if not colon or letter not in set(InputKind) or any(path.startswith(each) for each in changed):
            continue
        value = _parse(InputKind(letter), texts)
        _remove(spec, parts) if value is None else _set(spec, parts, value)
    for index, stage in _stages(spec):
        if f"stages.{index}." in changed:
            _keep_known(stage)
    return spec


def add_stage(spec: Spec, kind: StageKind) -> Spec:
    """Return the spec with another stage, which uses the output of an earlier one where that is usual."""
    spec = deepcopy(spec)
    stages = spec.setdefault("stages", [])
    stage: Spec = {"stage": kind.value}
    fields = kind.stage.config.model_fields
    trained = [each for _, each in _stages(spec) if (earlier := kind_of(each)) and earlier.trains]
    if trained and "model" in fields:
        stage["model"] = {"stage": trained[-1].get("name") or trained[-1]["stage"]}
        if "baseline" in fields and "base" in trained[-1]:
            stage["baseline"] = trained[-1]["base"]
    if "deployment" in fields and kind is StageKind.deploy:
        stage["deployment"] = "my-model"
    if isinstance(stages, list) and len(stages) < MAX_STAGES:
        stages.append(stage)
    return spec


def remove_stage(spec: Spec, index: int) -> Spec:
    """Return the spec without a stage."""
    spec = deepcopy(spec)
    if isinstance(stages := spec.get("stages"), list) and index < len(stages):
        del stages[index]
    return spec


def shape_of(spec: Spec) -> list[Any]:
    """Return what decides which inputs a form has: kinds of stages, presets and the members of unions."""
    shape: list[Any] = []
    for _, stage in _stages(spec):
        kind = kind_of(stage)
        unions = stage_form(kind, stage).unions if kind else {}
        members = [read_path(stage, (*path, name)) for path, (name, _) in unions.items()]
        shape.append((kind, stage.get("preset"), members))
    return shape


def kind_of(stage: Spec) -> StageKind | None:
    """Return the kind of a stage; None for one that there is not."""
    name = stage.get("stage")
    return StageKind(name) if isinstance(name, str) and name in set(StageKind) else None


def read_path(value: Any, path: tuple[str, ...]) -> Any:
    """Return the value at a path; None where there is none."""
    for part in path:
        if isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict):
            value = value.get(part)
        else:
            return None
    return value


def show_value(kind: InputKind, value: Any) -> str:
    """Return a value as the text of its input."""
    if value is None or kind is InputKind.presets:
        return ""
    if kind is InputKind.choice:
        return json.dumps(value)
    if kind is InputKind.reference and isinstance(value, dict) and (shown := show_reference(value)):
        return shown
    if kind is InputKind.reference and isinstance(value, str) and REFERENCE.fullmatch(value):
        # A name that looks like the output of a stage.
        return json.dumps(value, ensure_ascii=False)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def show_reference(value: Mapping[str, Any]) -> str:
    """Return the output of a stage as people write it, such as `stage:prepare/test`; "" for other objects."""
    if not value.keys() <= {"stage", "part"} or not all(isinstance(each, str) for each in value.values()):
        return ""
    text = f"stage:{value.get('stage', '')}" + (f"/{value['part']}" if "part" in value else "")
    return text if REFERENCE.fullmatch(text) else ""


def _parse_reference(text: str) -> dict[str, str] | None:
    found = REFERENCE.fullmatch(text)
    if found is None:
        return None
    return {name: value for name, value in found.groupdict().items() if value is not None}


def _stages(spec: Spec) -> list[tuple[int, Spec]]:
    """Return the stages that are objects, with their positions."""
    stages = spec.get("stages")
    numbered = enumerate(stages if isinstance(stages, list) else [])
    return [(index, each) for index, each in numbered if isinstance(each, dict)]


def _is_storable(value: Any) -> bool:
    return not is_nested_deeper(value, MAX_LEVELS) and next(find_unstorable(value), None) is None


def _change_kinds(spec: Spec, inputs: Mapping[str, list[str]]) -> list[str]:
    """Set the kinds of stages and the members of unions that differ; return their paths."""
    changed = []
    for index, stage in _stages(spec):
        prefix = f"stages.{index}."
        given = _parse(InputKind.choice, inputs.get(f"c:{prefix}stage", []))
        if given is not None and given != stage.get("stage"):
            stage["stage"] = given
            changed.append(prefix)
        if (kind := kind_of(stage)) is None:
            continue
        for path, (member, default) in stage_form(kind, stage).unions.items():
            place = f"{prefix}{'.'.join(path)}."
            chosen = _parse(InputKind.choice, inputs.get(f"c:{place}{member}", [])) or default
            if f"c:{place}{member}" in inputs and chosen != (read_path(stage, (*path, member)) or default):
                _set(stage, list(path), {member: chosen})
                changed.append(place)
    return changed


def _keep_known(stage: Spec) -> None:
    """Remove the fields that the stage's new kind does not have."""
    if kind := kind_of(stage):
        known = kind.stage.config.model_fields
        for name in [name for name in stage if name not in known]:
            del stage[name]


def _parse(kind: InputKind, texts: list[str]) -> Any:
    """Return the value of an input; None if it is empty. What cannot be read stays text, which is checked."""
    given = [text.strip() for text in texts if text.strip()]
    if not given:
        return None
    if kind is InputKind.presets:
        return given[0] if len(given) == 1 else given
    text = given[-1]
    if kind is InputKind.reference and (reference := _parse_reference(text)):
        return reference
    if kind is InputKind.text or (kind is InputKind.reference and text[0] not in '{["'):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not _is_storable(value):
        return text
    if kind is InputKind.number and (isinstance(value, bool) or not isinstance(value, int | float)):
        return text
    return text if isinstance(value, float) and not math.isfinite(value) else value


def _set(spec: Any, path: list[str], value: Any) -> None:
    for part in path[:-1]:
        following = _step(spec, part)
        if following is None and isinstance(spec, dict):
            following = spec[part] = {}
        spec = following
    if isinstance(spec, dict):
        spec[path[-1]] = value


def _remove(spec: Any, path: list[str]) -> None:
    """Remove a value, and the object around it if it becomes empty."""
    parent = read_path(spec, tuple(path[:-1]))
    # An empty input also shows a null, which overrides the value of a preset.
    if not isinstance(parent, dict) or parent.get(path[-1]) is None:
        return
    del parent[path[-1]]
    if not parent and len(path) > 1:
        _remove(spec, path[:-1])


def _step(value: Any, part: str) -> Any:
    return read_path(value, (part,))
