"""The run of a grader on one completion, in a child process with limits of time and number."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any, Final

from app.deployments.served_models import ServedModelUnreachable, served_model_environment
from app.http.errors import HttpError, InternalServerError, ServiceUnavailable, UnprocessableContent
from app.keys.token_use import add_tokens
from app.settings import Settings
from app.storage.database import transaction
from trainers.configs.graders import Grader
from trainers.runtime.error_codes import ErrorCode

# A grader in Python may take a minute, and a model several.
MAX_GRADING_SECONDS: Final = 180
MAX_GRADINGS: Final = 4
# Of the tokens, which the API processes add to one count a day.
REPORTER: Final = "graders"
_places = threading.BoundedSemaphore(MAX_GRADINGS)
_INHERITED = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "LD_LIBRARY_PATH",
    "SSL_CERT_FILE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip


class GradersBusy(ServiceUnavailable):
    """As many graders run as may run at once."""

    code = ErrorCode.graders_busy
    headers = {"Retry-After": "1"}  # noqa: RUF012 — read only, like the other attributes


class GradingTooSlow(HttpError):
    """A grader did not end in time."""

    status = 400
    code = ErrorCode.time_limit


class GraderUnavailable(UnprocessableContent):
    """This host lacks a package, a program or an engine that the grader needs."""

    code = ErrorCode.capability_missing


def run_grader(
    grader: Grader, sample: str, item: Mapping[str, Any], settings: Settings, key_id: str
) -> dict[str, Any]:
    """Return the grade of one completion, as `GradeResult.as_dict`; its tokens count for the key.

    The packages of the graders are those of the trainers, which the service itself never loads.

    Raises:
        GradersBusy: Other graders run.
        GradingTooSlow: It did not end within three minutes.
        GraderUnavailable: This host lacks what it needs.
    """
    environment = _environment(grader, settings)
    request = {"grader": grader.model_dump(mode="json"), "item": item, "sample": sample}
    if not _places.acquire(blocking=False):
        raise GradersBusy(f"{MAX_GRADINGS} graders are running.", hint="Repeat the request.")
    try:
        output = _run(json.dumps(request).encode(), environment, settings)
    finally:
        _places.release()
    try:
        response: dict[str, Any] = json.loads(output)
    except ValueError:
        raise InternalServerError("The grader ended without a result.", hint="The log shows why.") from None
    if key_id and response["tokens"]:
        with transaction() as session:
            add_tokens(session, key_id, REPORTER, response["tokens"])
    if error := response.get("error"):
        raise GraderUnavailable(error["message"], hint=error["hint"])
    grade: dict[str, Any] = response["grade"]
    return grade


def _run(request: bytes, environment: Mapping[str, str], settings: Settings) -> bytes:
    command = [settings.trainer_python or sys.executable, "-m", "trainers.graders", str(MAX_GRADING_SECONDS)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=dict(environment),
        start_new_session=True,
    ) as child:
        try:
            return child.communicate(request, MAX_GRADING_SECONDS)[0]
        except subprocess.TimeoutExpired:
            raise GradingTooSlow(
                f"The grader did not end within {MAX_GRADING_SECONDS} s.",
                hint="Grade a shorter text, or by a faster model.",
            ) from None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)


def python_grader_environment(settings: Settings) -> dict[str, str]:
    """Return the variables by which graders in Python run, where the operator allows them."""
    if not settings.python_graders:
        return {}
    # The names are those of `trainers.graders.sandbox`.
    return {
        "TUNESMITH_PYTHON_GRADERS": "true",
        "TUNESMITH_PYTHON_GRADER_SECONDS": f"{settings.python_grader_seconds:g}",
    }


def _environment(grader: Grader, settings: Settings) -> dict[str, str]:
    """Return the variables of the child, which has no key but those of the grader's models."""
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    try:
        models = served_model_environment(grader, settings)
    except ServedModelUnreachable as error:
        raise GraderUnavailable(error.message, hint=error.hint) from error
    return inherited | models | python_grader_environment(settings)
