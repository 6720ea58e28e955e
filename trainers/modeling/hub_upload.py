"""Upload of a model's folder to the hub, with a model card that names the licence of its base.

    python -m trainers.modeling.hub_upload --folder model --name ORG/NAME --private --report report.json

A worker starts it with its own token (`HF_TOKEN`); no program that handles a job's data has that token.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import httpx2
import typer
from huggingface_hub import HfApi, ModelCard, ModelCardData, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from trainers.modeling.hub import REQUEST_TIMEOUT_SECONDS, UNAVAILABLE, HubUnreachable, probe_hub
from trainers.runtime import run_dir as files
from trainers.runtime.command_line import make_help, make_typer
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ProgramError, as_program_error, first_line

CARD = "README.md"
LICENCE_LINE = "Licence of the base: "

logger = logging.getLogger("trainers")
program = make_typer()


class HubPushRefused(ProgramError):
    """The hub refuses the upload, for example because the token may not write there."""

    code = ErrorCode.hub_push_refused


def upload_model(folder: Path, name: str, base: str | None, private: bool) -> dict[str, str]:
    """Upload the folder to `org/name`, which is created if it does not exist; return its address and commit.

    Raises HubUnreachable or HubPushRefused.
    """
    api = HfApi()
    with _hub_errors(name):
        probe_hub()
        licence = _find_licence(api, base)
        _complete_card(folder / CARD, base, licence)
        api.create_repo(name, private=private, exist_ok=True, repo_type="model")
        commit = api.upload_folder(
            folder_path=folder,
            repo_id=name,
            repo_type="model",
            commit_message="Upload a model trained with Tunesmith",
            ignore_patterns=[".*", "**/.*"],
        )
    logger.info("Uploaded %s at commit %s.", name, commit.oid)
    return {"name": name, "commit": str(commit.oid), "url": f"{constants.ENDPOINT}/{name}"}


def _find_licence(api: HfApi, base: str | None) -> str | None:
    """Return the licence that the hub states for the base, or None for a folder and for one without."""
    if base is None:
        return None
    base_name, _, revision = base.partition("@")
    info = api.model_info(base_name, revision=revision or None, timeout=REQUEST_TIMEOUT_SECONDS)
    licence = info.card_data.get("license") if info.card_data is not None else None
    return licence if isinstance(licence, str) else None


def _complete_card(path: Path, base: str | None, licence: str | None) -> None:
    """Add the header of a model card, and the licence of the base."""
    text = path.read_text(encoding="utf-8") if path.is_file() else "# Model\n"
    stated = licence or "not stated; check the base before you publish the model"
    content = f"{text.rstrip()}\n\n{LICENCE_LINE}{stated}.\n"
    header = ModelCardData(
        base_model=base.partition("@")[0] if base else None,
        license=licence,
        library_name="transformers",
        tags=["tunesmith"],
    )
    ModelCard(f"---\n{header.to_yaml()}\n---\n\n{content}").save(path)


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (httpx2.TransportError, ConnectionError) as error:
        raise _unreachable(name, error) from error
    except HfHubHTTPError as error:
        if error.response is None or error.response.status_code in UNAVAILABLE:
            raise _unreachable(name, error) from error
        raise _refused(name, error) from error
    except (HFValidationError, ValueError) as error:
        raise _refused(name, error) from error


def _unreachable(name: str, error: Exception) -> HubUnreachable:
    reason = first_line(error).rstrip(".")
    return HubUnreachable(
        f"The hub {constants.ENDPOINT} cannot be reached for the upload of {name}: {reason}.",
        "Check this host's network.",
    )


def _refused(name: str, error: Exception) -> HubPushRefused:
    return HubPushRefused(
        f"The hub refuses the upload of {name}: {first_line(error)}",
        "HF_TOKEN on the worker must be allowed to write to this repository.",
    )


@program.command(help=make_help(__doc__))
def main(
    *,
    folder: Annotated[Path, typer.Option(help="Folder of the model.")],
    name: Annotated[str, typer.Option(help="Repository on the hub, ORG/NAME.")],
    base: Annotated[str | None, typer.Option(help="Base on the hub, ORG/NAME@COMMIT.")] = None,
    private: Annotated[bool, typer.Option(help="Whether a new repository is private.")] = True,
    report: Annotated[Path, typer.Option(help="File for the commit, or the error, as JSON.")],
) -> None:
    """Upload, write the report, and exit with 1 after an error."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    constants.HF_HUB_DISABLE_TELEMETRY = True
    try:
        uploaded = upload_model(folder, name, base, private)
    except (ProgramError, OSError, ValueError) as error:
        files.write_json(report, {"error": as_program_error(error).as_dict()})
        raise typer.Exit(1) from error
    files.write_json(report, uploaded)


if __name__ == "__main__":
    program(prog_name="python -m trainers.modeling.hub_upload")
