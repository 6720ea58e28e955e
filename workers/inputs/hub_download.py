"""Downloads from the hub in a program of their own, the only one that gets the hub's token and network."""

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex

from app.settings import Settings
from serving.engines.child_engine import log_tail
from trainers.configs.references import HubModel
from trainers.configs.sources import HubSource
from trainers.runtime import run_dir as files
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError
from workers.hosts.environments import download_environment, empty_folder
from workers.hosts.guarded_process import start_guarded_process
from workers.inputs.errors import LaunchStopped

POLL_SECONDS = 0.5
# The guard ends the download with its worker; this bounds one that hangs.
MAX_DOWNLOAD_SECONDS = 24 * 3600.0


class HubDownloadFailed(TunesmithError):
    """A download that failed, with the code of its program."""

    def __init__(self, code: ErrorCode, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.code = code


@dataclass(frozen=True)
class HubFolder:
    """The files of one commit on this host."""

    folder: Path
    commit: str


def download_model(model: HubModel, settings: Settings, should_stop: Callable[[], bool]) -> HubFolder:
    """Download a model, or find it in the cache of this host.

    Raises:
        HubDownloadFailed: The hub cannot be reached, has no such model, or sent a damaged file.
        LaunchStopped: `should_stop` returned True.
    """
    return _download(["--kind", "model", "--name", str(model)], settings, should_stop)


def download_dataset(source: HubSource, settings: Settings, should_stop: Callable[[], bool]) -> HubFolder:
    """Download the files of a split; raises as `download_model`."""
    options = {"--revision": source.revision, "--subset": source.subset, "--split": source.split}
    given = [part for option, value in options.items() if value for part in (option, value)]
    return _download(["--kind", "dataset", "--name", source.name, *given], settings, should_stop)


def _download(arguments: Sequence[str], settings: Settings, should_stop: Callable[[], bool]) -> HubFolder:
    # What a killed worker leaves is collected with the other partial files of the cache.
    folder = settings.data_dir / "cache" / f"download-{token_hex(8)}.part"
    folder.mkdir(parents=True)
    report, log = folder / "report.json", folder / "log.txt"
    # A worker whose environment has no trainer packages uses the trainers' own.
    python = sys.executable if find_spec("huggingface_hub") else settings.trainer_python
    command = [python, "-m", "trainers.modeling.hub", *arguments, "--report", str(report)]
    process = start_guarded_process(
        command,
        log=log,
        folder=empty_folder(folder),
        environment=download_environment(),
        seconds=MAX_DOWNLOAD_SECONDS,
    )
    try:
        while not should_stop():
            if (status := process.wait(POLL_SECONDS)) is not None:
                break
        else:
            raise LaunchStopped
        content = files.read_json(report)
        if content is None:
            message = f"The download ended with status {status} and no report: {log_tail(log)}"
            raise HubDownloadFailed(ErrorCode.hub_unreachable, message)
        if (error := content.get("error")) is not None:
            raise HubDownloadFailed(ErrorCode(error["code"]), error["message"], error["hint"])
        return HubFolder(Path(content["folder"]), content["commit"])
    finally:
        process.kill()
        shutil.rmtree(folder, ignore_errors=True)
