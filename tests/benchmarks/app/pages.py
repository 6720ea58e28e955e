"""Server time of each page, as a ratio to the same list over the API; with 1,000 jobs and 10,000 metrics.

python -m tests.benchmarks.app.pages
"""

import argparse
import http.client
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from app.batches.service import list_batches
from app.fine_tuning.service import list_states
from app.http.paging import CursorQuery
from app.storage.database import read_session, transaction
from app.tables import Job, Run
from tests.benchmarks.app.load import time_call
from tests.benchmarks.report import format_milliseconds, p50, print_table
from tests.e2e.web.conftest import seeded_service
from tests.e2e.web.test_models_page import find_model
from tests.integration.app.web import seeded_datasets, seeded_hosts, seeded_openai_api, seeded_serving

MAX_RATIO = 3.0
Runs = dict[str, list[Run]]
# The seeded service has no starter model, and a plan needs none of the files of a hub id.
PLANNED_SPEC = {
    "name": "my-job",
    "stages": [{"stage": "sft", "base": "Qwen/Qwen2.5-0.5B-Instruct", "dataset": "ko-chat"}],
}


@dataclass(frozen=True)
class MeasuredView:
    """A page, and the request of the API that returns what it shows."""

    name: str
    page: Callable[[Runs], str]
    api: Callable[[Runs], str]
    body: dict[str, Any] | None = None
    """Of a POST to the API, if that is what returns what the page shows."""
    further: tuple[str, ...] = ()
    """Other requests that are needed for what the page shows."""


VIEWS = [
    MeasuredView("job list", lambda _: "/jobs", lambda _: "/api/v1/jobs"),
    MeasuredView(
        "job list, search", lambda _: "/jobs?search=nightly-00", lambda _: "/api/v1/jobs?search=nightly-00"
    ),
    MeasuredView(
        "job",
        lambda runs: f"/jobs/{runs['ko-en-news'][0].job_id}",
        lambda runs: f"/api/v1/jobs/{runs['ko-en-news'][0].job_id}",
    ),
    MeasuredView("keys", lambda _: "/keys", lambda _: "/api/v1/keys"),
    MeasuredView("models", lambda _: "/models", lambda _: "/api/v1/models"),
    MeasuredView("model", lambda _: f"/models/{find_model()}", lambda _: f"/api/v1/models/{find_model()}"),
    MeasuredView(
        "evaluations",
        lambda _: "/evaluations",
        lambda _: "/api/v1/evaluations",
    ),
    MeasuredView("comparisons", lambda _: "/comparisons", lambda _: "/api/v1/comparisons"),
    MeasuredView(
        "two runs: 11,000 points against 200",
        lambda runs: f"/compare?run={runs['ko-en-news'][0].id}&run={runs['ko-en-news-lr-sweep'][0].id}",
        lambda runs: f"/api/v1/runs/{runs['ko-en-news'][0].id}/metrics?limit=200",
    ),
    MeasuredView(
        "checkpoints",
        lambda runs: f"/runs/{runs['ko-en-news'][0].id}/checkpoints",
        lambda runs: f"/api/v1/runs/{runs['ko-en-news'][0].id}/checkpoints",
    ),
    MeasuredView("deployments", lambda _: "/deployments", lambda _: "/api/v1/deployments"),
    # The page has half as many workers as the list.
    MeasuredView(
        "hosts and queues",
        lambda _: "/hosts",
        lambda _: "/api/v1/workers?stopped=false",
        further=("/api/v1/queues",),
    ),
    MeasuredView(
        "queue, 1,000 waiting", lambda _: "/hosts/queues/cuda", lambda _: "/api/v1/queues/cuda/waiting"
    ),
    MeasuredView("machines in clouds", lambda _: "/hosts/clouds", lambda _: "/api/v1/hosts"),
    MeasuredView("storage", lambda _: "/storage", lambda _: "/api/v1/storage"),
    MeasuredView(
        "alias, with promotions and versions", lambda _: "/aliases/news", lambda _: "/api/v1/aliases/news"
    ),
    MeasuredView("chat", lambda _: "/chat", lambda _: "/api/v1/routes"),
    MeasuredView(
        "run",
        lambda runs: f"/runs/{runs['ko-en-news'][0].id}",
        lambda runs: f"/api/v1/jobs/{runs['ko-en-news'][0].job_id}",
    ),
    MeasuredView(
        "points: 5,000 against 200",
        lambda runs: f"/runs/{runs['ko-en-news'][0].id}/points?after=0",
        lambda runs: f"/api/v1/runs/{runs['ko-en-news'][0].id}/metrics?limit=200",
    ),
    MeasuredView("batches", lambda _: "/batches", lambda _: "/v1/batches?limit=50"),
    MeasuredView("batch", lambda _: f"/batches/{_find_batch()}", lambda _: f"/v1/batches/{_find_batch()}"),
    MeasuredView("fine-tuning jobs", lambda _: "/fine-tuning", lambda _: "/v1/fine_tuning/jobs?limit=50"),
    MeasuredView(
        "fine-tuning job, with its events",
        lambda _: f"/fine-tuning/{_find_fine_tuning_job()}",
        lambda _: f"/v1/fine_tuning/jobs/{_find_fine_tuning_job()}",
    ),
    MeasuredView("dataset list", lambda _: "/datasets", lambda _: "/api/v1/datasets"),
    MeasuredView(
        "dataset",
        lambda _: f"/datasets/{seeded_datasets.add_dataset()}",
        lambda _: f"/api/v1/datasets/{seeded_datasets.add_dataset()}",
    ),
    MeasuredView(
        "dataset rows",
        lambda _: f"/datasets/{seeded_datasets.add_dataset()}/rows",
        lambda _: f"/api/v1/datasets/{seeded_datasets.add_dataset()}/rows?limit=20",
    ),
    MeasuredView(
        "new job, with its plan",
        lambda _: f"/jobs/new?from={_add_job(PLANNED_SPEC)}",
        lambda _: "/api/v1/jobs/dry-run",
        PLANNED_SPEC,
    ),
]


