"""References are found at any depth of a config and replaced without parsing it again."""

from trainers.configs import AdaptedModel, PreflightConfig, SftConfig, StageDataset, parse_stage
from trainers.configs.references import DatasetField, ModelField, find_references, replace_references

PREFLIGHT = {
    "stage": "preflight",
    "target": {
        "stage": "sft",
        "base": {"stage": "earlier"},
        "dataset": "rows",
        "held_out": ["one", {"stage": "data", "part": "test"}],
    },
}


def test_references_are_found_with_their_paths() -> None:
    found = {reference.path: reference for reference in find_references(parse_stage(PREFLIGHT))}
    assert list(found) == ["target.base", "target.dataset", "target.held_out.0", "target.held_out.1"]
    assert isinstance(found["target.base"], ModelField) and isinstance(found["target.dataset"], DatasetField)
    assert found["target.held_out.1"].value == StageDataset(stage="data", part="test")
    assert found["target.held_out.1"].name == "held_out"


def test_a_filter_inside_a_list_is_searched() -> None:
    stage = {"stage": "prepare", "dataset": "rows", "filters": [{"kind": "held_out", "not_in": ["test"]}]}
    assert [ref.path for ref in find_references(parse_stage(stage))] == ["dataset", "filters.0.not_in.0"]


def test_replacing_a_reference_leaves_the_original_and_all_other_fields() -> None:
    config = parse_stage(PREFLIGHT)
    adapted = AdaptedModel(base="/models/base", adapter="/models/adapter")
    replaced = replace_references(config, {"target.base": adapted, "target.held_out.0": "/data/one.jsonl"})
    assert isinstance(config, PreflightConfig) and isinstance(replaced, PreflightConfig)
    assert isinstance(replaced.target, SftConfig)
    assert replaced.target.base == adapted
    assert replaced.target.held_out == ["/data/one.jsonl", StageDataset(stage="data", part="test")]
    assert config == parse_stage(PREFLIGHT)
    changed = {"base", "held_out"}
    assert replaced.target.model_dump(exclude=changed) == config.target.model_dump(exclude=changed)
