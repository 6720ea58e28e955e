"""Prometheus metrics of several processes, of which any can report those of all."""

from collections.abc import Iterable, Iterator
from copy import copy
from pathlib import Path

from prometheus_client import REGISTRY, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

SHARE_SECONDS = 1.0
# Their values add up over processes; a gauge is that of the process that reports it.
ADDED_TYPES = ("counter", "histogram", "summary")
SampleKey = tuple[str, tuple[tuple[str, str], ...]]


class SharedMetrics(Collector):
    """The metrics of each process in a file of its own, a second old at most."""

    def __init__(self, folder: Path, index: int) -> None:
        self._folder = folder
        self._file = folder / f"{index}.prom"
        # The counts of the process that died here: counters must not decrease.
        self._earlier = _read(self._file) if self._file.exists() else []

    def write(self) -> None:
        """Publish the current metrics of this process."""
        draft = self._file.with_suffix(".draft")
        draft.write_bytes(generate_latest(_Collected(self._own())))
        draft.replace(self._file)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of all processes in Prometheus's form."""
        others = [_read(file) for file in self._folder.glob("*.prom") if file != self._file]
        yield from sum_metrics(self._own(), others)

    def _own(self) -> list[Metric]:
        return sum_metrics(list(REGISTRY.collect()), [self._earlier])


def sum_metrics(own: list[Metric], others: Iterable[list[Metric]]) -> list[Metric]:
    """Return this process's metrics, with the counts of the others added."""
    families = {family.name: family for family in own}
    totals: dict[str, dict[SampleKey, Sample]] = {
        family.name: {_key(sample): sample for sample in family.samples}
        for family in own
        if family.type in ADDED_TYPES
    }
    for family in (family for other in others for family in other if family.type in ADDED_TYPES):
        families.setdefault(family.name, copy(family))
        added = totals.setdefault(family.name, {})
        for sample in family.samples:
            known = added.get(_key(sample))
            added[_key(sample)] = sample._replace(value=sample.value + known.value) if known else sample
    for name, samples in totals.items():
        families[name].samples = list(samples.values())
    return list(families.values())


def _key(sample: Sample) -> SampleKey:
    return sample.name, tuple(sorted(sample.labels.items()))


def _read(file: Path) -> list[Metric]:
    return list(text_string_to_metric_families(file.read_text()))


class _Collected(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics
