"""A rescue from the command line to its report: two tiny bases, one of which learns what the old model knows.

Slow: each rescue trains and starts two engines. Run it by hand with `make slow`.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import run_platform
from tests.e2e.platform import Platform, wait_until
from tests.openai_stand_in import BASE, KEY, MODEL, OpenaiStandIn
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems

pytestmark = pytest.mark.slow
QUICK = {"max_length": 128, "tuning": {"rank": 4}}


@pytest.fixture(scope="module")
def account() -> Iterator[OpenaiStandIn]:
    account = OpenaiStandIn()
    problems = list(generate_problems(60, ProblemSplit.train, seed=3))
    account.add_model(
        [
            {
                "messages": [
                    {"role": "user", "content": each["question"]},
                    {"role": "assistant", "content": each["answer"]},
                ]
            }
            for each in problems
        ]
    )
    account.answers = {each["question"]: each["answer"] for each in problems}
    yield account
    account.die()


@pytest.fixture(scope="module")
def platform(
    starter: Path, account: OpenaiStandIn, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    settings = {
        "OPENAI_API_KEY": KEY,
        "OPENAI_BASE_URL": account.url,
        "TUNESMITH_OPENAI_MODELS": json.dumps({BASE: "starter"}),
    }
    with run_platform(Platform(tmp_path_factory.mktemp("rescue") / "data", starter, **settings)) as platform:
        platform.start_worker()
        yield platform


def rescue(platform: Platform, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app", "rescue", *arguments]
    return subprocess.run(
        command, cwd=platform.root, env=platform.environment, capture_output=True, text=True, timeout=500
    )


def test_a_model_is_rescued_and_compared(platform: Platform, account: OpenaiStandIn, tmp_path: Path) -> None:
    listed = rescue(platform, "--list")
    assert listed.returncode == 0 and MODEL in listed.stdout and "2027-01-14" in listed.stdout
    arguments = ["--yes", "--max-completion-tokens", "32", "--training", json.dumps(QUICK)]
    arguments += ["--metric", "exact_match", "--report", str(tmp_path / "report")]
    done = rescue(platform, MODEL, *arguments)
    print(done.stdout, done.stderr)
    # A few steps do not teach a tiny base what the old model knows.
    assert done.returncode == 3, done.stderr
    assert "NOT shown to be as good within 0.05, 95 %" in done.stdout
    assert account.asked.total() == 12 == account.sent.total()
    worse = (tmp_path / "report/worse.jsonl").read_text().splitlines()
    view = json.loads((tmp_path / "report/rescue.json").read_text())
    assert len(worse) > 0 and view["comparison"]["other_value"] == 1.0
    assert "<html" in (tmp_path / "report/report.html").read_text()
    assert view["recorded"]["counts"] == {"recorded": 12}
    body = {"model": view["new_model"], "messages": [{"role": "user", "content": "1 + 1"}], "max_tokens": 4}
    # The first request wakes the model.
    request = partial(platform.client.post, "/v1/chat/completions", json=body)
    wait_until(lambda: request().status_code == 200, 120, "the new model does not respond")
    for path in platform.folder.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path
    again = rescue(platform, MODEL, *arguments, "--margin", "1.1")
    assert again.returncode == 0, again.stderr


METHODS: dict[str, dict[str, Any]] = {
    "dpo": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1}}},
    "reinforcement": {
        "type": "reinforcement",
        "reinforcement": {
            "grader": {
                # The tiny base solves nothing, so only a grader with degrees gives a gradient.
                "type": "text_similarity",
                "name": "similar",
                "input": "{{ sample.output_text }}",
                "reference": "{{ item.answer }}",
                "evaluation_metric": "fuzzy_match",
            }
        },
    },
}


@pytest.mark.parametrize("method", METHODS)
def test_other_methods_are_rescued(
    platform: Platform, account: OpenaiStandIn, tmp_path: Path, method: str
) -> None:
    questions = list(account.answers)[:15]
    rows = [make_row(method, question, account.answers[question]) for question in questions]
    name = f"ft:{BASE}:acme:{method}:1"
    account.add_model(rows, fine_tuned_model=name, method=METHODS[method])
    training = QUICK if method == "dpo" else {"max_completion_length": 8, "tuning": {"rank": 4}}
    arguments = ["--yes", "--max-completion-tokens", "16", "--training", json.dumps(training)]
    arguments += ["--margin", "1.1"]
    done = rescue(platform, name, *arguments, "--report", str(tmp_path))
    print(done.stdout, done.stderr)
    # Three scores with degrees are too few for an interval, so nothing is shown by them.
    assert done.returncode == (0 if method == "dpo" else 3), done.stderr
    view = json.loads((tmp_path / "rescue.json").read_text())
    assert view["recorded"]["counts"] == {"recorded": 3} and view["comparison"]["other_value"] == 1.0
    assert (view["comparison"]["agreement"] is None) == (method == "reinforcement")


def make_row(method: str, question: str, answer: str) -> dict[str, Any]:
    prompt = [{"role": "user", "content": question}]
    if method == "reinforcement":
        return {"messages": prompt, "answer": answer}
    return {
        "input": {"messages": prompt},
        "preferred_output": [{"role": "assistant", "content": answer}],
        "non_preferred_output": [{"role": "assistant", "content": "No."}],
    }
