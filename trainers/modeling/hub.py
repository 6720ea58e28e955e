"""Downloads from the hub: one commit, only files that are loaded, each verified against the hub's own hash.

    python -m trainers.modeling.hub --kind model --name ORG/NAME@REVISION --report report.json

The files go to the hub client's cache (`HF_HOME`), which the programs of a host share. A commit that was
downloaded before needs no network.
"""

import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import httpx2
import typer
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from huggingface_hub.hf_api import RepoSibling

from trainers.data.hub_files import README, select_data_files
from trainers.modeling.hub_cache import (
    HubKind,
    HubRepository,
    HubSnapshot,
    describe_file,
    find_corrupt,
    open_downloaded,
    require_space,
)
from trainers.modeling.model_files import (
    ADAPTER_CONFIG,
    CONFIG,
    INDEX,
    BaseModelNotFound,
    ModelRole,
    is_visible,
    read_index,
)
from trainers.runtime import run_dir as files
from trainers.runtime.command_line import make_help, make_typer
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import DatasetFileNotFound, ProgramError, as_program_error

COMMIT = re.compile(r"[0-9a-f]{40}")
REQUEST_TIMEOUT_SECONDS = 30.0
# The client waits and repeats for minutes, which a hub that is away is not worth.
PROBE_SECONDS = 5.0
# Statuses with which the hub says that it cannot respond now; others are about the request.
UNAVAILABLE = frozenset({408, 429, 500, 502, 503, 504})

logger = logging.getLogger("trainers")
program = make_typer()


class HubUnreachable(ProgramError):
    """The hub did not respond, or with an error of its own."""

    code = ErrorCode.hub_unreachable


class HubFileCorrupt(ProgramError):
    """A downloaded file differs from the hub's hash."""

    code = ErrorCode.artifact_corrupt


# Chooses from the names of a commit's files; the function that it is given downloads one of them.
_Choose = Callable[[dict[str, RepoSibling], Callable[[str], Path]], set[str]]


def download_model(name: str) -> HubSnapshot:
    """Download the files of a model that a loader may see; `name` is `org/name` or `org/name@revision`.

    Raises:
        BaseModelNotFound: The hub has no such model or revision, or this host's token may not read it.
        HubUnreachable: The hub does not respond, and the commit is not in the cache.
        HubFileCorrupt: A file differs from the hub's hash.
    """
    repository, _, revision = name.partition("@")
    return _download(HubRepository(HubKind.model, repository), revision, _choose_model_files)


def download_dataset(name: str, revision: str | None, subset: str | None, split: str) -> HubSnapshot:
    """Download the data files of a split; raises DatasetFileNotFound, and as `download_model`."""

    def choose(listed: dict[str, RepoSibling], fetch: Callable[[str], Path]) -> set[str]:
        readme = fetch(README).read_text(encoding="utf-8", errors="replace") if README in listed else None
        try:
            _, selected = select_data_files(listed, readme, subset, split)
        except ValueError as error:
            raise DatasetFileNotFound(
                f"The data set {name} cannot be read: {error}.", "Check its subset and split."
            ) from error
        return {*selected, *({README} & listed.keys())}

    part = json.dumps([subset, split])
    return _download(HubRepository(HubKind.dataset, name, part), revision or "", choose)


def probe_hub() -> int:
    """Ask for the hub's first page, and return the status; a mirror need not have one.

    Raises httpx2.HTTPError or httpx2.InvalidURL if it does not respond within `PROBE_SECONDS`.
    """
    try:
        return httpx2.head(constants.ENDPOINT, timeout=PROBE_SECONDS).status_code
    except httpx2.TimeoutException as error:
        raise httpx2.ConnectTimeout(f"it does not respond within {PROBE_SECONDS:.0f} s") from error


def _choose_model_files(listed: dict[str, RepoSibling], fetch: Callable[[str], Path]) -> set[str]:
    is_adapter = ADAPTER_CONFIG in listed and CONFIG not in listed
    role = ModelRole.adapter if is_adapter else ModelRole.base
    shards = read_index(fetch(INDEX)) if role is ModelRole.base and INDEX in listed else set()
    return {file for file in listed if is_visible(file, role, shards)}


def _download(repository: HubRepository, revision: str, choose: _Choose) -> HubSnapshot:
    if COMMIT.fullmatch(revision) and (found := open_downloaded(repository, revision)) is not None:
        return found
    if constants.HF_HUB_OFFLINE:
        return _open_cached(repository, revision)
    with _hub_errors(repository, revision):
        probe_hub()
        info = HfApi().repo_info(
            repository.name,
            repo_type=repository.kind,
            revision=revision or None,
            files_metadata=True,
            timeout=REQUEST_TIMEOUT_SECONDS,
        )
        commit = str(info.sha)
        if (found := open_downloaded(repository, commit)) is not None:
            return found
        listed = {sibling.rfilename: sibling for sibling in info.siblings or []}
        chosen = choose(listed, lambda file: repository.fetch(commit, file))
        expected = [describe_file(listed[file]) for file in sorted(chosen)]
        require_space(repository, expected)
        folder = Path(
            snapshot_download(
                repository.name,
                repo_type=repository.kind,
                revision=commit,
                allow_patterns=[file.path for file in expected],
            )
        )
    if (corrupt := find_corrupt(folder, expected)) is not None:
        raise HubFileCorrupt(
            f"The file {corrupt} of {repository.name} differs from the hub's hash of commit {commit}.",
            "Its copy was removed: run the stage again. If that does not help, check the network's proxy.",
        )
    manifest = repository.manifest(commit)
    manifest.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(manifest, {"files": [asdict(file) for file in expected]})
    logger.info("Downloaded %s at commit %s.", repository.name, commit)
    return HubSnapshot(str(folder), commit)


def _open_cached(repository: HubRepository, revision: str) -> HubSnapshot:
    """Return a commit that any program has put into the cache, because this host must not use the network."""
    try:
        folder = snapshot_download(
            repository.name, repo_type=repository.kind, revision=revision or None, local_files_only=True
        )
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise _not_found(
            repository, revision, "it is not in this host's cache, and HF_HUB_OFFLINE is set"
        ) from error
    return HubSnapshot(folder, Path(folder).name)


@contextmanager
def _hub_errors(repository: HubRepository, revision: str) -> Iterator[None]:
    """Distinguish a hub that cannot be reached from one that has no such repository."""
    try:
        yield
    except (LocalEntryNotFoundError, httpx2.TransportError, ConnectionError) as error:
        raise _unreachable(repository, error) from error
    except HfHubHTTPError as error:
        if error.response is None or error.response.status_code in UNAVAILABLE:
            raise _unreachable(repository, error) from error
        raise _not_found(repository, revision, str(error).strip().splitlines()[0]) from error
    except (HFValidationError, EntryNotFoundError) as error:
        raise _not_found(repository, revision, str(error).strip().splitlines()[0]) from error


def _unreachable(repository: HubRepository, error: Exception) -> HubUnreachable:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return HubUnreachable(
        f"The hub {constants.ENDPOINT} cannot be reached for {repository.name}: {reason.rstrip('.')}.",
        "Check this host's network. Without one, put the model into a folder under TUNESMITH_MODEL_ROOTS.",
    )


def _not_found(repository: HubRepository, revision: str, reason: str) -> ProgramError:
    at = f" at revision {revision}" if revision else ""
    error = BaseModelNotFound if repository.kind is HubKind.model else DatasetFileNotFound
    return error(
        f"The {repository.kind} {repository.name}{at} cannot be downloaded: {reason}.",
        "Check the name and revision. A gated or private one needs HF_TOKEN on the worker.",
    )


@program.command(help=make_help(__doc__))
def main(
    *,
    kind: Annotated[HubKind, typer.Option(help="What to download.")],
    name: Annotated[str, typer.Option(help="Id on the hub; of a model with @REVISION, if it is pinned.")],
    revision: Annotated[str | None, typer.Option(help="Commit or tag of a dataset.")] = None,
    subset: Annotated[str | None, typer.Option(help="Configuration of a dataset.")] = None,
    split: Annotated[str, typer.Option(help="Split of a dataset.")] = "train",
    report: Annotated[Path, typer.Option(help="File for the folder and commit, or the error, as JSON.")],
) -> None:
    """Download, write the report, and exit with 1 after an error."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    constants.HF_HUB_DISABLE_TELEMETRY = True
    try:
        if kind is HubKind.model:
            snapshot = download_model(name)
        else:
            snapshot = download_dataset(name, revision, subset, split)
    except (ProgramError, OSError, ValueError) as error:
        files.write_json(report, {"error": as_program_error(error).as_dict()})
        raise typer.Exit(1) from error
    files.write_json(report, asdict(snapshot))


if __name__ == "__main__":
    program(prog_name="python -m trainers.modeling.hub")
