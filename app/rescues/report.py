"""The tables that the command line prints."""

from collections.abc import Sequence

from app.rescues.account import AccountModel
from app.rescues.retirement import LAST_FINE_TUNING_DAY
from app.rescues.schemas import RescueView

UNKNOWN = "unknown"


def render_models(models: Sequence[AccountModel]) -> str:
    """Return a table of models with the days left."""
    if not models:
        return "The organization has no fine-tuned models that the key may see."
    rows = [("model", "base", "method", "training file", "switched off", "days left")]
    rows += [
        (
            found.model.fine_tuned_model,
            found.model.model,
            found.model.method_type,
            found.model.training_file,
            UNKNOWN if found.shutdown_date is None else found.shutdown_date.isoformat(),
            _describe_days(found.days_left),
        )
        for found in models
    ]
    return f"{_align(rows)}\nNew fine-tuning jobs at OpenAI end on {LAST_FINE_TUNING_DAY}."


def render_estimate(view: RescueView) -> str:
    """Return what recording is expected to cost."""
    estimate = view.estimate
    assert estimate is not None, "a rescue that is ready has an estimate"
    cost = "unknown: set --input-price and --output-price"
    if estimate.cost is not None:
        cost = (
            f"{estimate.cost:.4f} USD at {estimate.input_price:g} and {estimate.output_price:g} USD a "
            f"million tokens ({estimate.price_source})"
        )
    return (
        f"{estimate.prompts} prompts for {view.fine_tuned_model}: about {estimate.prompt_tokens} tokens of "
        f"prompts and {estimate.completion_tokens} of responses ({estimate.basis}).\nExpected cost: {cost}."
    )


def render_comparison(view: RescueView) -> str:
    """Return the scores of both models, the decision, and what was recorded."""
    found = view.comparison
    assert found is not None, "the rescue has been compared"
    interval = "unknown: too few rows"
    if found.interval_95 is not None:
        interval = f"{found.interval_95[0]:+.4f} to {found.interval_95[1]:+.4f}"
    other = "" if found.other_value is None else f"{found.other_value:.4f}"
    difference = "" if found.difference is None else f"{found.difference:+.4f}"
    rows = [
        ("model", found.metric, "n"),
        (view.fine_tuned_model, other, str(found.n)),
        (view.new_model or "new model", f"{found.value:.4f}", str(found.n)),
        ("difference", difference, f"95 % interval {interval}"),
    ]
    verdict = "as good" if found.as_good else "NOT shown to be as good"
    lines = [_align(rows), f"The new model is {verdict} within {found.margin:g}, 95 %. {found.message}"]
    if found.agreement is not None:
        lines.append(f"Agreement with the recorded responses on all prompts: {found.agreement:.4f}.")
    if view.recorded is not None:
        cost = view.recorded["cost"]
        lines.append(
            f"Recorded: {view.recorded['counts']}" + (f", {cost:.4f} USD." if cost is not None else ".")
        )
    return "\n".join(lines)


def _describe_days(days_left: int | None) -> str:
    if days_left is None:
        return UNKNOWN
    return str(days_left) if days_left >= 0 else "none"


def _align(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
