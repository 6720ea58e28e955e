"""Whether an engine's answers are those of the trained model, and if not, where they part and why."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean
from typing import Any

from serving.engines.engine import Engine, EngineRequestFailed
from serving.parity.reference import ReferenceModel, ReferenceOutput

# An adapter whose effect is within this, in nats a token, cannot be told from its absence.
LEAST_EFFECT = 0.01
# How far the adapter's measured strength may lie from 1.
SCALE_TOLERANCE = 0.2


@dataclass(frozen=True)
class Tolerance:
    """How far log-probabilities may lie apart, in nats: on the average of all tokens, and at one token."""

    mean: float
    one: float


# Against transformers in fp32 on a CPU. Rounding of 16-bit numbers moves single tokens by tenths; weights in
# few bits are another model, whose distance is bounded but not small.
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
    """Where the served model first differs from the trained one, and what that means."""

    kind: str
    message: str
    chat: int
    position: int | None = None
    expected: dict[str, Any] | None = None
    found: dict[str, Any] | None = None


@dataclass
class ParityReport:
    """What was compared, and what came of it; differences are in nats."""

    passed: bool = False
    chats: int = 0
    tokens: int = 0
    mean_difference: float = 0.0
    largest_difference: float = 0.0
    tolerance: Tolerance = field(default_factory=lambda: TOLERANCES["float32"])
    adapter_effect: float | None = None
    adapter_scale: float | None = None
    equal_answers: int = 0
    explained_answers: int = 0
    difference: Difference | None = None
    witness: dict[str, Any] | None = None

    @property
    def json(self) -> dict[str, Any]:
        """The report as it is stored with a deployment."""
        return asdict(self)


def compare(
    trained: ReferenceModel,
    expected: Sequence[ReferenceOutput],
    engine: Engine,
    address: str,
    name: str,
    tolerance: Tolerance,
) -> ParityReport:
    """Render, score and answer every chat by the engine; raises EngineRefused where it gives no answer."""
    report = ParityReport(chats=len(expected), tolerance=tolerance)
    report.difference = _rendering(trained, expected, engine, address, name)
    if report.difference is None:
        report.difference = _scores(trained, expected, engine, address, name, report)
    if report.difference is None:
        report.difference = _answers(trained, expected, engine, address, name, report)
    report.passed = report.difference is None
    if report.passed:
        report.witness = _witness(expected)
    return report


def _witness(expected: Sequence[ReferenceOutput]) -> dict[str, Any]:
    """The chat on which the adapter does most, with what `witness.holds` compares."""
    one = max(expected, key=_effect)
    told = {"chat": one.chat, "prompt_ids": one.prompt_ids, "ids": one.ids}
    return told | {"logprobs": [round(value, 5) for value in one.logprobs]}


def _effect(one: ReferenceOutput) -> float:
    if one.base_logprobs is None:
        return 0.0
    return mean(abs(a - b) for a, b in zip(one.logprobs, one.base_logprobs, strict=True))


def _rendering(
    trained: ReferenceModel, expected: Sequence[ReferenceOutput], engine: Engine, address: str, name: str
) -> Difference | None:
    """The token ids that each chat becomes must be equal."""
    for number, one in enumerate(expected):
        try:
            found = engine.render(address, name, one.chat)
        except EngineRequestFailed as refused:
            if refused.status is None:
                raise
            return Difference(
                "rendering", f"The engine cannot render a chat that was trained: {refused}", number
            )
        if found != one.prompt_ids:
            return _differing_tokens(trained, number, one.prompt_ids, found)
    return None


def _differing_tokens(
    trained: ReferenceModel, number: int, wanted: list[int], found: list[int]
) -> Difference:
    place = first_difference(wanted, found)
    bos = trained.tokenizer.bos_token_id
    if bos is not None and found == [bos, *wanted]:
        why = "the beginning-of-sequence token stands twice or is added where training had none"
    elif bos is not None and [bos, *found] == wanted:
        why = "the beginning-of-sequence token is missing"
    else:
        why = "the engine's chat template or tokenizer is not the one of training"
    return Difference(
        "rendering",
        f"The rendered chat differs from token {place} on: {why}.",
        number,
        place,
        _token(trained, wanted, place),
        _token(trained, found, place),
    )


def _scores(
    trained: ReferenceModel,
    expected: Sequence[ReferenceOutput],
    engine: Engine,
    address: str,
    name: str,
    report: ParityReport,
) -> Difference | None:
    """The log-probability of every token of chats and answers must be the trained model's."""
    scored = [engine.score(address, name, one.ids) for one in expected]
    apart = [
        [abs(found - wanted) for found, wanted in zip(values, one.logprobs, strict=True)]
        for values, one in zip(scored, expected, strict=True)
    ]
    every = [value for values in apart for value in values]
    report.tokens, report.mean_difference, report.largest_difference = len(every), mean(every), max(every)
    _measure_adapter(expected, scored, report)
    scale = report.adapter_scale
    is_off = scale is not None and abs(scale - 1) > SCALE_TOLERANCE
    tolerance = report.tolerance
    if not is_off and report.mean_difference <= tolerance.mean and report.largest_difference <= tolerance.one:
        return None
    chat = max(range(len(apart)), key=lambda number: max(apart[number]))
    limit = min(tolerance.one, max(apart[chat]))
    place = next(i for i, value in enumerate(apart[chat]) if value >= limit)
    one = expected[chat]
    return Difference(
        "logprobs",
        _why_scores_differ(report),
        chat,
        place + 1,
        _token(trained, one.ids, place + 1) | {"logprob": one.logprobs[place]},
        _token(trained, one.ids, place + 1) | {"logprob": scored[chat][place]},
    )


