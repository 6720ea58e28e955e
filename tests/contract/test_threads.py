"""A thread that lives as long as its process survives an error that nobody expects, or is started again."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("app", "serving", "workers")
# How the threads of each module get over an unexpected error; a new one should use `app.scheduling.periodic`.
THREADS = {
    "app/completions/writer.py": "the batch is lost, which is an incident, and the next one is written",
    "app/http/processes/server.py": "lives for one action",
    "app/http/processes/worker_process.py": "every error is an incident, and the worker is started again",
    "app/retention/collector.py": "repeat",
    "app/scheduling/availability.py": "lives for one check, whose error is its result",
    "app/scheduling/notifier.py": "what it calls handles every error, and the next request starts it again",
    "app/scheduling/periodic.py": "repeat",
    "app/scheduling/startup.py": "every error is an incident, and the preparation is tried again",
    "app/webhooks/sender.py": "repeat; a delivery that fails is claimed again",
    "app/webhooks/transport.py": "lives for one delivery",
    "serving/engines/model_thread.py": "ends the process, which its supervisor starts again",
    "serving/engines/structured/grammar.py": "lives for one compilation",
    "workers/__main__.py": "lives for one action; the deployments repeat",
    "workers/consumer.py": "lives for one action",
    "workers/engines/deployment_runner.py": "every error is reported, and the lease ends",
    "workers/engines/engine_process.py": "every error is reported, and the engine is given up",
    "workers/hosts/resource_limits.py": "every error is logged, and the next second measures again",
    "workers/hosts/warm_start.py": "lives until the fork server is ready",
    "workers/runs/dispatcher.py": "every error is an incident; a run that fails is returned by its lease",
    "workers/tracking/exporter.py": "ends the process, which its worker starts again",
    "workers/tracking/tracker.py": "every error is an incident, and the spool is followed again",
    "workers/tunnels/tunnel.py": "every error is an incident, and the tunnel is opened again",
}


def test_the_threads_of_every_module_are_listed_with_how_they_survive_an_error() -> None:
    assert find_thread_modules() == sorted(THREADS)


def find_thread_modules() -> list[str]:
    """Return the modules that start threads."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    return sorted(str(file.relative_to(ROOT)) for file in files if starts_thread(file))


def starts_thread(file: Path) -> bool:
    names = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute))
    calls = (node for node in names if isinstance(node.value, ast.Name) and node.value.id == "threading")
    return any(node.attr in ("Thread", "Timer") and isinstance(node.ctx, ast.Load) for node in calls)
