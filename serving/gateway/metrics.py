"""Metrics of the gateway's requests: plain numbers that Prometheus reads when it scrapes.

An observation adds to a list. The histograms of prometheus_client take a lock for each bucket, which costs
too much per request.
"""

import time
from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client.core import REGISTRY, CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

SECONDS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
# Name, description and bounds of each histogram, in the order of `ModelMetrics.observe`.
HISTOGRAMS = (
    ("tunesmith_gateway_request_seconds", "Duration of a request in seconds.", SECONDS),
    ("tunesmith_gateway_first_byte_seconds", "Seconds until the first byte of the response.", SECONDS),
    ("tunesmith_gateway_prompt_tokens", "Prompt tokens of a request, as the engine reports them.", TOKENS),
    ("tunesmith_gateway_completion_tokens", "Completion tokens, as the engine reports them.", TOKENS),
)


class Histogram:
    """Counts of values per bucket, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def mean(self) -> float | None:
        """Return the mean of the values; None without any."""
        n = sum(self.counts)
        return self.total / n if n else None

    def buckets(self) -> list[tuple[str, float]]:
        """Return cumulative counts under Prometheus's names of the bounds."""
        names = [*(str(float(bound)) for bound in self.bounds), "+Inf"]
        return [(name, sum(self.counts[: place + 1])) for place, name in enumerate(names)]


class ModelMetrics:
    """Requests of one model: counts by status, and histograms."""

    __slots__ = ("histograms", "statuses")

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}
        self.histograms = tuple(Histogram(bounds) for _, _, bounds in HISTOGRAMS)

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
        duration, first_byte, prompt, completion = self.histograms
        duration.observe(seconds)
        if first_byte_seconds is not None:
            first_byte.observe(first_byte_seconds)
        if prompt_tokens is not None:
            prompt.observe(prompt_tokens)
        if completion_tokens is not None:
            completion.observe(completion_tokens)


class RequestMetrics(Collector):
    """The metrics of this process."""

    def __init__(self) -> None:
        self.started_at = time.time()
        self.models: dict[str, ModelMetrics] = {}

    def for_model(self, model: str) -> ModelMetrics:
        """Return the metrics of a model; the name must have a route, since each name becomes a label."""
        metrics = self.models.get(model)
        if metrics is None:
            metrics = self.models[model] = ModelMetrics()
        return metrics

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics in Prometheus's form."""
        requests = CounterMetricFamily(
            "tunesmith_gateway_requests", "Requests to the gateway.", labels=["model", "status"]
        )
        for name, model in self.models.items():
            for status, count in model.statuses.items():
                requests.add_metric([name, str(status)], count)
        yield requests
        for place, (title, description, _) in enumerate(HISTOGRAMS):
            family = HistogramMetricFamily(title, description, labels=["model"])
            for name, model in self.models.items():
                histogram = model.histograms[place]
                family.add_metric([name], histogram.buckets(), histogram.total)
            yield family


REQUEST_METRICS = RequestMetrics()
REGISTRY.register(REQUEST_METRICS)
