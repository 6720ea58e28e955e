"""The child that scores by COMET is bounded, gets no secret, and its errors say what to do.

Stand-in interpreters take the place of COMET's environment; tests/integration/trainers/test_comet.py uses the
real one.
"""

import json
from pathlib import Path

import pytest

from trainers.configs.metrics.translation import Comet
from trainers.configs.stages.evaluate import EvaluateConfig
from trainers.evaluate import plan
from trainers.evaluation.scored_rows import load_scored_rows
from trainers.metrics.metric import EvaluatedRow
from trainers.metrics.translation.comet import (
    CometFailed,
    CometMetric,
    CometModelRefused,
    CometUnavailable,
)


def request(source: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Korean to English:\n{source}"}]


ROWS = [
    EvaluatedRow(1, request("고양이."), "A cat.", ("Translation: Cat",)),
    EvaluatedRow(2, request("개."), "A dog.", (None,)),
]
ABOUT = {"model_sha256": "ab12", "versions": {"unbabel-comet": "2.2.7"}, "device": "cpu"}


def metric(folder: Path, script: str, **options: float) -> CometMetric:
    """Return the metric with a shell script as interpreter: `$4` is the request, `$5` the response."""
    python = folder / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    (folder / "model").mkdir()
    (folder / "model" / "hparams.yaml").write_text("class_identifier: regression_metric\n")
    values = {"checkpoint": str(folder / "model"), "environment": str(folder / "environment"), **options}
    return CometMetric(Comet.model_validate(values))


def test_scores_are_those_of_the_program_with_hash_and_versions(tmp_path: Path) -> None:
    lines = "".join(f"{json.dumps(line)}\\n" for line in (ABOUT, {"score": 0.5}, {"score": 0.25}))
    values = metric(tmp_path, f'cp "$4" {tmp_path}/request; printf \'{lines}\' > "$5"').score(ROWS)
    assert (values.value, values.row_values) == (0.375, [0.5, 0.25])
    assert values.signature == "comet|model:model|sha256:ab12|unbabel-comet:2.2.7|cleaning:1"
    requests = [json.loads(line) for line in (tmp_path / "request").read_text().splitlines()]
    assert requests == [
        {"src": "고양이.", "mt": "Cat", "ref": "A cat."},
        {"src": "개.", "mt": "", "ref": "A dog."},
    ]


def test_program_gets_no_secret_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", "postgresql://secret")
    with pytest.raises(CometFailed):
        metric(tmp_path, f"env > {tmp_path}/environ; exit 1").score(ROWS)
    environment = (tmp_path / "environ").read_text()
    assert "secret" not in environment and "HF_HUB_OFFLINE=1" in environment


def test_program_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(CometFailed, match=r"within 0\.2 s"):
        metric(tmp_path, "exec sleep 60", max_seconds=0.2).score(ROWS)


@pytest.mark.parametrize(
    ("script", "error", "words"),
    [
        ("echo 'noise' >&2; echo 'its checkpoint lacks 3 tensors' >&2; exit 3", CometModelRefused, "lacks 3"),
        ("echo 'numpy: MemoryError' >&2; exit 1", CometFailed, "needs more than"),
        ("echo 'ImportError: no comet' >&2; exit 1", CometFailed, "no comet"),
        ("kill -9 $$", CometFailed, "exit status -9"),
        ("exit 0", CometFailed, "wrote no scores"),
        ("echo '{}' > \"$5\"", CometFailed, "wrote no scores"),
    ],
)
def test_failure_is_reported_with_its_reason(
    tmp_path: Path, script: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        metric(tmp_path, script).score(ROWS)


def test_missing_environment_or_model_is_reported_before_anything_is_generated(tmp_path: Path) -> None:
    with pytest.raises(CometUnavailable) as missing:
        CometMetric(Comet(checkpoint=str(tmp_path))).check_host(ROWS)
    assert "`make comet`" in str(missing.value.hint) and "TUNESMITH_COMET" in str(missing.value.hint)
    with pytest.raises(CometUnavailable, match="python is missing"):
        CometMetric(Comet(checkpoint=str(tmp_path), environment=str(tmp_path))).check_host(ROWS)
    scorer = metric(tmp_path, "exit 1")
    scorer.check_host(ROWS)
    (tmp_path / "model" / "hparams.yaml").unlink()
    with pytest.raises(CometModelRefused, match=r"has no hparams\.yaml") as refused:
        scorer.check_host(ROWS)
    assert "hparams.yaml, checkpoints/" in str(refused.value.hint)


def test_only_the_program_that_evaluates_needs_the_environment(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "Korean to English:\n고양이.", "completion": "A cat."}) + "\n")
    stage = {"stage": "evaluate", "model": "org/model", "dataset": str(rows)}
    config = EvaluateConfig.model_validate(stage | {"metrics": [{"metric": "comet", "checkpoint": "/comet"}]})
    assert config.capability == "comet"
    # A host that trains checks the rows of later stages, which may run on another one.
    assert len(load_scored_rows(config)) == 1
    with pytest.raises(CometUnavailable):
        plan(config)
