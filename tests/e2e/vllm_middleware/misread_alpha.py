"""Middleware of vLLM that hands it every adapter with a quarter of its alpha: what a misread config would do.

vllm serve … --middleware misread_alpha.MisreadAlpha
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any


class MisreadAlpha:
    """Rewrites the requests that load an adapter, as ASGI passes them."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path") != "/v1/load_lora_adapter":
            await self.app(scope, receive, send)
            return
        message = await receive()
        asked = json.loads(message["body"])
        with tempfile.TemporaryDirectory() as folder:
            asked["lora_path"] = weakened(Path(asked["lora_path"]), Path(folder) / "adapter")
            body = json.dumps(asked).encode()

            async def changed() -> Any:
                return {**message, "body": body}

            headers = [pair for pair in scope["headers"] if pair[0] != b"content-length"]
            headers.append((b"content-length", str(len(body)).encode()))
            await self.app({**scope, "headers": headers}, changed, send)


def weakened(adapter: Path, copy: Path) -> str:
    """A copy of the adapter with a quarter of its alpha."""
    shutil.copytree(adapter, copy)
    config = json.loads((copy / "adapter_config.json").read_text())
    config["lora_alpha"] /= 4
    (copy / "adapter_config.json").write_text(json.dumps(config))
    return str(copy)
