"""Comparison of an engine's prompts, scores and completions with those of the trained model."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean
from typing import Any

from serving.engines.engine import Engine, EngineRequestFailed
from serving.parity.reference import ReferenceModel, ReferenceOutput

# An adapter whose mean effect is below this, in nats per token, cannot be distinguished from its absence.
MIN_MEASURABLE_EFFECT = 0.01
# Maximum distance of the adapter's measured strength from 1.
SCALE_TOLERANCE = 0.2


@dataclass(frozen=True)
class Tolerance:
    """The maximum difference of log-probabilities in nats: the mean over all tokens, and of one token."""

    mean: float
    max: float


# Against transformers in fp32 on a CPU. Rounding to 16 bits changes single tokens by tenths of a nat;
# quantized weights are another model, whose difference is bounded but not small.
TOLERANCES = {
    "float32": Tolerance(0.002, 0.05),
    "float16": Tolerance(0.02, 0.3),
    "bfloat16": Tolerance(0.05, 0.75),
    "fp8": Tolerance(0.15, 2.0),
    "int8": Tolerance(0.15, 2.0),
    "int4": Tolerance(0.4, 4.0),
    "awq": Tolerance(0.4, 4.0),
    "gptq": Tolerance(0.4, 4.0),
}


@dataclass
class Difference:
    """The first difference between the served and the trained model, and its likely cause.

    `kind` is `rendering`, `logprobs`, `completion` or `quantization`; `chat` and `position` count from 0.
    """

    kind: str
    message: str
    chat: int
    position: int | None = None
    expected: dict[str, Any] | None = None
    found: dict[str, Any] | None = None


@dataclass
class ParityReport:
    """The result of a comparison; differences are in nats.

    `adapter_effect` is the mean absolute effect of the adapter per token, and `adapter_scale` its strength in
    the engine relative to training. `tied_completions` differ from the trained model's at a token that it
    rates almost the same. `quantization` is described in `serving.parity.quantization`.
    """

    passed: bool = False
    chats: int = 0
    tokens: int = 0
    mean_difference: float = 0.0
    max_difference: float = 0.0
    tolerance: Tolerance = field(default_factory=lambda: TOLERANCES["float32"])
    adapter_effect: float | None = None
    adapter_scale: float | None = None
    equal_completions: int = 0
    tied_completions: int = 0
    quantization: dict[str, Any] | None = None
    difference: Difference | None = None
    spot_check: dict[str, Any] | None = None

    @property
    def json(self) -> dict[str, Any]:
        """The report as it is stored with a deployment."""
        return asdict(self)


def compare(
    reference: ReferenceModel,
    outputs: Sequence[ReferenceOutput],
    engine: Engine,
    address: str,
    name: str,
    tolerance: Tolerance,
) -> ParityReport:
    """Render, score and complete every chat with the engine. Raises EngineRequestFailed."""
    report = ParityReport(chats=len(outputs), tolerance=tolerance)
    report.difference = (
        _compare_prompts(reference, outputs, engine, address, name)
        or _compare_scores(reference, outputs, engine, address, name, report)
        or _compare_completions(reference, outputs, engine, address, name, report)
    )
    report.passed = report.difference is None
    if report.passed:
        # The chat on which the adapter has the largest effect.
        output = max(outputs, key=_adapter_effect)
        report.spot_check = {
            "messages": output.chat,
            "prompt_ids": output.prompt_ids,
            "ids": output.ids,
            "logprobs": [round(value, 5) for value in output.logprobs],
        }
    return report


def _adapter_effect(output: ReferenceOutput) -> float:
    if output.base_logprobs is None:
        return 0.0
    return mean(abs(a - b) for a, b in zip(output.logprobs, output.base_logprobs, strict=True))


def _compare_prompts(
    reference: ReferenceModel, outputs: Sequence[ReferenceOutput], engine: Engine, address: str, name: str
) -> Difference | None:
    """Compare the token ids of each rendered chat, which must be equal."""
    for chat, output in enumerate(outputs):
        try:
            found = engine.render(address, name, output.chat)
        except EngineRequestFailed as error:
            if error.status is None:
                raise
            message = f"The engine cannot render a chat that the model was trained to complete: {error}"
            return Difference("rendering", message, chat)
        if found != output.prompt_ids:
            return _prompt_difference(reference, chat, output.prompt_ids, found)
    return None


def _prompt_difference(
    reference: ReferenceModel, chat: int, expected: list[int], found: list[int]
) -> Difference:
    position = first_difference(expected, found)
    bos = reference.tokenizer.bos_token_id
    if bos is not None and found == [bos, *expected]:
        cause = "the beginning-of-sequence token occurs twice, or is added although training had none"
    elif bos is not None and [bos, *found] == expected:
        cause = "the beginning-of-sequence token is missing"
    else:
        cause = "the engine's chat template or tokenizer is not the one used in training"
    return Difference(
        "rendering",
        f"The rendered chats differ from token {position} onwards: {cause}.",
        chat,
        position,
        _token(reference, expected, position),
        _token(reference, found, position),
    )


def _compare_scores(
    reference: ReferenceModel,
    outputs: Sequence[ReferenceOutput],
    engine: Engine,
    address: str,
    name: str,
    report: ParityReport,
) -> Difference | None:
    """Compare the log-probability of every token of chats and completions, within the tolerance."""
    scores = [engine.score(address, name, output.ids) for output in outputs]
    differences = [
        [abs(found - expected) for found, expected in zip(values, output.logprobs, strict=True)]
        for values, output in zip(scores, outputs, strict=True)
    ]
    all_differences = [value for values in differences for value in values]
    report.tokens = len(all_differences)
    report.mean_difference, report.max_difference = mean(all_differences), max(all_differences)
    _measure_adapter(outputs, scores, report)
    tolerance = report.tolerance
    scale_differs = report.adapter_scale is not None and abs(report.adapter_scale - 1) > SCALE_TOLERANCE
    within_tolerance = report.mean_difference <= tolerance.mean and report.max_difference <= tolerance.max
    if within_tolerance and not scale_differs:
        return None
    chat = max(range(len(differences)), key=lambda number: max(differences[number]))
    limit = min(tolerance.max, max(differences[chat]))
    index = next(i for i, value in enumerate(differences[chat]) if value >= limit)
    output = outputs[chat]
    # The first token has no score, so the score at `index` is that of the token after it.
    token = _token(reference, output.ids, index + 1)
    return Difference(
        "logprobs",
        _score_difference_message(report),
        chat,
        index + 1,
        token | {"logprob": output.logprobs[index]},
        token | {"logprob": scores[chat][index]},
    )


def _measure_adapter(
    outputs: Sequence[ReferenceOutput], scores: Sequence[Sequence[float]], report: ParityReport
) -> None:
    """Fit the adapter's strength in the engine by least squares: 1 as trained, 0 if it is ignored."""
    trained: list[float] = []
    served: list[float] = []
    for output, values in zip(outputs, scores, strict=True):
        if output.base_logprobs is None:
            return
        trained += [a - b for a, b in zip(output.logprobs, output.base_logprobs, strict=True)]
        served += [a - b for a, b in zip(values, output.base_logprobs, strict=True)]
    report.adapter_effect = mean(map(abs, trained))
    if report.adapter_effect > max(MIN_MEASURABLE_EFFECT, report.tolerance.mean):
        product = sum(a * b for a, b in zip(trained, served, strict=True))
        report.adapter_scale = product / sum(value * value for value in trained)


