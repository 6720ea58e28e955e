"""Write `app/http/response_examples.json`: real responses of the service for the documentation of its API.

`python -m docs.record_response_examples` starts a service in a temporary folder, runs a short job on it and
saves one response for each operation. It takes about two minutes.
"""

import hashlib
import json
import os
import socket
import tempfile
import time
from datetime import UTC, datetime
from typing import Any

import httpx2

from app.demos import examples
from app.demos.quickstart import check_response, run_service
from app.hosts.offers import capability_of
from app.http.response_examples import ERRORS, PATH
from app.settings import Settings
from app.storage.database import transaction
from app.tables import CloudState, Host, Worker
from tests.openai_stand_in import KEY, MODEL, OpenaiStandIn
from trainers.configs.clouds.offers import CloudName, Offer, PriceSource
from trainers.runtime.error_codes import ErrorCode

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
# As OpenAI's API returns them, with what an import requires.
EXPORT = [
    {
        "object": "eval",
        "id": "eval_68a1f0c2d4",
        "name": "Support answers",
        "created_at": 1_750_000_000,
        "data_source_config": {"type": "logs", "schema": {"type": "object"}, "metadata": {"usecase": "bot"}},
        "testing_criteria": [
            {
                "type": "score_model",
                "name": "Helpful",
                "model": "o3-mini",
                "input": [{"role": "user", "content": "Rate from 0 to 1: {{ sample.output_text }}"}],
            }
        ],
    },
    {
        "object": "eval.run",
        "id": "evalrun_68a1f0d7e8",
        "eval_id": "eval_68a1f0c2d4",
        "name": "May",
        "created_at": 1_750_000_060,
        "model": "gpt-4.1-mini",
        "status": "completed",
        "data_source": {"type": "responses", "source": {"type": "responses", "model": "gpt-4.1-mini"}},
        "result_counts": {"total": 120, "passed": 97, "failed": 23, "errored": 0},
    },
]
# Credentials of a host, which need PostgreSQL and Redis.
WORKER_CREDENTIAL = {
    "id": "credential_01m8kkxdy4p03kfw9ph8aq2ksk",
    "key_id": "key_01m8kkxcb4f03kfw9ph8aq2k7q",
    "name": "gpu-1",
    "version": "0.1.0",
    "database_role": "tunesmith_worker_9ph8aq2ksk",
    "broker_user": "tunesmith_worker_9ph8aq2ksk",
    "created_at": "2026-11-29T09:27:19.414246Z",
    "updated_at": "2026-11-29T09:27:19.414246Z",
    "revoked_at": None,
    "ended_at": None,
}
WORKER_CREDENTIAL_SECRETS = {
    "database_url": "postgresql://tunesmith_worker_9ph8aq2ksk:…@10.0.0.1:5432/tunesmith",
    "broker_url": "redis://tunesmith_worker_9ph8aq2ksk:…@10.0.0.1:6379/0",
    "artifacts_url": "s3://tunesmith/artifacts",
    "control_version": "0.1.0",
    "settings": {"TUNESMITH_LEASE_SECONDS": "60"},
    "notices": [],
}
# 21 requests without a failure show that at most a fifth fails.
PROMOTION = {
    "steps": [{"share": 0.5}, {"share": 1}],
    "conditions": {"max_error_rate": 0.2},
    **{"min_seconds": 1, "min_requests": 10},
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
            "TUNESMITH_WEBHOOK_ALLOWED_HOSTS": json.dumps(["127.0.0.1"]),
        }
        account = OpenaiStandIn()
        account.add_model([{"messages": _chat(f"{n} + 1 = ?", str(n + 1))} for n in range(50)])
        os.environ |= {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": account.url}
        settings = Settings()
        examples.ensure_starter_model(settings)
        with run_service(settings) as base_url, httpx2.Client(base_url=base_url, timeout=60) as client:
            recorded = _Recorder(client, settings).record_all()
    text = json.dumps(recorded, indent=2, ensure_ascii=False) + "\n"
    receiver = f"http://127.0.0.1:{client.base_url.port}/hooks"
    for private, public in (
        (folder, "/var/lib/tunesmith"),
        (socket.gethostname(), "host-1"),
        (receiver, "https://example.com/hooks"),
    ):
        text = text.replace(private, public)
    PATH.write_text(text, encoding="utf-8")


class _Recorder:
    """The responses that have been recorded, by operation, and the requests for more."""

    def __init__(self, client: httpx2.Client, settings: Settings) -> None:
        self._client = client
        self._settings = settings
        self.recorded: dict[str, Any] = {}

    def record_all(self) -> dict[str, Any]:
        """Record every operation; the keys come last, because other requests need none until then."""
        dataset_id = self._record_datasets()
        self._record_jobs(dataset_id)
        trained, evaluated = self.recorded["get_job"]["runs"]
        self._record_evaluations(evaluated["id"], dataset_id)
        self._record_models(trained)
        self._record_deployments(trained["model_id"])
        self.recorded["create_collection"] = self._post("/storage/collections", {"dry_run": True})
        for name in ("workers", "queues", "storage", "presets"):
            verb = "get" if name == "storage" else "list"
            self.recorded[f"{verb}_{name}"] = self._get(f"/{name}")
        self.recorded["get_preset"] = self.recorded["list_presets"]["items"][0]
        for name in ("healthz", "readyz"):
            self.recorded[name] = check_response(self._client.get(f"/{name}"))
        self._record_webhooks()
        self._record_evals()
        self._record_rescues()
        self._record_worker_credentials()
        self._record_errors_and_keys()
        return self.recorded

    def _get(self, path: str, **params: Any) -> Any:
        return _shorten(check_response(self._client.get(f"/api/v1{path}", params=params)))

    def _post(self, path: str, body: Any = None) -> Any:
        return _shorten(check_response(self._client.post(f"/api/v1{path}", json=body)))

    def _put(self, path: str, body: Any) -> Any:
        return _shorten(check_response(self._client.put(f"/api/v1{path}", json=body)))

    def _record_datasets(self) -> str:
        """Upload the example data; return the id of the last dataset, whose rows are evaluated."""
        for name, path in examples.write_datasets(self._settings.data_dir / "rows").items():
            with path.open("rb") as file:
                parts = {"file": (path.name, file)}
                response = self._client.post("/api/v1/datasets", data={"name": name}, files=parts)
            self.recorded["upload_dataset"] = _shorten(check_response(response))
        dataset_id: str = self.recorded["upload_dataset"]["id"]
        self.recorded["list_datasets"] = self._get("/datasets", limit=1)
        self.recorded["get_dataset"] = self._get(f"/datasets/{dataset_id}")
        self.recorded["list_rows"] = self._get(f"/datasets/{dataset_id}/rows", limit=1)
        return dataset_id

    def _record_jobs(self, dataset_id: str) -> None:
        record, post = self.recorded, self._post
        record["dry_run_job"] = post("/jobs/dry-run", JOB)
        record["create_job"] = post("/jobs", JOB)
        job_id = record["create_job"]["id"]
        record["get_job"] = _await_job(self._client, job_id)
        run_id = record["get_job"]["runs"][0]["id"]
        record["get_run"] = self._get(f"/runs/{run_id}")
        record["list_runs"] = self._get("/runs", limit=1, stage="sft")
        for name in ("events", "metrics", "logs", "checkpoints"):
            record[f"list_{name}"] = self._get(f"/runs/{run_id}/{name}", limit=MAX_ITEMS)
        record["list_run_files"] = self._get(f"/runs/{run_id}/files")
        record["create_preflight"] = post("/jobs/preflight", JOB)
        preview = {"model": "starter", "rows": 1}
        record["create_preview"] = post(f"/datasets/{dataset_id}/previews", preview)
        later = post("/jobs", JOB | {"name": "later", "priority": -1})["id"]
        record["list_waiting_runs"] = self._get("/queues/cpu/waiting", limit=MAX_ITEMS)
        for action in ("pause", "resume", "cancel", "retry"):
            record[f"{action}_job"] = post(f"/jobs/{later}/{action}")
        post(f"/jobs/{later}/cancel")
        replay = {"name": "seed 7", "priority": -1, "changes": {"sft": {"seed": 7}}, "reuse": True}
        record["replay_job"] = post(f"/jobs/{job_id}/replay", replay)
        replayed = record["replay_job"]["id"]
        record["diff_jobs"] = self._get("/jobs/diff", a=job_id, b=replayed)
        post(f"/jobs/{replayed}/cancel")
        record["list_jobs"] = self._get("/jobs", limit=1, name="arithmetic")

    def _record_evaluations(self, run_id: str, dataset_id: str) -> None:
        record = self.recorded
        record["list_evaluations"] = self._get("/evaluations", run=run_id)
        model, baseline = sorted(
            (each["id"] for each in record["list_evaluations"]["items"]),
            key=lambda each: self._get(f"/evaluations/{each}")["role"],
            reverse=True,
        )
        record["get_evaluation"] = self._get(f"/evaluations/{model}")
        record["list_evaluation_rows"] = self._get(f"/evaluations/{model}/rows", limit=1)
        record["create_comparison"] = self._post("/comparisons", {"evaluations": [model, baseline]})
        job_id = record["create_comparison"]["id"]
        _await_job(self._client, job_id)
        record["list_comparisons"] = self._get("/comparisons", job=job_id)
        comparison_id = record["list_comparisons"]["items"][0]["id"]
        record["get_comparison"] = self._get(f"/comparisons/{comparison_id}")
        leaderboard = f"/datasets/{dataset_id}/leaderboard"
        record["get_leaderboard"] = self._get(leaderboard, metric="maths_exact_match")

    def _record_models(self, trained: dict[str, Any]) -> None:
        model_id = trained["model_id"]
        self.recorded["list_models"] = self._get("/models", limit=1)
        self.recorded["get_model"] = self._get(f"/models/{model_id}")
        self.recorded["list_model_files"] = self._get(f"/models/{model_id}/files")
        self.recorded["import_model"] = self._post("/models", {"source": "starter"})
        weights = self._settings.data_dir / "artifacts" / "models" / model_id
        shown = [file for file in weights.iterdir() if file.is_file() and not file.name.startswith(".")]
        parts = [("file", (file.name, file.read_bytes())) for file in shown]
        form = {"name": "mine", "base": "starter"}
        uploaded = self._client.post("/api/v1/models/uploads", data=form, files=parts)
        self.recorded["upload_model"] = check_response(uploaded)

    def _record_deployments(self, model_id: str) -> None:
        record = self.recorded
        record["create_deployment"] = self._post("/deployments", {"name": "maths", "model": model_id})
        path = f"/deployments/{record['create_deployment']['id']}"
        record["get_deployment"] = _await_deployment(self._client, record["create_deployment"]["id"])
        record["list_deployments"] = self._get("/deployments", limit=1, name="maths")
        record["wake_deployment"] = self._post(f"{path}/wake")
        record["update_alias"] = self._put("/aliases/solver", {"targets": [{"deployment": "maths"}]})
        record["get_alias"] = self._get("/aliases/solver")
        record["list_aliases"] = self._get("/aliases")
        self._put("/aliases/solver", {"targets": [{"deployment": "maths", "share": 1}]})
        record["list_routes"] = self._get("/routes")
        record["roll_back_alias"] = self._post("/aliases/solver/rollback", {})
        record["list_alias_versions"] = self._get("/aliases/solver/history")
        self._record_promotion(model_id)
        record["stop_deployment"] = self._post(f"{path}/stop?force=true")

    def _record_promotion(self, model_id: str) -> None:
        """Record a promotion in its second step; its job is cancelled."""
        following = self._post("/deployments", {"name": "maths-next", "model": model_id})["id"]
        _await_deployment(self._client, following)
        stage = {"stage": "promote", "alias": "solver", "deployment": "maths-next", **PROMOTION}
        job_id = self._post("/jobs", {"name": "promotion", "stages": [stage]})["id"]
        chat = {"model": "solver", "messages": _chat("1 + 1 = ?", "")[:1], "max_tokens": 4}
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not _is_in_second_step(promotions := self._get("/aliases/solver/promotions")):
            assert time.monotonic() < deadline, f"the promotion is not in its second step: {promotions}"
            check_response(self._client.post("/v1/chat/completions", json=chat))
        self.recorded["list_promotions"] = promotions
        self._post(f"/jobs/{job_id}/cancel")
        _await_job(self._client, job_id)
        self._post(f"/deployments/{following}/stop?force=true")

    def _record_webhooks(self) -> None:
        """Record a webhook whose receiver is a server of this machine that never saw a webhook."""
        record = self.recorded
        port = self._client.base_url.port
        body = {
            "name": "ci",
            "url": f"http://127.0.0.1:{port}/hooks/tunesmith",
            "event_types": ["job.succeeded", "job.cancelled"],
        }
        record["create_webhook"] = self._post("/webhooks", body)
        path = f"/webhooks/{record['create_webhook']['id']}"
        record["test_webhook"] = self._post(f"{path}/test", {"event_type": "job.succeeded"})
        job_id = self._post("/jobs", JOB | {"name": "cancelled"})["id"]
        self._post(f"/jobs/{job_id}/cancel")
        _await_job(self._client, job_id)
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not (deliveries := self._get(f"{path}/deliveries"))["items"][0]["attempts"]:
            assert time.monotonic() < deadline, "no delivery was attempted"
            time.sleep(0.5)
        record["list_webhook_deliveries"] = deliveries
        delivery = f"{path}/deliveries/{deliveries['items'][0]['id']}"
        record["redeliver_event"] = self._post(f"{delivery}/redeliver")
        record["list_webhooks"] = self._get("/webhooks")
        record["get_webhook"] = self._get(path)
        changed = self._client.patch(f"/api/v1{path}", json={"event_types": ["job.succeeded"]})
        record["update_webhook"] = check_response(changed)
        rotated = self._post(f"{path}/rotate-secret", {"keep_previous_hours": 24})
        for name, view in (("create_webhook", record["create_webhook"]), ("rotate_webhook_secret", rotated)):
            record[name] = view | {"secret": f"{view['secret_hint']}…"}

    def _record_evals(self) -> None:
        lines = "".join(json.dumps(each) + "\n" for each in EXPORT).encode()
        parts = {"file": ("evals.jsonl", lines)}
        self.recorded["import_evals"] = check_response(
            self._client.post("/api/v1/evals/imports", files=parts)
        )

    def _record_worker_credentials(self) -> None:
        """Record the credentials of a host as constants."""
        record = self.recorded
        record["create_worker_credential"] = WORKER_CREDENTIAL | WORKER_CREDENTIAL_SECRETS
        record["list_worker_credentials"] = {"items": [WORKER_CREDENTIAL], "next": None}
        record["revoke_worker_credential"] = WORKER_CREDENTIAL | {"revoked_at": "2026-11-30T10:00:00Z"}

    def _record_rescues(self) -> None:
        """Record a rescue from a stand-in of OpenAI; its job is cancelled."""
        record = self.recorded
        record["list_openai_models"] = self._get("/rescues/models")
        record["create_rescue"] = self._post("/rescues", {"fine_tuned_model": MODEL})
        path = f"/rescues/{record['create_rescue']['id']}"
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while (fetched := self._get(path))["status"] == "fetching":
            assert time.monotonic() < deadline, "the rescue fetches no files"
            time.sleep(0.5)
        record["get_rescue"] = fetched
        started = record["start_rescue"] = self._post(f"{path}/start", {"max_cost": 0.5, "base": "starter"})
        record["list_rescues"] = self._get("/rescues")
        self._post(f"/jobs/{started['job_id']}/cancel")
        _await_job(self._client, started["job_id"])

    def _record_hosts(self) -> None:
        """Record the request of a host, for which a worker seems to hold the keys of a cloud."""
        offer = Offer(
            cloud=CloudName.lambda_cloud,
            type="gpu_1x_a10",
            region="us-west-1",
            gpu_name="A10",
            gpu_count=1,
            gpu_memory_gib=24,
            cpu_count=30,
            memory_gib=200,
            usd_per_hour=0.75,
            price_source=PriceSource.cloud,
            price_date=datetime.now(UTC),
            has_capacity=True,
        )
        keeper = Worker(name="control", host="control", pid=1, capabilities=[capability_of(offer.cloud)])
        state = CloudState(name=offer.cloud, offers=[offer.model_dump(mode="json")], worker_id=keeper.id)
        state.offers_at = state.swept_at = keeper.last_seen_at = datetime.now(UTC)
        with transaction() as session:
            session.add_all([keeper, state])
        body = {"cloud": offer.cloud, "type": offer.type, "max_usd": 5.0}
        created = self.recorded["create_host"] = self._post("/hosts", body)
        path = f"/hosts/{created['id']}"
        self.recorded |= {"get_offers": self._get("/hosts/offers"), "list_hosts": self._get("/hosts")}
        self.recorded["get_host"] = self._get(path)
        self.recorded["delete_host"] = check_response(self._client.delete(f"/api/v1{path}"))
        with transaction() as session:
            host = session.get_one(Host, created["id"])
            # As of a host that the keys of another account have launched, after a restoration.
            host.problem = {"code": ErrorCode.host_out_of_reach, "message": "out of reach", "hint": None}
            session.get_one(CloudState, offer.cloud).held_at = datetime.now(UTC)
        body = {"settlement": "machine_ended"}
        self.recorded["settle_host"] = self._post(f"{path}/settle", body)
        self.recorded["take_over_machines"] = self._post("/hosts/take-over", {"cloud": offer.cloud})

    def _record_errors_and_keys(self) -> None:
        client = self._client
        job_id = self.recorded["get_job"]["id"]
        errors = {
            "not_found": client.get(f"/api/v1/jobs/{job_id[:-1]}0"),
            "conflict": client.put("/api/v1/aliases/solver", json={"targets": [{"deployment": "other"}]}),
            "malformed": client.post("/api/v1/jobs", json={"name": "mine", "stages": [{"stage": "sft"}]}),
        }
        # From here on, requests need the key.
        admin = {"name": "admin", "scopes": ["admin"], "lock_service": True}
        secret = check_response(client.post("/api/v1/keys", json=admin))["key"]
        errors["unauthorized"] = client.get("/api/v1/jobs")
        client.headers["Authorization"] = f"Bearer {secret}"
        created = self._post("/keys", {"name": "app", "scopes": ["inference"], "requests_per_minute": 60})
        self.recorded["create_key"] = created | {"key": "ts_…"}
        path = f"/keys/{created['id']}"
        limits = check_response(client.patch(f"/api/v1{path}", json={"concurrent_requests": 8}))
        self.recorded |= {"get_own_key": self._get("/keys/self"), "list_keys": self._get("/keys")}
        self.recorded["update_key"] = limits
        self.recorded["get_key"] = self._get(path)
        report = {"key_id": created["id"], "day": f"{datetime.now(UTC):%Y-%m-%d}", "tokens": 1280}
        body = {"reporter": f"gateway_{'0' * 24}", "items": [report]}
        self.recorded["record_token_use"] = self._post("/token-use", body)
        self._record_hosts()
        self._record_artifacts()
        self.recorded["revoke_key"] = check_response(client.delete(f"/api/v1{path}"))
        self.recorded[ERRORS] = {
            name: {"summary": f"{error.status_code} {error.reason_phrase}", "value": error.json()}
            for name, error in sorted(errors.items(), key=lambda item: item[1].status_code)
        }

    def _record_artifacts(self) -> None:
        content = b"the log of a run"
        sha256 = hashlib.sha256(content).hexdigest()
        path, size = f"/artifacts/uploads/{sha256}", {"sha256": sha256, "size_bytes": len(content)}
        self.recorded["get_artifact_upload"] = self._get(path)
        for operation, kind, body in (
            ("publish_artifact_file", "files", {"key": "runs/run_example/1/log.txt", **size}),
            (
                "publish_artifact_folder",
                "folders",
                {"key": "models/model_example", "files": [{"path": "README.md", **size}]},
            ),
        ):
            query = {"offset_bytes": 0, "size_bytes": len(content)}
            sent = self._client.patch(f"/api/v1{path}", params=query, content=content)
            self.recorded["append_artifact_upload"] = check_response(sent)
            self.recorded[operation] = self._post(f"/artifacts/{kind}", body)


def _chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


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


def _is_in_second_step(promotions: dict[str, Any]) -> bool:
    return any(item["steps"][1]["conditions"] for item in promotions["items"])


def _shorten(value: Any) -> Any:
    """Keep the first items of long lists, so that an example fits on a screen."""
    if isinstance(value, dict):
        return {key: item[:MAX_LINES] if key == "lines" else _shorten(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shorten(item) for item in value[:MAX_ITEMS]]
    return value


if __name__ == "__main__":
    main()
