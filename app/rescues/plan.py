"""What a rescue does after its files are here: the expected cost, the metric, and the stages of its job."""

import math
from typing import Any

from pydantic import TypeAdapter

from app.fine_tuning.hyperparameters import FineTuningMethod
from app.http.errors import field_error
from app.rescues.prices import find_prices
from app.rescues.schemas import CostEstimateView, RescueStart
from app.settings import Settings
from trainers.configs import EngineChoice, GateBasis
from trainers.configs.metrics import AnyMetric, MetricConfig
from trainers.configs.stages.migration.record import RESPONSE
from trainers.openai_account.fine_tuned_models import FineTunedModel

RECORD, EVALUATE, AGREEMENT, GATE = "record", "evaluate", "agreement", "gate"
# Labels and short answers are compared as a whole; longer texts by their characters.
MAX_EXACT_CHARACTERS = 40
DEFAULT_MARGIN_SHARE = 0.05
MILLION = 1_000_000

_METRIC: TypeAdapter[MetricConfig] = TypeAdapter(AnyMetric)


def estimate_cost(
    settings: Settings, fetched: dict[str, Any], body: RescueStart | None = None
) -> CostEstimateView:
    """Return the expected cost of recording, with the prices of a request or the known ones."""
    source, tokens = FineTunedModel.model_validate(fetched["source"]), fetched["tokens"]
    known = find_prices(settings, source.model)
    inputs, outputs, origin = None, None, None
    if body is not None and body.input_price is not None:
        inputs, outputs, origin = body.input_price, body.output_price, "the request"
    elif known is not None:
        inputs, outputs, origin = known[0].input, known[0].output, known[1]
    estimate = CostEstimateView(
        prompts=fetched["rows"]["held_out"] + fetched["rows"]["prompts"],
        prompt_tokens=tokens["prompt"],
        completion_tokens=tokens["completion"],
        basis=tokens["basis"],
        input_price=inputs,
        output_price=outputs,
        price_source=origin,
        cost=None,
    )
    return set_prices(estimate, inputs, outputs, origin)


def set_prices(
    estimate: CostEstimateView, inputs: float | None, outputs: float | None, origin: str | None
) -> CostEstimateView:
    """Return an estimate with the cost at other prices; the cost is unknown without both."""
    cost = None
    if inputs is not None and outputs is not None:
        cost = (estimate.prompt_tokens * inputs + estimate.completion_tokens * outputs) / MILLION
    prices = {"input_price": inputs, "output_price": outputs, "price_source": origin}
    return estimate.model_copy(update={**prices, "cost": cost})


def choose_max_cost(estimate: CostEstimateView, max_completion_tokens: int) -> float:
    """Return what a person accepts who accepts the estimate: three times as much, and one longest response.

    Responses may be longer than the references, and no request is sent whose highest cost is not left.
    """
    assert estimate.cost is not None and estimate.output_price is not None, "the prices are known"
    return max(0.01, 3 * estimate.cost) + max_completion_tokens * estimate.output_price / MILLION


def choose_metrics(fetched: dict[str, Any], body: RescueStart) -> list[dict[str, Any]]:
    """Return the configs of the metrics of a request, or those that suit the references."""
    if body.metrics is not None:
        return [
            metric.model_dump(mode="json", exclude_unset=True) | {"metric": metric.metric}
            for metric in body.metrics
        ]
    source, references = FineTunedModel.model_validate(fetched["source"]), fetched["references"]
    if source.method_type == FineTuningMethod.reinforcement:
        return [{"metric": "grader", "grader": source.method_config["grader"]}]
    if 2 * references["tool_calls"] > references["with"]:
        return [{"metric": "tool_calls"}]
    if references["median_characters"] <= MAX_EXACT_CHARACTERS:
        return [{"metric": "exact_match"}]
    return [{"metric": "chrf"}]


def choose_margin(metric: MetricConfig, margin: float | None) -> float:
    """Return the margin of a request, or a twentieth of the scale.

    Raises UnprocessableContent for a margin of the whole scale, and without one for a scale without end.
    """
    low, high = metric.scale.low, metric.scale.high
    if margin is not None:
        if high is not None and margin >= high - low:
            bounds = f"{metric.label} is between {low:g} and {high:g}"
            message = f"{bounds}, so a margin of {margin:g} accepts any model."
            raise field_error("margin", message)
        return margin
    if high is None or not math.isfinite(high - low):
        raise field_error(
            "margin", f"The metric {metric.label} has no bounds: set how much worse is acceptable."
        )
    return DEFAULT_MARGIN_SHARE * (high - low)


def make_later_stages(
    rescue_id: str,
    fetched: dict[str, Any],
    test_dataset: str,
    body: RescueStart,
    estimate: CostEstimateView,
    engine: EngineChoice,
) -> list[dict[str, Any]]:
    """Return the stages after the training: record the old model, evaluate both, and decide.

    Recording needs no result of the training, so both run side by side.
    """
    source = FineTunedModel.model_validate(fetched["source"])
    trained = FineTuningMethod(source.method_type).stage
    metrics = choose_metrics(fetched, body)
    generation = {
        "model": {"stage": trained},
        "engine": engine.engine,
        "options": engine.options.model_dump(mode="json"),
        "max_new_tokens": body.max_completion_tokens,
        "queue": body.queue,
    }
    evaluate = {
        "stage": "evaluate",
        "needs": [trained, RECORD],
        "dataset": {"stage": RECORD, "part": "test"},
        "baseline": {"field": RESPONSE},
        "metrics": metrics,
        "slices": ["part"],
        **generation,
    }
    stages: list[dict[str, Any]] = [
        {
            "stage": RECORD,
            "needs": [],
            "rescue": rescue_id,
            "fine_tuned_model": source.fine_tuned_model,
            "dataset": test_dataset,
            "max_completion_tokens": body.max_completion_tokens,
            "concurrency": body.concurrency,
            "requests_per_minute": body.requests_per_minute,
            "input_price": estimate.input_price,
            "output_price": estimate.output_price,
            "max_cost": body.max_cost,
        },
        evaluate,
        {
            "stage": "gate",
            "needs": [EVALUATE],
            "evaluation": EVALUATE,
            "against": "baseline",
            "on": GateBasis.bound,
            "margin": choose_margin(_METRIC.validate_python(metrics[0]), body.margin),
        },
    ]
    if source.method_type != FineTuningMethod.reinforcement:
        agreement = {
            "stage": "evaluate",
            "name": AGREEMENT,
            "needs": [trained, RECORD],
            "dataset": {"stage": RECORD, "part": "validation"},
            "metrics": [metric for metric in metrics if metric["metric"] != "judge_preference"]
            or [{"metric": "chrf"}],
            **generation,
        }
        stages.insert(2, agreement)
    return stages
