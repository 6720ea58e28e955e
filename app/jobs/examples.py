"""Job specs in the documentation of POST /jobs: one that works at once, worked cases, and each stage."""

import json
from pathlib import Path
from typing import Any

from trainers.configs import StageKind

ARITHMETIC_JOB: dict[str, Any] = {
    "name": "arithmetic",
    "labels": {"team": "maths"},
    "stages": [
        {
            "stage": "sft",
            "base": "starter",
            "dataset": "arithmetic-train",
            "tuning": {"method": "lora"},
            "max_steps": 120,
            "batch_size": 32,
            "learning_rate": 0.002,
        },
        {
            "stage": "evaluate",
            "model": {"stage": "sft"},
            "baseline": "starter",
            "dataset": "arithmetic-test",
            "max_new_tokens": 32,
        },
        {"stage": "deploy", "model": {"stage": "sft"}, "deployment": "arithmetic"},
    ],
}

CASE_FOLDER = Path(__file__).parent / "cases"
SIZES = {
    "tiny": "with the starter model on a CPU",
    "mac": "on a Mac with Apple silicon",
    "gpu-24gb": "on one GPU with 24 GB",
    "gpu-80gb": "on one GPU with 80 GB",
}
CASE_SUMMARIES = {
    "translation": "Korean-English translation, from aligned files to a deployment behind a gate",
    "maths": "maths by SFT, DPO and GRPO, with a gate after each",
}