def _score_difference_message(report: ParityReport) -> str:
    message = (
        f"Log-probabilities differ by {report.mean_difference:.4f} nats on average and by up to "
        f"{report.max_difference:.4f}; the tolerance is {report.tolerance.mean} and {report.tolerance.max}."
    )
    scale = report.adapter_scale
    if scale is None or abs(scale - 1) <= SCALE_TOLERANCE:
        cause = "The served weights, or a setting such as rope_theta, are not those of training."
    elif abs(scale) < SCALE_TOLERANCE:
        cause = "The engine responds as the base does: the adapter is ignored."
    else:
        cause = (
            f"The adapter has {scale:.2f} times its trained strength: the engine misreads its alpha or rank."
        )
    return f"{message} {cause}"


def _compare_completions(
    reference: ReferenceModel,
    outputs: Sequence[ReferenceOutput],
    engine: Engine,
    address: str,
    name: str,
    report: ParityReport,
) -> Difference | None:
    """Compare greedy completions of the chat endpoint, which must be equal, or diverge at a tie."""
    for chat, output in enumerate(outputs):
        found, prompt_tokens = engine.complete(address, name, output.chat, output.max_new_tokens)
        if prompt_tokens != len(output.prompt_ids):
            return Difference(
                "rendering",
                f"The chat endpoint counts {prompt_tokens} prompt tokens, but the engine renders the chat to "
                f"{len(output.prompt_ids)}.",
                chat,
            )
        if found == output.completion:
            report.equal_completions += 1
        elif (difference := _completion_difference(reference, output, found, chat, report.tolerance)) is None:
            report.tied_completions += 1
        else:
            return difference
    return None


def _completion_difference(
    reference: ReferenceModel, output: ReferenceOutput, found: str, chat: int, tolerance: Tolerance
) -> Difference | None:
    """Return the first differing token, or None if the trained model rates both tokens almost the same."""
    found_ids = reference.tokenizer(found, add_special_tokens=False)["input_ids"]
    expected_ids = output.completion_ids
    position = first_difference(expected_ids, found_ids)
    both_continue = position < min(len(found_ids), len(expected_ids))
    if both_continue and expected_ids[position] not in reference.end_ids:
        logprobs_V = output.completion_AV[position]  # noqa: N806
        gap = float(logprobs_V[expected_ids[position]] - logprobs_V[found_ids[position]])
        if gap <= 2 * tolerance.max:
            return None
        cause = f"the trained model prefers its own token by {gap:.3f} nats"
    else:
        cause = "one ends where the other continues, so the engine may not know the token that ends a turn"
    return Difference(
        "completion",
        f"Greedy completions diverge at token {position}: {cause}. Expected {output.completion!r}, "
        f"found {found!r}.",
        chat,
        position,
        _token(reference, expected_ids, position),
        _token(reference, found_ids, position),
    )


def first_difference(left: Sequence[int], right: Sequence[int]) -> int:
    """Return the first index where two sequences differ, or the length of the shorter if it is a prefix."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(left), len(right)))


def _token(reference: ReferenceModel, ids: Sequence[int], position: int) -> dict[str, Any]:
    if position >= len(ids):
        return {"id": None, "text": ""}
    return {"id": ids[position], "text": reference.token_text(ids[position])}
