"""The perplexity of an evaluation is the one that transformers computes from the model's own weights."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.integration.serving.conftest import Server
from trainers import evaluate
from trainers.configs import parse_stage
from trainers.configs.stages.evaluate import EvaluateConfig
from trainers.evaluation.reference_scores import score_references
from trainers.evaluation.results import EvaluationResult
from trainers.rendering.render import PromptCompletion
from trainers.runtime import run_dir as files
from trainers.runtime.endpoints import Endpoint
from trainers.runtime.errors import ConfigInvalid
from trainers.runtime.events import EventWriter

ROWS = [("hello", "하나 둘 셋"), ("hello", "열"), ("count", "넷 다섯 여섯 일곱 여덟 아홉 열")]


def nll_of_reference(folder: Path, question: str, answer: str) -> list[float]:
    """Return the negative log-likelihoods of the tokens after the prompt."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    chat = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*chat, {"role": "assistant", "content": answer}], tokenize=False)
    start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    ids = torch.tensor([tokenizer(whole, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        logprobs = torch.log_softmax(model(ids).logits[0, :-1], dim=-1)
    return [-float(logprobs[position - 1, ids[0, position]]) for position in range(start, ids.shape[1])]


def run(engine: Server, tmp_path: Path, **values: Any) -> EvaluationResult:
    dataset = tmp_path / "rows.jsonl"
    dataset.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in ROWS))
    config = parse_stage(
        {
            "stage": "evaluate",
            "model": "base",
            "dataset": str(dataset),
            "metrics": ["perplexity", "exact_match"],
            "max_new_tokens": 2,
            "engines": {"model": {"url": engine.url, "model": "base"}},
            **values,
        }
    )
    assert isinstance(config, EvaluateConfig)
    run_dir = tmp_path / "run"
    run_dir.mkdir(exist_ok=True)
    with EventWriter(run_dir / files.EVENTS) as writer:
        result = evaluate.run(config, run_dir, writer)
    return EvaluationResult.model_validate(result)


def test_perplexity_equals_that_of_transformers_and_is_not_asked_for_twice(
    engine: Server, tiny: Path, tmp_path: Path
) -> None:
    score = run(engine, tmp_path).models[0].scores[0]
    nll = [nll_of_reference(tiny / "base", *row) for row in ROWS]
    n_tokens = sum(map(len, nll))
    assert score.details["tokens"] == n_tokens and not score.higher_is_better
    assert score.value == pytest.approx(math.exp(sum(map(sum, nll)) / n_tokens), rel=1e-4)
    lines = [json.loads(line) for line in (tmp_path / "run" / "rows.jsonl").read_text().splitlines()]
    values = [line["models"]["model"]["values"]["perplexity"] for line in lines]
    assert values == pytest.approx([math.exp(sum(one) / len(one)) for one in nll], rel=1e-4)
    log = (tmp_path / "run" / "responses.jsonl").read_bytes()
    assert run(engine, tmp_path).models[0].scores[0].value == score.value
    assert (tmp_path / "run" / "responses.jsonl").read_bytes() == log


def test_models_that_score_no_prompt_are_refused() -> None:
    stage = {"stage": "evaluate", "dataset": "d", "metrics": ["perplexity"]}
    for values in ({"model": {"field": "old"}}, {"model": "m", "engine": "sglang"}):
        with pytest.raises(ValueError, match="needs an engine that scores the tokens of a prompt"):
            parse_stage(stage | values)


def test_an_engine_without_these_requests_is_named(engine: Server) -> None:
    pair = PromptCompletion(1, [{"role": "user", "content": "q"}], [], None)
    scores = score_references([pair], Endpoint(f"{engine.url}/v2", "base", is_engine=True), 1)
    with pytest.raises(ConfigInvalid, match=r"does not score the tokens of a prompt, .* status 404"):
        list(scores)