def _measure_adapter(
    expected: Sequence[ReferenceOutput], scored: Sequence[Sequence[float]], report: ParityReport
) -> None:
    """How strong the adapter acts in the engine, by least squares: 1 as trained, 0 if it is not there."""
    trained_effect: list[float] = []
    served_effect: list[float] = []
    for one, values in zip(expected, scored, strict=True):
        if one.base_logprobs is None:
            return
        trained_effect += [a - b for a, b in zip(one.logprobs, one.base_logprobs, strict=True)]
        served_effect += [a - b for a, b in zip(values, one.base_logprobs, strict=True)]
    report.adapter_effect = mean(map(abs, trained_effect))
    if report.adapter_effect > max(LEAST_EFFECT, report.tolerance.mean):
        square = sum(value * value for value in trained_effect)
        products = zip(trained_effect, served_effect, strict=True)
        report.adapter_scale = sum(ours * theirs for ours, theirs in products) / square


def _why_scores_differ(report: ParityReport) -> str:
    told = (
        f"Log-probabilities differ by {report.mean_difference:.4f} nats on average and up to "
        f"{report.largest_difference:.4f}; {report.tolerance.mean} and {report.tolerance.one} are allowed."
    )
    scale = report.adapter_scale
    if scale is None or abs(scale - 1) <= SCALE_TOLERANCE:
        return f"{told} The served weights, or a setting such as rope_theta, are not those of training."
    if abs(scale) < SCALE_TOLERANCE:
        return f"{told} The engine answers as the base does: the adapter is ignored."
    return f"{told} The adapter acts at {scale:.2f} times its trained strength: its alpha or rank is misread."


def _answers(
    trained: ReferenceModel,
    expected: Sequence[ReferenceOutput],
    engine: Engine,
    address: str,
    name: str,
    report: ParityReport,
) -> Difference | None:
    """Greedy answers through the chat endpoint must be equal, or part at a tie."""
    for number, one in enumerate(expected):
        found, prompt_tokens = engine.chat(address, name, one.chat, one.max_new_tokens)
        if prompt_tokens != len(one.prompt_ids):
            return Difference(
                "rendering",
                f"The chat endpoint counts {prompt_tokens} tokens of prompt where the engine itself renders "
                f"{len(one.prompt_ids)}.",
                number,
            )
        if found == one.answer:
            report.equal_answers += 1
        elif (difference := _parting(trained, one, found, number, report.tolerance)) is None:
            report.explained_answers += 1
        else:
            return difference
    return None


def _parting(
    trained: ReferenceModel, one: ReferenceOutput, found: str, number: int, tolerance: Tolerance
) -> Difference | None:
    """The first token at which the answers part; None if the trained model holds both for as likely."""
    ids = trained.tokenizer(found, add_special_tokens=False)["input_ids"]
    place = first_difference(one.answer_ids, ids)
    if place < min(len(ids), len(one.answer_ids)) and one.answer_ids[place] not in trained.ends:
        row_V = one.answer_AV[place]  # noqa: N806
        gap = float(row_V[one.answer_ids[place]] - row_V[ids[place]])
        if gap <= 2 * tolerance.one:
            return None
        told = f"the trained model prefers its own by {gap:.3f} nats"
    else:
        told = "one ends where the other goes on, so the engine may not know the token that ends a turn"
    return Difference(
        "answer",
        f"Greedy answers part at token {place}: {told}. Expected {one.answer!r}, found {found!r}.",
        number,
        place,
        _token(trained, one.answer_ids, place),
        _token(trained, ids, place),
    )


def first_difference(left: Sequence[int], right: Sequence[int]) -> int:
    """The first place where two sequences differ; the length of the shorter if it begins the longer."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(left), len(right)))


def _token(trained: ReferenceModel, ids: Sequence[int], place: int) -> dict[str, Any]:
    return (
        {"id": ids[place], "text": trained.text(ids[place])} if place < len(ids) else {"id": None, "text": ""}
    )
