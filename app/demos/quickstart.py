"""Train, evaluate, deploy and chat with a tiny model, through the HTTP API alone.

python -m app.demos.quickstart
"""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
from openai import OpenAI
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from app.demos import examples
from app.settings import Settings, get_settings
from trainers.runtime.error_codes import ErrorCode

DEPLOYMENT = "arithmetic"
START_TIMEOUT_SECONDS = 60

console = Console(highlight=False)


def main() -> int:
    """Run the demo; return 0 if the tuned model scores higher than its base, else 1."""
    settings = get_settings()
    console.print("[bold]1. A tiny starter model and generated word problems[/]")
    examples.ensure_starter_model(settings)
    with run_service(settings) as base_url, httpx2.Client(base_url=base_url, timeout=60) as client:
        upload_datasets(client, settings)
        job = submit_job(client)
        for run in job["runs"]:
            follow_run(client, run)
        evaluation = print_evaluation(client, job["id"])
        chat(base_url)
    print_next_steps(settings)
    tuned, base = (model["scores"][0]["value"] for model in evaluation["models"])
    return 0 if tuned > base else 1


@contextmanager
def run_service(settings: Settings) -> Iterator[str]:
    """Run `python -m app` on a free port; stop it with its worker and engines at the end."""
    port = find_free_port()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with (settings.data_dir / "demo.log").open("wb") as log:
        app = subprocess.Popen([sys.executable, "-m", "app", "--port", str(port)], stdout=log, stderr=log)
    base_url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(app, base_url)
        console.print(f"[bold]2. The service[/]\n   {base_url}/docs, its log is in {log.name}")
        yield base_url
    finally:
        app.send_signal(signal.SIGTERM)
        app.wait()


def wait_until_ready(app: "subprocess.Popen[bytes]", base_url: str) -> None:
    """Wait until the service is ready; raise SystemExit if it does not start."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline and app.poll() is None:
        try:
            if httpx2.get(f"{base_url}/readyz").status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.2)
    raise SystemExit("The service did not start. Its log contains the reason.")


def upload_datasets(client: httpx2.Client, settings: Settings) -> None:
    """Upload the datasets, and print the results of their validation."""
    console.print("[bold]3. Datasets[/]")
    for name, path in examples.write_datasets(settings.data_dir / "examples").items():
        with path.open("rb") as file:
            response = client.post("/api/v1/datasets", data={"name": name}, files={"file": (path.name, file)})
        dataset = check_response(response)
        console.print(
            f"   {dataset['name']}: {dataset['row_count']} rows of format {dataset['format']}, "
            f"{dataset['fault_count']} faults"
        )


def submit_job(client: httpx2.Client) -> dict[str, Any]:
    """Submit a job of three stages: the example of the API's documentation."""
    console.print("[bold]4. One job: sft → evaluate → deploy[/]")
    endpoint = check_response(client.get("/openapi.json"))["paths"]["/api/v1/jobs"]["post"]
    example = endpoint["requestBody"]["content"]["application/json"]["examples"]["arithmetic"]["value"]
    job: dict[str, Any] = check_response(client.post("/api/v1/jobs", json=example))
    console.print(f"   {job['id']} ({job['name']})")
    return job


def follow_run(client: httpx2.Client, run: dict[str, Any]) -> None:
    """Show a run's progress from its event stream until it ends.

    Raises SystemExit if it fails, unless it is a gate that is not met.
    """
    columns = (
        TextColumn("   {task.description:9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(run["name"], total=None, note="")
        for kind, event in stream_events(client, run["id"]):
            data = event.get("data", {})
            if kind in ("progress", "metrics") and event.get("step") is not None:
                progress.update(bar, completed=event["step"], total=data.get("total_steps"))
            if kind == "metrics" and "loss" in data:
                progress.update(bar, note=f"loss {data['loss']:.3f}")
            if kind == "status" and data["status"] == "failed":
                if data["error"]["code"] == ErrorCode.gate_not_met:
                    return
                raise SystemExit(f"{run['name']} failed: {data['error']['message']} {data['error']['hint']}")
            if kind == "status" and data["status"] == "succeeded":
                total = progress.tasks[bar].total or 1
                progress.update(bar, completed=total, total=total)


def stream_events(client: httpx2.Client, run_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the types and the data of a run's server-sent events."""
    with client.stream("GET", f"/api/v1/runs/{run_id}/stream", timeout=None) as response:
        kind = ""
        for line in response.iter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                yield kind, json.loads(value)


def print_evaluation(client: httpx2.Client, job_id: str) -> dict[str, Any]:
    """Print the held-out scores of the base and the tuned model, with counts and intervals."""
    console.print("[bold]5. Accuracy on held-out problems, greedy decoding[/]")
    runs = check_response(client.get(f"/api/v1/jobs/{job_id}"))["runs"]
    result: dict[str, Any] = next(run["result"] for run in runs if run["stage"] == "evaluate")
    for model in reversed(result["models"]):
        score = model["scores"][0]
        low, high = score["interval_95"]
        console.print(
            f"   {model['role']:9} {score['value']:.1%}  "
            f"({score['n']} rows, 95% interval {low:.1%}–{high:.1%})"
        )
    return result


def chat(base_url: str) -> None:
    """Stream a completion of the deployed model with the openai SDK."""
    console.print("[bold]6. The deployed model on /v1/chat/completions, with the openai SDK[/]")
    question = examples.get_held_out_question()
    console.print(f"   [dim]user:[/] {question}\n   [dim]{DEPLOYMENT}:[/] ", end="")
    with OpenAI(base_url=f"{base_url}/v1", api_key="none-needed-on-loopback") as openai:
        stream = openai.chat.completions.create(
            model=DEPLOYMENT,
            messages=[{"role": "user", "content": question}],
            max_tokens=48,
            temperature=0,
            stream=True,
        )
        for chunk in stream:
            console.print((chunk.choices[0].delta.content or "").replace("\n", " "), end="")
    console.print()


def print_next_steps(settings: Settings) -> None:
    """Print the commands for the user's own data and model."""
    address = f"http://127.0.0.1:{settings.port}"
    job = {
        "name": "mine",
        "stages": [
            {"stage": "sft", "base": "Qwen/Qwen2.5-0.5B-Instruct", "dataset": "mine"},
            {"stage": "deploy", "model": {"stage": "sft"}, "deployment": "mine"},
        ],
    }
    question = {"model": "mine", "messages": [{"role": "user", "content": "Hello"}]}
    console.print(
        f"\n[bold]The service is stopped. `make run` starts it again: {address}/docs[/]\n"
        "Three commands do the same with your own data and model:\n"
    )
    for command in (
        f"curl -F name=mine -F file=@mine.jsonl {address}/api/v1/datasets",
        f"curl {address}/api/v1/jobs --json '{json.dumps(job)}'",
        f"curl {address}/v1/chat/completions --json '{json.dumps(question)}'",
    ):
        console.print(f"  {command}\n", soft_wrap=True, markup=False)


def check_response(response: httpx2.Response) -> Any:
    """Return the response's JSON; raise SystemExit with the service's message if it is an error."""
    if response.is_error:
        raise SystemExit(f"{response.request.method} {response.request.url.path}: {response.text}")
    return response.json()


def find_free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


if __name__ == "__main__":
    sys.exit(main())
