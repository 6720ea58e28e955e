"""Middleware of vLLM that loads every adapter with a quarter of its alpha, as if it misread the config.

vllm serve … --middleware misread_alpha.MisreadAlpha
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any


class MisreadAlpha:
    """ASGI middleware that rewrites the requests that load an adapter."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path") != "/v1/load_lora_adapter":
            await self.app(scope, receive, send)
            return
        message = await receive()
        asked = json.loads(message["body"])
        with tempfile.TemporaryDirectory() as folder:
            asked["lora_path"] = copy_with_smaller_alpha(Path(asked["lora_path"]), Path(folder) / "adapter")
            body = json.dumps(asked).encode()

            async def receive_changed() -> Any:
                return {**message, "body": body}

            headers = [pair for pair in scope["headers"] if pair[0] != b"content-length"]
            headers.append((b"content-length", str(len(body)).encode()))
            await self.app({**scope, "headers": headers}, receive_changed, send)


def copy_with_smaller_alpha(adapter: Path, copy: Path) -> str:
    """Copy the adapter with a quarter of its alpha, and return the copy's path."""
    shutil.copytree(adapter, copy)
    config = json.loads((copy / "adapter_config.json").read_text())
    config["lora_alpha"] /= 4
    (copy / "adapter_config.json").write_text(json.dumps(config))
    return str(copy)
