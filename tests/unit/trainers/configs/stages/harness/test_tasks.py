"""The fields of a user's task for lm-eval: what is accepted, and that nothing else is."""

from typing import Any

import pytest
from pydantic import ValidationError

from trainers.configs import LmEvalConfig, parse_stage

TASK = """
task: sums
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
filter_list:
  - name: strict-match
    filter:
      - {function: regex, regex_pattern: "#### (-?[0-9]+)"}
      - {function: take_first}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 32, do_sample: false, temperature: 0.0}
metadata: {version: 1.0}
"""


def parse(*tasks: Any, **more: Any) -> LmEvalConfig:
    config = parse_stage({"stage": "lm_eval", "model": "starter", "tasks": list(tasks), **more})
    assert isinstance(config, LmEvalConfig)
    return config


def own(text: Any) -> dict[str, Any]:
    return {"definition": text, "data": [{"split": "test", "dataset": "sums"}]}


def test_a_stock_task_is_a_name_and_an_own_one_is_the_text_of_a_task_file() -> None:
    config = parse("gsm8k", own(TASK))
    assert [task.label for task in config.tasks] == ["gsm8k", "sums"]
    assert config.needs_hub
    assert not parse(own(TASK)).needs_hub


@pytest.mark.parametrize(
    ("added", "reason"),
    [
        ("process_docs: !function utils.process_docs", "is not plain YAML"),
        ("x: !!python/object/apply:os.system ['id']", "is not plain YAML"),
        ("dataset_path: json", "dataset_path"),
        ("dataset_kwargs: {data_files: /etc/passwd}", "dataset_kwargs"),
        ("include: /etc/passwd", "include"),
        ("class: !function task.Own", "is not plain YAML"),
        ("unsafe_code: true", "unsafe_code"),
        ("process_results: utils.f", "process_results"),
        ("use_prompt: promptsource:*", "use_prompt"),
        ("custom_dataset: os.system", "custom_dataset"),
        ("fewshot_config: {sampler: first_n}", "fewshot_config"),
        ('description: "{{ cycler }}"', "description is not a template"),
        ("repeats: 1000000", "repeats"),
        ("a: &a [1]\nb: *a", "contains an alias"),
        ("x: " + "[" * 30_000, "nested more than 16 deep"),
        ("# " + "x" * 70_000, "together they may have 32,768"),
    ],
)
def test_a_field_that_reaches_code_or_files_is_refused(added: str, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        parse(own(TASK + added))


@pytest.mark.parametrize("metric", ["code_eval", "sacrebleu", "/tmp/metric.py", "acc"])
def test_a_metric_that_lm_eval_would_fetch_or_that_does_not_fit_is_refused(metric: str) -> None:
    with pytest.raises(ValidationError, match="metric"):
        parse(own(TASK.replace("exact_match", metric)))


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ({}, "give either task"),
        ({"task": "gsm8k"} | own(TASK), "give either task"),
        ({"definition": TASK}, "data is missing"),
        ("../../etc/passwd", "pattern"),
        ("/tmp/evil.yaml", "pattern"),
        (
            {"task": "gsm8k", "data": [{"split": "test", "dataset": "a"}] * 2},
            "each split of data occurs once",
        ),
    ],
)
def test_a_task_without_name_or_with_a_path_is_refused(task: Any, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        parse(task)


def test_only_backends_that_use_an_engine_need_one() -> None:
    config = parse("gsm8k", engine="vllm")
    assert (config.uses_engine, config.capability) == (False, None)
    config = parse("gsm8k", engine="vllm", backend="completions")
    assert (config.uses_engine, config.capability) == (True, "vllm")
    with pytest.raises(ValidationError, match="chat_template must be true"):
        parse("gsm8k", backend="chat_completions", chat_template=False)
