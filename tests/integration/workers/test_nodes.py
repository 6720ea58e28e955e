"""A run on two hosts ends as one: its files are complete when it has ended, and its error names the node.

Method: two workers in this process, on one host. A program of the test takes the place of torch's launcher.
"""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from app.runs.files import list_files
from app.runs.groups.formation import NodeOffer, offer
from app.storage.database import transaction
from app.tables import Run, RunStatus
from tests.integration.workers.conftest import row
from trainers.configs import Queue
from workers.hosts.devices import NO_DEVICES
from workers.hosts.worker import WorkerContext, register_worker
from workers.runs.claim import ClaimedRun
from workers.runs.execute import execute

Submit = Callable[..., str]
Execute = Callable[[str], tuple[Run, list[str]]]
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
ADDRESS = "127.0.0.1"
IS_MEMBER = "is_member = 'node-1' in run_dir.name\n"


@pytest.fixture
def workers(worker: WorkerContext) -> Iterator[list[WorkerContext]]:
    """Yield the worker that leads a run, and one that takes part."""
    other = register_worker(worker.settings, [Queue.cpu], "there")
    other.leases.start()
    worker.node_address = other.node_address = ADDRESS
    yield [worker, other]
    other.leases.stop()


@pytest.fixture
def execute_together(workers: list[WorkerContext], submit: Submit) -> Iterator[Execute]:
    """Return a function that executes a program on both, and returns run and files when the leader ends."""
    threads: list[threading.Thread] = []

    def execute_program(body: str) -> tuple[Run, list[str]]:
        run_id, (leader, other) = submit(IS_MEMBER + body, nodes=2), workers
        for worker in (other, leader):
            with transaction() as session:
                claimed = offer(session, worker.settings, NodeOffer(run_id, 1, worker.worker_id, ADDRESS))
        assert claimed is not None
        now = time.monotonic()
        member = ClaimedRun(claimed, NO_DEVICES, now, node_rank=1)
        threads.append(threading.Thread(target=execute, args=(other, member)))
        threads[0].start()
        execute(leader, ClaimedRun(claimed, NO_DEVICES, now))
        return row(run_id), [file.name for file in list_files(run_id).items]

    yield execute_program
    for thread in threads:
        thread.join()


def test_the_files_of_all_nodes_are_published_when_the_run_has_ended(execute_together: Execute) -> None:
    run, names = execute_together("time.sleep(1.5 * is_member)\nis_member or succeed()")
    assert run.status is RunStatus.succeeded
    assert {"log.txt", "log-node-1.txt", "result.json"} <= set(names)


def test_an_exception_of_a_workers_own_code_names_its_node(
    execute_together: Execute, monkeypatch: pytest.MonkeyPatch, workers: list[WorkerContext]
) -> None:
    workers[0].settings.max_failures = 0
    monkeypatch.setattr("workers.nodes.leader.FAILED_NODE_SECONDS", 1)
    monkeypatch.setattr("workers.nodes.member.start_guarded_process", None)
    run, _ = execute_together("time.sleep(60)")
    assert run.error is not None and run.error["code"] == "worker_failed"
    assert "TypeError" in run.error["message"] and "node 1 (there)" in run.error["message"]


def test_an_error_of_the_leaders_program_names_its_node_too(
    execute_together: Execute, workers: list[WorkerContext]
) -> None:
    error = {"code": "dataset_invalid", "message": "row 7 is empty", "hint": None}
    run, _ = execute_together(f"is_member or write('error.json', json.dumps({error!r}))\nsys.exit(1)")
    assert run.error is not None
    assert run.error["message"] == "On node 0 (here): row 7 is empty"
