"""A stand-in for Lambda's published API (https://docs.lambda.ai/api/cloud, v1.10), without code of ours.

Its checks, error codes and limits are those of the specification: exactly one SSH key, a name of at most 64
characters, no idempotency token, no time of creation. `python -m tests.clouds.lambda_stand_in` runs it alone.
"""

import json
import re
import secrets
import time
from collections.abc import Callable
from typing import Any

from tests.clouds.faults import Fault, FaultPlan
from tests.clouds.http_stand_in import HttpStandIn

API_KEY = "secret_standin_0123456789abcdef.0123456789"
REGIONS = ("us-east-1", "us-west-1", "europe-central-1")
ERRORS = {
    Fault.no_capacity: ("instance-operations/launch/insufficient-capacity", 400),
    Fault.quota: ("global/quota-exceeded", 400),
    Fault.unauthorized: ("global/invalid-api-key", 401),
    Fault.invalid: ("global/invalid-parameters", 400),
    Fault.server_error: ("global/internal-error", 500),
}
ACTIONS = ("migrate", "rebuild", "restart", "cold_reboot", "terminate")
TYPES = {
    "gpu_1x_a10": (129, "A10 (24 GB PCIe)", 1, 30, 226, ("us-east-1",)),
    "gpu_8x_h100_sxm5": (3192, "H100 (80 GB SXM5)", 8, 208, 1800, ()),
    "cpu_4x_general": (20, "N/A", 0, 4, 16, ("us-east-1",)),
}
Reply = tuple[int, dict[str, str], bytes]


class Refusal(Exception):
    """An error of the API."""

    def __init__(self, code: str, status: int, message: str = "By the stand-in.") -> None:
        super().__init__(code)
        self.code, self.status, self.message = code, status, message


