"""Scores by COMET agree with the comet package's own prediction, and a model that runs code is refused.

It needs the environment of `make comet`: set TUNESMITH_COMET_ENVIRONMENT to its folder. The model has random
weights; no package contains trained ones.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.shared_data import SharedData, write_stand_in
from trainers.configs.metrics.translation import Comet
from trainers.metrics.metric import EvaluatedRow, MetricValues
from trainers.metrics.translation.comet import CometMetric, CometModelRefused

ENVIRONMENT = os.environ.get("TUNESMITH_COMET_ENVIRONMENT")
HELPER = Path(__file__).with_name("tiny_comet.py")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(ENVIRONMENT is None, reason="no environment of COMET: run `make comet`"),
]


def run_helper(*arguments: str) -> None:
    subprocess.run(
        [f"{ENVIRONMENT}/bin/python", "-I", str(HELPER), *arguments], check=True, capture_output=True
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comet")
    news = write_stand_in(folder / "data").news
    corpus = folder / "corpus.txt"
    lines = [news / name for name in ("train.ko", "train.en")]
    alphabet = "".join(chr(code) for code in [*range(33, 127), *range(0xAC00, 0xAC00 + 400)])
    corpus.write_text("\n".join([*(path.read_text() for path in lines), *alphabet]))
    run_helper("create", str(corpus), str(folder / "tiny"))
    return folder / "tiny"


@pytest.fixture
def own(model: Path, tmp_path: Path) -> Path:
    """Return a copy of the model that a test may change."""
    return Path(shutil.copytree(model, tmp_path / "tiny"))


def read_rows(data: SharedData) -> list[EvaluatedRow]:
    sources, references = (
        (data.news / f"test.{name}").read_text("utf-8").splitlines()[:40] for name in ("ko", "en")
    )
    return [
        make_row(row, source, reference)
        for row, (source, reference) in enumerate(zip(sources, references, strict=True), start=1)
    ]


def make_row(row: int, source: str, reference: str) -> EvaluatedRow:
    """Return a row whose response lacks the last two words of the reference."""
    response = " ".join(reference.split()[:-2])
    return EvaluatedRow(row, [{"role": "user", "content": source}], reference, (response,))


ROWS = [make_row(1, "고양이가 앉았다.", "The cat sat on the mat."), make_row(2, "개.", "A dog and a cat.")]


def score(model: Path, rows: list[EvaluatedRow], **options: Any) -> MetricValues:
    values = {"checkpoint": str(model), "environment": ENVIRONMENT, "clean": False, **options}
    return CometMetric(Comet.model_validate(values)).score(rows)


def test_scores_are_those_of_the_comet_package(model: Path, shared_data: SharedData, tmp_path: Path) -> None:
    rows = read_rows(shared_data)
    ours = score(model, rows, batch_size=7)
    request = tmp_path / "request.jsonl"
    samples = [{"src": row.source, "mt": row.response, "ref": row.reference} for row in rows]
    request.write_text("".join(f"{json.dumps(sample)}\n" for sample in samples))
    run_helper("predict", str(model), str(request), str(tmp_path / "theirs.json"))
    theirs = json.loads((tmp_path / "theirs.json").read_text())
    assert ours.row_values == pytest.approx(theirs, abs=1e-6)
    assert len(set(theirs)) > 5 and ours.value == pytest.approx(sum(theirs) / len(theirs), abs=1e-6)
    assert "unbabel-comet:2.2.7" in ours.signature and "transformers:" in ours.signature


def test_safetensors_score_as_the_checkpoint_and_have_a_hash_of_their_own(own: Path) -> None:
    import torch
    from safetensors.torch import save_file

    first = score(own, ROWS)
    state = torch.load(own / "checkpoints" / "model.ckpt", weights_only=True)["state_dict"]
    tensors = {name: tensor.clone() for name, tensor in state.items()}
    save_file(tensors, own / "checkpoints" / "model.safetensors")
    (own / "checkpoints" / "model.ckpt").unlink()
    second = score(own, ROWS)
    assert second.row_values == first.row_values and second.signature != first.signature


def test_model_that_runs_code_is_refused_and_runs_nothing(own: Path) -> None:
    import pickle

    marker = own / "executed"

    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {marker}",)

    checkpoint, hparams = own / "checkpoints" / "model.ckpt", own / "hparams.yaml"
    good = hparams.read_text()
    for text in (f"x: !!python/object/apply:os.system ['touch {marker}']\n{good}", "[1, 2"):
        hparams.write_text(text)
        with pytest.raises(CometModelRefused, match="not plain YAML"):
            score(own, ROWS)
    for change in ({"class_identifier": "xcomet_metric"}, {"encoder_model": "evil"}):
        hparams.write_text(yaml.safe_dump(yaml.safe_load(good) | change))
        with pytest.raises(CometModelRefused):
            score(own, ROWS)
    hparams.write_text(good)
    checkpoint.write_bytes(pickle.dumps({"state_dict": Evil()}))
    with pytest.raises(CometModelRefused, match="as tensors alone"):
        score(own, ROWS)
    checkpoint.unlink()
    with pytest.raises(CometModelRefused, match=r"model\.ckpt is missing"):
        score(own, ROWS)
    assert not marker.exists()