def load_case(name: str) -> dict[str, Any]:
    """Return the job spec of a worked case, such as `translation-tiny`."""
    spec: dict[str, Any] = json.loads((CASE_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return spec


_SHORT_SFT: dict[str, Any] = {
    "stage": "sft",
    "base": "starter",
    "dataset": "arithmetic-train",
    "max_steps": 60,
}
_VALIDATED_SFT: dict[str, Any] = {**_SHORT_SFT, "validation_dataset": "arithmetic-test"}
_ON_POLICY_PAIRS: dict[str, Any] = {
    "stage": "prepare",
    "name": "pairs",
    "base": "starter",
    "dataset": "arithmetic-train",
    "recipe": {"kind": "on_policy_pairs", "max_rows": 100, "max_new_tokens": 24},
}
# The stages of a job for each kind of stage; some read the result of a stage before them.
STAGES: dict[str, list[dict[str, Any]]] = {
    "prepare": [
        {
            "stage": "prepare",
            "dataset": "arithmetic-train",
            "filters": [{"kind": "duplicates"}],
            "split": {"validation": 100},
        }
    ],
    "sft": [_SHORT_SFT],
    "dpo": [
        _ON_POLICY_PAIRS,
        {"stage": "dpo", "base": "starter", "dataset": {"stage": "pairs"}, "beta": 0.1, "max_steps": 20},
    ],
    "kto": [
        _ON_POLICY_PAIRS,
        {"stage": "kto", "base": "starter", "dataset": {"stage": "pairs"}, "beta": 0.1, "max_steps": 20},
    ],
    "grpo": [
        {
            "stage": "grpo",
            "base": "starter",
            "dataset": "arithmetic-train",
            "rewards": [{"kind": "correctness"}],
            "max_completion_length": 32,
            "max_steps": 20,
        }
    ],
    "distill": [
        _SHORT_SFT,
        {
            "stage": "distill",
            "base": "starter",
            "teacher": {"stage": "sft"},
            "dataset": "arithmetic-train",
            "max_completion_length": 32,
            "learning_rate": 1e-3,
            "max_steps": 20,
        },
    ],
    "import": [{"stage": "import", "model": "starter"}],
    "merge": [_SHORT_SFT, {"stage": "merge", "model": {"stage": "sft"}}],
    "export": [_SHORT_SFT, {"stage": "export", "model": {"stage": "sft"}}],
    "evaluate": [
        _SHORT_SFT,
        {
            "stage": "evaluate",
            "model": {"stage": "sft"},
            "baseline": "starter",
            "dataset": "arithmetic-test",
            "metrics": ["maths_exact_match", "maths_strict_match"],
            "slices": [{"by": "length"}],
            "max_new_tokens": 32,
        },
    ],
    "compare": [
        {
            "stage": "evaluate",
            "name": "short",
            "model": "starter",
            "dataset": "arithmetic-test",
            "max_rows": 9,
        },
        {
            "stage": "evaluate",
            "name": "long",
            "model": "starter",
            "dataset": "arithmetic-test",
            "max_rows": 9,
            "max_new_tokens": 64,
        },
        {"stage": "compare", "evaluations": [{"stage": "long"}, {"stage": "short"}]},
    ],
    "lm_eval": [
        {
            "stage": "lm_eval",
            "model": "starter",
            "tasks": [
                {
                    "definition": {
                        "task": "arithmetic",
                        "test_split": "test",
                        "doc_to_text": "{{ question }}",
                        "doc_to_target": "{{ answer.split('####')[-1].strip() }}",
                        "filter_list": [
                            {
                                "name": "strict-match",
                                "filter": [
                                    {"function": "regex", "regex_pattern": "#### (-?[0-9]+)"},
                                    {"function": "take_first"},
                                ],
                            }
                        ],
                    },
                    "data": [{"split": "test", "dataset": "arithmetic-test"}],
                }
            ],
            "max_rows": 50,
            "max_new_tokens": 32,
        }
    ],
    "select": [
        {**_VALIDATED_SFT, "name": "low", "learning_rate": 0.001, "needs": []},
        {**_VALIDATED_SFT, "name": "high", "learning_rate": 0.004, "needs": []},
        {
            "stage": "select",
            "tries": [
                {"stage": "low", "values": {"learning_rate": 0.001}},
                {"stage": "high", "values": {"learning_rate": 0.004}},
            ],
            "needs": ["low", "high"],
        },
    ],
    "gate": [
        _SHORT_SFT,
        {
            "stage": "evaluate",
            "model": {"stage": "sft"},
            "baseline": "starter",
            "dataset": "arithmetic-test",
            "max_new_tokens": 32,
        },
        {"stage": "gate", "evaluation": "evaluate", "against": "baseline", "on": "test", "margin": 0.05},
        {"stage": "merge", "model": {"stage": "sft"}},
    ],
    "generate": [{"stage": "generate", "model": "starter", "dataset": "arithmetic-test", "max_rows": 50}],
    "deploy": [{"stage": "deploy", "model": "starter", "deployment": "starter-next"}],
    "promote": [
        {"stage": "deploy", "model": "starter", "deployment": "starter-next"},
        {
            "stage": "promote",
            "alias": "starter-prod",
            "steps": [
                {"share": 0.05, "min_seconds": 600},
                {"share": 0.5, "min_seconds": 600},
                {"share": 1.0, "min_seconds": 60},
            ],
            "conditions": {"max_error_rate": 0.02, "max_error_rate_increase": 0.01, "max_p95_seconds": 5},
            "min_requests": 230,
            "max_seconds": 86_400,
        },
    ],
    "preflight": [
        {
            "stage": "preflight",
            "target": {"stage": "sft", "base": "starter", "dataset": "arithmetic-train"},
            "probe_steps": 5,
        }
    ],
}
SUMMARIES = {
    "prepare": "Filter and split a dataset",
    "sft": "Supervised fine-tuning with a LoRA adapter",
    "dpo": "Direct preference optimization on preference pairs",
    "kto": "Kahneman-Tversky optimization on completions labelled as good or bad",
    "grpo": "Group relative policy optimization with a reward",
    "distill": "On-policy distillation from a stronger teacher",
    "import": "Register a model that was made elsewhere",
    "merge": "Merge an adapter into its base",
    "export": "Write a model in the formats of other programs",
    "evaluate": "Score a model on a dataset, and compare it with others",
    "compare": "Compare evaluations row by row",
    "lm_eval": "Score a model on tasks of the lm-eval harness",
    "select": "Choose the best of several training stages",
    "gate": "Continue only if the tuned model is not worse than its base",
    "generate": "Complete every row of a dataset",
    "deploy": "Serve a model under a name",
    "promote": "Move an alias to the new deployment by growing shares, and roll back if it fails",
    "preflight": "Check a training stage without training",
}

SWEEP_JOB: dict[str, Any] = {
    "name": "sweep",
    "stages": [
        {"stage": "prepare", "name": "data", "dataset": "arithmetic-train", "split": {"validation": 200}},
        {
            **_SHORT_SFT,
            "dataset": {"stage": "data", "part": "train"},
            "validation_dataset": {"stage": "data", "part": "validation"},
            "sweep": {"learning_rate": [0.001, 0.004], "tuning.rank": [4, 16]},
            "sweep_max_seconds": 3600,
        },
        {"stage": "evaluate", "model": {"stage": "sft"}, "baseline": "starter", "dataset": "arithmetic-test"},
    ],
}

MIXTURE_JOB: dict[str, Any] = {
    "name": "mixture",
    "stages": [
        {"stage": "prepare", "name": "rare", "dataset": "arithmetic-test", "split": {"test": 200}},
        {
            "stage": "sft",
            "base": "starter",
            "dataset": [
                {"dataset": "arithmetic-train", "weight": 3},
                {"dataset": {"stage": "rare"}, "rows": 200},
            ],
            "max_steps": 60,
        },
    ],
}

JOB_EXAMPLES: dict[str, Any] = {
    "arithmetic": {
        "summary": "Works at once: tune the starter model, compare it with its base, serve it",
        "value": ARITHMETIC_JOB,
    },
    "mixture": {
        "summary": "Train on a mixture of datasets, by weight or by exact numbers of rows",
        "value": MIXTURE_JOB,
    },
    "sweep": {
        "summary": "Try several values, and keep the model with the lowest validation loss",
        "value": SWEEP_JOB,
    },
}
JOB_EXAMPLES |= {
    f"{case}-{size}": {
        "summary": f"Worked case, {place}: {summary}",
        "value": load_case(f"{case}-{size}"),
    }
    for case, summary in CASE_SUMMARIES.items()
    for size, place in SIZES.items()
}
JOB_EXAMPLES |= {
    kind: {
        "summary": f"Stage {kind}: {SUMMARIES[kind]}",
        "value": {"name": f"{kind} example", "stages": stages},
    }
    for kind, stages in STAGES.items()
}

PREFLIGHT_EXAMPLES: dict[str, Any] = {
    name: example
    for name, example in JOB_EXAMPLES.items()
    if any(StageKind(stage["stage"]).trains for stage in example["value"]["stages"])
}
