"""The model card of an exported model, and its upload to the hub in a program of its own."""

import logging
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from app.settings import Settings
from app.tables import Run
from serving.engines.child_engine import log_tail
from trainers.configs import ExportConfig
from trainers.configs.references import HubModel, parse_location
from trainers.runtime import run_dir as files
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError
from workers.exports.model_card import render_card
from workers.hosts.environments import download_environment, empty_folder
from workers.hosts.guarded_process import start_guarded_process
from workers.inputs.hub_download import MAX_DOWNLOAD_SECONDS, POLL_SECONDS
from workers.runs.launch import Launch

CARD = "README.md"

logger = logging.getLogger(__name__)


class HubPushFailed(TunesmithError):
    """An upload that failed, with the code of its program."""

    def __init__(self, code: ErrorCode, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.code = code


def complete_export(
    run: Run, settings: Settings, launch: Launch, result: dict[str, Any], should_stop: Callable[[], bool]
) -> dict[str, Any]:
    """Write the model card, upload the model if the stage asks for it, and return the result.

    Raises HubPushFailed, whose code decides whether the run is retried.
    """
    config = launch.config
    if not isinstance(config, ExportConfig) or launch.base is None:
        return result
    folder = launch.run_dir / files.MODEL
    checks = (result.get("checks") or {}).get("formats") or {}
    title = config.push.repository if config.push else run.name
    card = render_card(title, launch.base.origin, launch.base.model_id, checks)
    (folder / CARD).unlink(missing_ok=True)
    (folder / CARD).write_text(card, encoding="utf-8")
    if config.push is None:
        return result
    namespace = config.push.repository.partition("/")[0]
    if namespace not in settings.hub_push_namespaces:
        raise HubPushFailed(
            ErrorCode.hub_push_refused,
            f"This worker may not upload to {namespace} on the hub.",
            "The operator can allow it in TUNESMITH_HUB_PUSH_NAMESPACES.",
        )
    base = parse_location(launch.base.origin)
    arguments = ["--folder", str(folder), "--name", config.push.repository]
    arguments += ["--base", str(base)] if isinstance(base, HubModel) else []
    arguments += ["--private" if config.push.private else "--no-private"]
    return result | {"hub": _upload(arguments, settings, launch.run_dir / "upload", should_stop)}


def _upload(
    arguments: list[str], settings: Settings, work: Path, should_stop: Callable[[], bool]
) -> dict[str, Any]:
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    report, log = work / "report.json", work / "log.txt"
    python = sys.executable if find_spec("huggingface_hub") else settings.trainer_python
    process = start_guarded_process(
        [python, "-m", "trainers.modeling.hub_upload", *arguments, "--report", str(report)],
        log=log,
        folder=empty_folder(work),
        environment=download_environment(),
        seconds=MAX_DOWNLOAD_SECONDS,
    )
    try:
        status = None
        while status is None:
            if should_stop():
                raise HubPushFailed(ErrorCode.hub_unreachable, "The upload to the hub was stopped.")
            status = process.wait(POLL_SECONDS)
        content = files.read_json(report)
        if content is None:
            message = f"The upload ended with status {status} and no report: {log_tail(log)}"
            raise HubPushFailed(ErrorCode.hub_unreachable, message)
        if (error := content.get("error")) is not None:
            raise HubPushFailed(ErrorCode(error["code"]), error["message"], error["hint"])
        return content
    finally:
        process.kill()
        shutil.rmtree(work, ignore_errors=True)
