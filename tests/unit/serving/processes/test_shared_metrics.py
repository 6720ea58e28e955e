"""The counts of several processes add up, and those of one that died are kept."""

from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from serving.processes.shared_metrics import SharedMetrics, sum_metrics


def make_counter(name: str, **values: float) -> Metric:
    family = CounterMetricFamily(name, "Requests.", labels=["model"])
    for model, value in values.items():
        family.add_metric([model], value)
    return family


def read(metrics: list[Metric]) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in metrics
        for sample in family.samples
    }


def test_counts_add_up_and_gauges_are_those_of_the_process() -> None:
    own: list[Metric] = [make_counter("sent", a=1, b=2), GaugeMetricFamily("memory", "Bytes.", value=5)]
    other: list[Metric] = [make_counter("sent", b=3, c=4), GaugeMetricFamily("memory", "Bytes.", value=7)]
    assert read(sum_metrics(own, [other])) == {
        ("sent_total", "a"): 1, ("sent_total", "b"): 5, ("sent_total", "c"): 4, ("memory",): 5,
    }  # fmt: skip


def test_adding_again_changes_nothing_of_what_was_added() -> None:
    others = [[make_counter("sent", a=1)], [make_counter("sent", a=2)]]
    for _ in range(3):
        assert read(sum_metrics([], others)) == {("sent_total", "a"): 3}


def test_a_process_that_starts_again_keeps_the_counts_of_the_one_before(tmp_path: Path) -> None:
    earlier = '# TYPE sent_total counter\nsent_total{model="a"} 3.0\n'
    (tmp_path / "0.prom").write_text(earlier)
    for _ in range(3):
        metrics = SharedMetrics(tmp_path, 0)
        metrics.write()
        assert read(list(metrics.collect()))["sent_total", "a"] == 3
        assert read(list(SharedMetrics(tmp_path, 1).collect()))["sent_total", "a"] == 3
