"""Goal: no alert and no panel is silent because a name is wrong.

Method: the names and labels of all expressions are compared with a scrape of a service that is in use. The
rules themselves are tested by `promtool`, which has a clock of its own.
"""

import json
import re
import subprocess
from collections.abc import Callable, Iterator

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from app.storage.database import transaction
from app.tables import Deployment, Run, RunStatus, Worker
from serving.gateway.metrics import REQUEST_METRICS
from tests.conftest import ROOT
from tests.services import find_program
from trainers.configs import EngineKind, Queue

PROMETHEUS = ROOT / "deploy/prometheus"
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/tunesmith.json").read_text(encoding="utf-8"))
METRIC = re.compile(r"\b(tunesmith_\w+)(?:\{([^}]*)\})?")
GROUPING = re.compile(r"\b(?:by|on) \(([^)]*)\)")
# Prometheus adds these.
OF_PROMETHEUS = {"instance", "job", "le"}


def list_expressions() -> list[str]:
    """Return the expressions of all rules and panels."""
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    rules = [rule["expr"] for group in groups for rule in group["rules"]]
    return [*rules, *(target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", []))]


@pytest.fixture
def scraped(
    client: TestClient, make_job: Callable[..., list[Run]], make_worker: Callable[..., Worker]
) -> dict[str, set[str] | None]:
    """Return the labels of each sample by its name, from a scrape of a service that is in use."""
    gpu = {"name": "H200", "uuid": "GPU-1", "memory_bytes": 100, "used_bytes": 40, "use_percent": 25}
    make_worker(hardware={"gpus": [gpu], "data_disk_free_bytes": 7})
    make_job(RunStatus.queued)
    with transaction() as session:
        session.add(Deployment(name="qwen", base="starter", queue=Queue.cpu, engine=EngineKind.hf))
    REQUEST_METRICS.for_model("qwen").observe(200, 1.0, 0.5, 3, 4)
    client.get("/api/v1/jobs")
    return dict(read_samples(client.get("/metrics").text))


def read_samples(scrape: str) -> Iterator[tuple[str, set[str] | None]]:
    """Yield the names and labels of all samples; the labels of a metric without samples are unknown."""
    for family in text_string_to_metric_families(scrape):
        suffix = "_total" if family.type == "counter" else ""
        yield f"{family.name}{suffix}", None
        for sample in family.samples:
            yield sample.name, set(sample.labels)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_every_metric_of_a_rule_or_panel_is_exported_with_its_labels(
    scraped: dict[str, set[str] | None],
) -> None:
    for expression in list_expressions():
        used = METRIC.findall(expression)
        assert [name for name, _ in used if name not in scraped] == [], expression
        labels = [scraped[name] for name, _ in used]
        if None in labels:
            continue
        known = OF_PROMETHEUS.union(*filter(None, labels))
        matched = {label for _, matchers in used for label in re.findall(r"(\w+)\s*[=!]~?", matchers)}
        grouped = {label.strip() for group in GROUPING.findall(expression) for label in group.split(",")}
        assert {label for label in matched | grouped if label} - known == set(), expression


def test_the_rules_are_valid_and_fire_when_they_should() -> None:
    promtool = find_program("promtool")
    for arguments in (
        ["check", "rules", "alerts.yml"],
        ["check", "config", "--syntax-only", "prometheus.yml"],
        ["test", "rules", "alerts_test.yml"],
    ):
        done = subprocess.run([promtool, *arguments], cwd=PROMETHEUS, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"]}
    tests = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text(encoding="utf-8"))["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == alerts
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == alerts


def test_panels_are_complete_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        position = panel["gridPos"]
        cells = {
            (position["x"] + column, position["y"] + line)
            for column in range(position["w"])
            for line in range(position["h"])
        }
        assert not cells & taken and max(column for column, _ in cells) < 24, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_the_proxy_accepts_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    caddy = find_program("caddy")
    command = [caddy, "validate", "--adapter", "caddyfile", "--config", str(ROOT / "deploy/caddy/Caddyfile")]
    for options in ("", "tls internal"):
        monkeypatch.setenv("TLS_DOMAIN", "tunesmith.example.com")
        monkeypatch.setenv("TLS_OPTIONS", options)
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
