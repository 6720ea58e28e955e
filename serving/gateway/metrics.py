"""What the gateway counts of its requests, in plain numbers that Prometheus reads when it asks.

An observation is an addition to a list here: Prometheus's own histograms take a lock for each bucket.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client.core import REGISTRY, CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

SECONDS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
# Name, meaning and bounds of each histogram, in the order of `ModelCounts.observe`.
HISTOGRAMS = (
    ("tunesmith_gateway_request_seconds", "Seconds of a whole request.", SECONDS),
    ("tunesmith_gateway_first_byte_seconds", "Seconds until the answer's first token.", SECONDS),
    ("tunesmith_gateway_prompt_tokens", "Tokens of a prompt, where the engine tells.", TOKENS),
    ("tunesmith_gateway_completion_tokens", "Tokens of an answer, where the engine tells.", TOKENS),
)

Json = dict[str, Any]


class Distribution:
    """How many values fell under each bound, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add(self, counts: list[int], total: float) -> None:
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, counts, strict=True)]
        self.total += total

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts under the names that Prometheus gives the bounds."""
        names = [*(str(float(bound)) for bound in self.bounds), "+Inf"]
        return [(name, sum(self.counts[: place + 1])) for place, name in enumerate(names)]


class ModelCounts:
    """Requests of one model name, by status, and their histograms."""

    __slots__ = ("histograms", "statuses")

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}
        self.histograms = tuple(Distribution(bounds) for _, _, bounds in HISTOGRAMS)

    def observe(
        self,
        status: int,
        seconds: float,
        first_byte_seconds: float | None,
        prompt_tokens: int | None,
        completion_tokens: int | None,
    ) -> None:
        """Count a request."""
        self.statuses[status] = self.statuses.get(status, 0) + 1
        whole, first_byte, prompt, completion = self.histograms
        whole.observe(seconds)
        if first_byte_seconds is not None:
            first_byte.observe(first_byte_seconds)
        if prompt_tokens is not None:
            prompt.observe(prompt_tokens)
        if completion_tokens is not None:
            completion.observe(completion_tokens)


class Counts(Collector):
    """The counts of this process, and those of the workers beside it."""

    def __init__(self) -> None:
        self.models: dict[str, ModelCounts] = {}
        self.others: Callable[[], Iterable[Json]] = lambda: ()

    def of(self, model: str) -> ModelCounts:
        """The counts of a model; its name must be one with a route, since every name becomes a label."""
        counts = self.models.get(model)
        if counts is None:
            counts = self.models[model] = ModelCounts()
        return counts

    def as_json(self) -> Json:
        """These counts for another process."""
        return {
            name: {
                "statuses": {str(status): count for status, count in counts.statuses.items()},
                "histograms": [[each.counts, each.total] for each in counts.histograms],
            }
            for name, counts in self.models.items()
        }

    def add(self, other: Json) -> None:
        """Add what `as_json` of another process gave."""
        for name, theirs in other.items():
            mine = self.of(name)
            for status, count in theirs["statuses"].items():
                mine.statuses[int(status)] = mine.statuses.get(int(status), 0) + count
            for distribution, (counts, total) in zip(mine.histograms, theirs["histograms"], strict=True):
                distribution.add(counts, total)

    def collect(self) -> Iterator[Metric]:
        """What Prometheus is told."""
        together = Counts()
        for counts in (self.as_json(), *self.others()):
            together.add(counts)
        requests = CounterMetricFamily(
            "tunesmith_gateway_requests", "Requests to the gateway.", labels=["model", "status"]
        )
        for name, model in together.models.items():
            for status, count in model.statuses.items():
                requests.add_metric([name, str(status)], count)
        yield requests
        for place, (title, meaning, _) in enumerate(HISTOGRAMS):
            family = HistogramMetricFamily(title, meaning, labels=["model"])
            for name, model in together.models.items():
                distribution = model.histograms[place]
                family.add_metric([name], distribution.buckets(), distribution.total)
            yield family


REQUEST_METRICS = Counts()
REGISTRY.register(REQUEST_METRICS)
