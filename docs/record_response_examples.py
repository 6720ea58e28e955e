"""Write `app/http/response_examples.json`: real responses of the service for the documentation of its API.

`python -m docs.record_response_examples` starts a service in a temporary folder, runs a short job on it and
saves one response for each operation. It takes about two minutes.
"""

import json
import os
import socket
import tempfile
import time
from collections.abc import Callable
from typing import Any

import httpx2

from app.demos import examples
from app.demos.quickstart import check_response, run_service
from app.http.response_examples import ERRORS, PATH
from app.settings import Settings

JOB = {
    "name": "arithmetic",
    "labels": {"team": "maths"},
    "stages": [
        {
            "stage": "sft",
            "base": "starter",
            "dataset": "arithmetic-train",
            "max_steps": 10,
            "save_every_steps": 5,
        },
        {
            "stage": "evaluate",
            "model": {"stage": "sft"},
            "baseline": "starter",
            "dataset": "arithmetic-test",
            "max_rows": 20,
            "max_new_tokens": 24,
        },
    ],
}
MAX_ITEMS = 2
MAX_LINES = 4
TIMEOUT_SECONDS = 300


def main() -> None:
    """Record all examples and write the file."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {
            "TUNESMITH_DATA_DIR": folder,
            "TUNESMITH_MODEL_ROOTS": json.dumps([f"{folder}/models"]),
        }
        settings = Settings()
        examples.ensure_starter_model(settings)
        with run_service(settings) as base_url, httpx2.Client(base_url=base_url, timeout=60) as client:
            recorded = _record(client, settings)
    text = json.dumps(recorded, indent=2, ensure_ascii=False) + "\n"
    for private, public in ((folder, "/var/lib/tunesmith"), (socket.gethostname(), "host-1")):
        text = text.replace(private, public)
    PATH.write_text(text, encoding="utf-8")


def _record(client: httpx2.Client, settings: Settings) -> dict[str, Any]:
    def get(path: str, **params: Any) -> Any:
        return _shorten(check_response(client.get(f"/api/v1{path}", params=params)))

    def post(path: str, body: Any = None) -> Any:
        return _shorten(check_response(client.post(f"/api/v1{path}", json=body)))

    def put(path: str, body: Any) -> Any:
        return _shorten(check_response(client.put(f"/api/v1{path}", json=body)))

    recorded: dict[str, Any] = {}
    for name, path in examples.write_datasets(settings.data_dir / "rows").items():
        with path.open("rb") as file:
            response = client.post("/api/v1/datasets", data={"name": name}, files={"file": (path.name, file)})
        recorded["upload_dataset"] = _shorten(check_response(response))
    dataset_id = recorded["upload_dataset"]["id"]
    recorded["dry_run_job"] = post("/jobs/dry-run", JOB)
    recorded["create_job"] = post("/jobs", JOB)
    job_id = recorded["create_job"]["id"]
    recorded["get_job"] = _await_job(client, job_id)
    run = recorded["get_job"]["runs"][0]
    recorded["get_run"] = get(f"/runs/{run['id']}")
    recorded["list_runs"] = get("/runs", limit=1, stage="sft")
    for name in ("events", "metrics", "logs", "checkpoints"):
        recorded[f"list_{name}"] = get(f"/runs/{run['id']}/{name}", limit=MAX_ITEMS)
    recorded["create_preflight"] = post("/jobs/preflight", JOB)
    recorded["create_preview"] = post(f"/datasets/{dataset_id}/previews", {"model": "starter", "rows": 1})
    later = post("/jobs", JOB | {"name": "later", "priority": -1})["id"]
    recorded |= {f"{action}_job": post(f"/jobs/{later}/{action}") for action in ("pause", "resume", "cancel")}
    recorded["retry_job"] = post(f"/jobs/{later}/retry")
    post(f"/jobs/{later}/cancel")
    replay = {"name": "arithmetic-seed-7", "priority": -1, "changes": {"sft": {"seed": 7}}, "reuse": True}
    recorded["replay_job"] = post(f"/jobs/{job_id}/replay", replay)
    replayed = recorded["replay_job"]["id"]
    recorded["diff_jobs"] = get("/jobs/diff", a=job_id, b=replayed)
    post(f"/jobs/{replayed}/cancel")
    recorded["list_jobs"] = get("/jobs", limit=1, name="arithmetic")
    recorded |= _record_evaluations(client, recorded["get_job"]["runs"][1]["id"], get, post)
    recorded["get_leaderboard"] = get(f"/datasets/{dataset_id}/leaderboard", metric="maths_exact_match")
    recorded["list_datasets"] = get("/datasets", limit=1)
    recorded["get_dataset"] = get(f"/datasets/{dataset_id}")
    recorded["list_rows"] = get(f"/datasets/{dataset_id}/rows", limit=1)
    recorded["list_models"] = get("/models", limit=1)
    recorded["get_model"] = get(f"/models/{run['model_id']}")
    recorded["list_model_files"] = get(f"/models/{run['model_id']}/files")
    recorded["list_run_files"] = get(f"/runs/{run['id']}/files")
    recorded["import_model"] = post("/models", {"source": "starter"})
    weights = settings.data_dir / "artifacts" / "models" / run["model_id"]
    shown = [file for file in weights.iterdir() if file.is_file() and not file.name.startswith(".")]
    parts = [("file", (file.name, file.read_bytes())) for file in shown]
    uploaded = client.post("/api/v1/models/uploads", data={"name": "mine", "base": "starter"}, files=parts)
    recorded["upload_model"] = check_response(uploaded)
    deployment = {"name": "maths", "model": run["model_id"]}
    recorded["create_deployment"] = post("/deployments", deployment)
    deployment_id = recorded["create_deployment"]["id"]
    recorded["get_deployment"] = _await_deployment(client, deployment_id)
    recorded["list_deployments"] = get("/deployments", limit=1, name="maths")
    recorded["wake_deployment"] = post(f"/deployments/{deployment_id}/wake")
    recorded["update_alias"] = put("/aliases/solver", {"targets": [{"deployment": "maths"}]})
    recorded["get_alias"] = get("/aliases/solver")
    recorded["list_aliases"] = get("/aliases")
    put("/aliases/solver", {"targets": [{"deployment": "maths", "share": 1}]})
    recorded["list_routes"] = get("/routes")
    recorded["roll_back_alias"] = post("/aliases/solver/rollback", {})
    recorded["list_alias_versions"] = get("/aliases/solver/history")
    recorded["stop_deployment"] = post(f"/deployments/{deployment_id}/stop?force=true")
    recorded["list_workers"] = get("/workers")
    recorded["get_storage"] = get("/storage")
    recorded["list_presets"] = get("/presets")
    recorded["get_preset"] = recorded["list_presets"]["items"][0]
    for name in ("healthz", "readyz"):
        recorded[name] = check_response(client.get(f"/{name}"))
    errors = {
        "not_found": client.get(f"/api/v1/jobs/{job_id[:-1]}0"),
        "conflict": client.put("/api/v1/aliases/solver", json={"targets": [{"deployment": "other"}]}),
        "malformed": client.post("/api/v1/jobs", json={"name": "mine", "stages": [{"stage": "sft"}]}),
    }
    # From here on, requests need the key.
    secret = check_response(
        client.post("/api/v1/keys", json={"name": "admin", "scopes": ["admin"], "lock_service": True})
    )["key"]
    errors["unauthorized"] = client.get("/api/v1/jobs")
    client.headers["Authorization"] = f"Bearer {secret}"
    created = post("/keys", {"name": "app", "scopes": ["inference"], "requests_per_minute": 60})
    recorded["create_key"] = created | {"key": "ts_…"}
    path = f"/keys/{created['id']}"
    limits = check_response(client.patch(f"/api/v1{path}", json={"concurrent_requests": 8}))
    recorded |= {"get_own_key": get("/keys/self"), "list_keys": get("/keys"), "update_key": limits}
    recorded["revoke_key"] = check_response(client.delete(f"/api/v1{path}"))
    recorded[ERRORS] = {
        name: {"summary": f"{error.status_code} {error.reason_phrase}", "value": error.json()}
        for name, error in sorted(errors.items(), key=lambda item: item[1].status_code)
    }
    return recorded


def _record_evaluations(
    client: httpx2.Client, run_id: str, get: Callable[..., Any], post: Callable[..., Any]
) -> dict[str, Any]:
    recorded = {"list_evaluations": get("/evaluations", run=run_id)}
    model, baseline = sorted(
        (each["id"] for each in recorded["list_evaluations"]["items"]),
        key=lambda each: get(f"/evaluations/{each}")["role"],
        reverse=True,
    )
    recorded["get_evaluation"] = get(f"/evaluations/{model}")
    recorded["list_evaluation_rows"] = get(f"/evaluations/{model}/rows", limit=1)
    recorded["create_comparison"] = post("/comparisons", {"evaluations": [model, baseline]})
    job_id = recorded["create_comparison"]["id"]
    _await_job(client, job_id)
    recorded["list_comparisons"] = get("/comparisons", job=job_id)
    comparison_id = recorded["list_comparisons"]["items"][0]["id"]
    recorded["get_comparison"] = get(f"/comparisons/{comparison_id}")
    return recorded


def _await_job(client: httpx2.Client, job_id: str) -> Any:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        job = check_response(client.get(f"/api/v1/jobs/{job_id}"))
        if job["status"] in ("succeeded", "failed", "cancelled"):
            return _shorten(job)
        time.sleep(0.5)
    raise SystemExit(f"{job_id} did not end.")


def _await_deployment(client: httpx2.Client, deployment_id: str) -> Any:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        deployment = check_response(client.get(f"/api/v1/deployments/{deployment_id}"))
        if deployment["status"] in ("ready", "failed"):
            return _shorten(deployment)
        time.sleep(0.5)
    raise SystemExit(f"{deployment_id} did not become ready.")


def _shorten(value: Any) -> Any:
    """Keep the first items of long lists, so that an example fits on a screen."""
    if isinstance(value, dict):
        return {key: item[:MAX_LINES] if key == "lines" else _shorten(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shorten(item) for item in value[:MAX_ITEMS]]
    return value


if __name__ == "__main__":
    main()
