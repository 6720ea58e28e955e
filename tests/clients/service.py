"""The service that the clients connect to: the tiny model on each engine, behind the gateway with keys."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from tests.clients.environments import FOLDER, EnvironmentMissing
from tests.clients.losing_proxy import LosingProxy
from tests.e2e.platform import ROOT, Platform

READY_SECONDS = 900.0
MODEL = "painter"


@dataclass(frozen=True)
class ClientService:
    """Where clients connect, and their keys."""

    url: str
    losing_url: str
    keys: dict[str, str]
    engine_versions: dict[str, str]

    def variables(self, engine: str) -> dict[str, str]:
        """Return the environment variables of a client's program."""
        keys = {f"{name.upper()}_API_KEY": key for name, key in self.keys.items()}
        urls = {"BASE_URL": f"{self.url}/v1", "LOSING_URL": f"{self.losing_url}/v1"}
        return {**urls, "API_KEY": self.keys["inference"], "MODEL": engine, **keys}


@contextmanager
def run_service(folder: Path, engines: Sequence[str]) -> Iterator[ClientService]:
    """Run the service with a deployment of each engine, named like it."""
    programs = json.loads(os.environ.get("TUNESMITH_ENGINE_COMMANDS", "{}"))
    if "vllm" in engines and "vllm" not in programs and shutil.which("vllm") is None:
        raise EnvironmentMissing('vLLM is missing: name it in TUNESMITH_ENGINE_COMMANDS={"vllm": [...]}.')
    model = make_model(folder / "made" / MODEL)
    settings = {
        "TUNESMITH_ENGINE_COMMANDS": json.dumps(programs),
        "TUNESMITH_OPENAI_MODELS": json.dumps({"gpt-4o-mini-2024-07-18": str(model)}),
        "TUNESMITH_WEBHOOK_ALLOWED_HOSTS": json.dumps(["127.0.0.1"]),
    }
    platform = Platform(folder / "data", model, **settings)
    try:
        platform.start_service()
        keys = create_keys(platform)
        platform.client.headers["Authorization"] = f"Bearer {keys['admin']}"
        versions = {}
        for engine in engines:
            options: dict[str, Any] = {"max_model_len": 1024, "tool_call_parser": "qwen"}
            if engine == "vllm":
                options |= {"dtype": "float32", "cpu_cache_gib": 1}
            deployment = platform.request_deployment(engine, str(model), engine=engine, options=options)
            platform.wait_for_status(deployment, "ready", READY_SECONDS)
            versions[engine] = find_version(engine, platform.get(f"/deployments/{deployment}")["address"])
        # No worker serves this queue here, so it never starts.
        platform.request_deployment("unavailable", str(model), queue="cuda")
        proxy = LosingProxy(platform.base_url)
        yield ClientService(platform.base_url, proxy.url, keys, versions)
        proxy.close()
    finally:
        platform.stop()


def find_version(engine: str, address: str) -> str:
    """Return the version of an engine: vLLM reports its own, and ours is that of its library."""
    package = {"hf": "transformers", "mlx": "mlx-lm"}.get(engine)
    if package is None:
        return str(httpx2.get(f"{address}/version").json()["version"])
    return f"{package} {importlib.metadata.version(package)}"


def make_model(folder: Path) -> Path:
    """Train the model of the matrix, which takes seconds."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(FOLDER / "make_agent.py"), str(folder)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return folder


def create_keys(platform: Platform) -> dict[str, str]:
    """Create keys with different scopes and limits, and return them by their names."""
    options = {
        "admin": ["--scope", "admin"],
        "inference": ["--scope", "inference"],
        "training": ["--scope", "inference", "--scope", "read", "--scope", "write"],
        "slow": ["--scope", "inference", "--requests-per-minute", "1"],
        "single": ["--scope", "inference", "--concurrent-requests", "1"],
    }
    keys = {}
    for name, arguments in options.items():
        command = [sys.executable, "-m", "app", "keys", "create", "--name", name, *arguments]
        created = subprocess.run(
            command, env=platform.environment, cwd=ROOT, check=True, capture_output=True, text=True
        )
        keys[name] = created.stdout.strip()
    return keys