def main() -> None:
    """Measure each page and its request of the API in turn, and print the ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=60)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="tunesmith-pages-") as folder,
        seeded_service(Path(folder) / "service") as (platform, runs),
    ):
        seeded_datasets.add_many_datasets(1000)
        seeded_openai_api.add_many(1000)
        seeded_serving.add_shown_deployments()
        seeded_serving.add_shown_promotions()
        seeded_hosts.add_many_hosts(1000)
        address = urlsplit(platform.base_url)
        assert address.hostname is not None
        connection = http.client.HTTPConnection(address.hostname, address.port)
        rows = [_measure(connection, view, runs, options.repeats) for view in VIEWS]
    print_table(
        f"Pages against the API, limit {MAX_RATIO:g}", ["view", "page p50 ms", "API p50 ms", "ratio"], rows
    )


def _add_job(spec: dict[str, Any]) -> str:
    job = Job(name=spec["name"], spec=spec)
    with transaction() as session:
        session.add(job)
    return job.id


def _find_batch() -> str:
    with read_session() as session:
        return str(list_batches(session, CursorQuery(1))[0][0].id)


def _find_fine_tuning_job() -> str:
    with read_session() as session:
        return list_states(session, CursorQuery(1), {}, without_metadata=False)[0][0].job.id


def _measure(
    connection: http.client.HTTPConnection, view: MeasuredView, runs: Runs, repeats: int
) -> list[str]:
    page, api = view.page(runs), view.api(runs)

    def ask_api() -> None:
        _send(connection, api, view.body)
        for path in view.further:
            _send(connection, path)

    for _ in range(5):
        _send(connection, page)
        ask_api()
    pairs = [(time_call(lambda: _send(connection, page)), time_call(ask_api)) for _ in range(repeats)]
    pages, apis = zip(*pairs, strict=True)
    ratio = f"{p50(pages) / p50(apis):.2f}"
    return [view.name, format_milliseconds(p50(pages)), format_milliseconds(p50(apis)), ratio]


def _send(connection: http.client.HTTPConnection, path: str, body: dict[str, Any] | None = None) -> None:
    headers = {"Accept": "text/html, application/json", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body)
    connection.request("GET" if body is None else "POST", path, data, headers)
    response = connection.getresponse()
    content = response.read()
    assert response.status == 200 and content, f"{path}: {response.status} {content[:500]!r}"


if __name__ == "__main__":
    main()