class LambdaStandIn(HttpStandIn):
    """An account at Lambda."""

    def __init__(
        self,
        request_seconds: float = 0.0,
        launch_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        port: int = 0,
    ) -> None:
        self.plan = FaultPlan()
        self.instances: dict[str, dict[str, Any]] = {}
        self.keys: list[dict[str, str]] = []
        self.launches: list[dict[str, Any]] = []
        """The bodies of the requests that have launched a machine."""
        self.has_tags = True
        self._request_seconds, self._launch_seconds, self._clock = request_seconds, launch_seconds, clock
        self._last_request = self._last_launch = float("-inf")
        super().__init__(port)
        self.url += "/api/v1"

    def boot(self, instance_id: str, address: str | None = "203.0.113.7") -> None:
        """Let a machine become active; without an address, Lambda has not shown it yet."""
        self.instances[instance_id] |= {"status": "active"} | ({"ip": address} if address else {})

    def billed(self) -> list[str]:
        """Return the ids of the machines that cost money."""
        return [
            id for id, item in self.instances.items() if item["status"] not in ("terminated", "preempted")
        ]

    def handle(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Reply | None:
        """Return a response as the specification says, or a fault."""
        action = f"{method} {re.sub(r'^/api/v1', '', path)}"
        fault = self.plan.take(re.sub(r"/instances/.*", "/instances/{id}", action))
        if fault is Fault.lost_request:
            return None
        if fault is Fault.rate:
            return 429, {"content-type": "text/html"}, b"<html>error code: 1015</html>"
        try:
            if fault in ERRORS:
                raise Refusal(*ERRORS[fault])
            self._check(action, headers)
            reply = _json(
                {"data": self._respond(method, path.removeprefix("/api/v1"), json.loads(body or b"{}"))}
            )
        except Refusal as refusal:
            error = {"code": refusal.code, "message": refusal.message, "suggestion": "See the documentation."}
            reply = _json({"error": error}, refusal.status)
        if fault is Fault.lost_response:
            return None
        if fault is Fault.garbled:
            return 200, {"content-type": "text/html"}, b"<html><title>One moment, please</title></html>"
        return reply

    def _check(self, action: str, headers: dict[str, str]) -> None:
        now = self._clock()
        if headers.get("authorization") != f"Bearer {API_KEY}":
            raise Refusal("global/invalid-api-key", 401, "API key was invalid, expired, or deleted.")
        if now - self._last_request < self._request_seconds:
            raise Refusal("global/too-many-requests", 429)
        self._last_request = now
        if action == "POST /instance-operations/launch":
            if now - self._last_launch < self._launch_seconds:
                raise Refusal("global/too-many-requests", 429)
            self._last_launch = now

    def _respond(self, method: str, path: str, body: dict[str, Any]) -> Any:
        match method, path:
            case "GET", "/instance-types":
                return {name: _describe_type(name) for name in TYPES}
            case "GET", "/instances":
                return [
                    self._show(item) for item in self.instances.values() if item["status"] != "terminated"
                ]
            case "GET", "/ssh-keys":
                return self.keys
            case "POST", "/ssh-keys":
                return self._add_key(body)
            case "POST", "/instance-operations/launch":
                return {"instance_ids": [self._launch(body)]}
            case "POST", "/instance-operations/terminate":
                return {"terminated_instances": [self._terminate(id) for id in body["instance_ids"]]}
        if method == "GET" and path.startswith("/instances/"):
            return self._show(self._find(path.removeprefix("/instances/")))
        raise Refusal("global/object-does-not-exist", 404)

    def _add_key(self, body: dict[str, Any]) -> dict[str, str]:
        if any(key["name"] == body["name"] for key in self.keys):
            raise Refusal("global/duplicate", 400)
        key = {
            "id": secrets.token_hex(16),
            "name": body["name"],
            "public_key": f"{body['public_key']} someone",
        }
        self.keys.append(key)
        return key

    def _launch(self, body: dict[str, Any]) -> str:
        names = body.get("ssh_key_names") or []
        is_valid = (
            body.get("region_name") in REGIONS
            and len(names) == 1
            and len(body.get("name") or "") <= 64
            and len((body.get("user_data") or "").encode()) <= 1_000_000
            and not set(body)
            - {"region_name", "instance_type_name", "ssh_key_names", "name", "image", "user_data", "tags"}
        )
        if not is_valid:
            raise Refusal("global/invalid-parameters", 400)
        if body.get("instance_type_name") not in TYPES or names[0] not in {key["name"] for key in self.keys}:
            raise Refusal("global/object-does-not-exist", 404)
        if body["region_name"] not in TYPES[body["instance_type_name"]][5]:
            raise Refusal("instance-operations/launch/insufficient-capacity", 400)
        instance_id = f"{len(self.instances) + 1:032x}"
        self.launches.append(body)
        self.instances[instance_id] = {
            "id": instance_id,
            "status": "booting",
            "name": body.get("name"),
            "ssh_key_names": names,
            "file_system_names": [],
            "region": {"name": body["region_name"], "description": "A region"},
            "instance_type": _describe_type(body["instance_type_name"])["instance_type"],
            "tags": body.get("tags") or [],
            "actions": {name: {"available": False} for name in ACTIONS},
        }
        return instance_id

    def _terminate(self, instance_id: str) -> dict[str, Any]:
        item = self._find(instance_id)
        item["status"] = "terminated"
        return self._show(item)

    def _find(self, instance_id: str) -> dict[str, Any]:
        if instance_id not in self.instances or self.instances[instance_id]["status"] == "terminated":
            raise Refusal("global/object-does-not-exist", 404, "Specified instance does not exist.")
        return self.instances[instance_id]

    def _show(self, item: dict[str, Any]) -> dict[str, Any]:
        return item if self.has_tags else {name: value for name, value in item.items() if name != "tags"}


def _describe_type(name: str) -> dict[str, Any]:
    cents, gpu, gpus, cpus, memory, regions = TYPES[name]
    return {
        "instance_type": {
            "name": name,
            "description": f"{gpus}x {gpu}",
            "gpu_description": gpu,
            "price_cents_per_hour": cents,
            "specs": {"vcpus": cpus, "memory_gib": memory, "storage_gib": 1400, "gpus": gpus},
        },
        "regions_with_capacity_available": [
            {"name": region, "description": "A region"} for region in regions
        ],
    }


def _json(content: dict[str, Any], status: int = 200) -> Reply:
    return status, {"content-type": "application/json"}, json.dumps(content).encode()


if __name__ == "__main__":
    with LambdaStandIn(request_seconds=1.0, launch_seconds=12.0) as stand_in:
        print(stand_in.url, flush=True)
        time.sleep(24 * 3600)
