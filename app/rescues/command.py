"""The command `python -m app rescue`: lists models at OpenAI, and follows a rescue to its report."""

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ValidationError

from app.datasets import service as datasets
from app.datasets.form import UploadedFile
from app.evaluations import rows, service, stored_files
from app.evaluations.schemas import ReportFormat, RowFilter
from app.http.errors import HttpError
from app.jobs import service as jobs
from app.rescues import service as rescues
from app.rescues.account import list_account_models
from app.rescues.plan import choose_max_cost, set_prices
from app.rescues.report import render_comparison, render_estimate, render_models
from app.rescues.schemas import RescueCreate, RescueStart, RescueStatus, RescueView
from app.rescues.views import view_rescue
from app.settings import Settings
from app.storage.database import read_session
from trainers.configs.stages.migration.record import MAX_PRICE
from trainers.data.conversion.csv_table import CsvOptions
from trainers.runtime.redaction import redact

POLL_SECONDS = 1.0
# Of the rows that got worse; GET /api/v1/evaluations/{id}/rows lists all.
MAX_WORSE_ROWS = 1000
REPORT, WORSE = "report.html", "worse.jsonl"
# 2 is that of an invalid command line.
EXIT_WORSE = 3


class CommandFailed(Exception):
    """The message of a command that ends with status 1."""


def run_list(settings: Settings) -> None:
    """Print the fine-tuned models at OpenAI with the days left."""
    try:
        print(render_models(list_account_models(settings)))
    except HttpError as error:
        raise CommandFailed(_describe(error)) from error


def run_rescue(
    settings: Settings,
    create: dict[str, Any],
    start: dict[str, Any],
    confirm: Callable[[str], bool],
    report_dir: Path,
) -> int:
    """Create a rescue, or continue one by its id; return the exit status.

    `create` has the fields of RescueCreate with the paths of local files in place of datasets, or `rescue`.
    `start` has those of RescueStart; without `max_cost`, `confirm` is asked with the expected cost.
    """
    rescue_id = create.pop("rescue")
    try:
        rescue_id = rescue_id or _create(settings, create)
        view = _follow(settings, rescue_id, {RescueStatus.fetching})
        if view.status is RescueStatus.ready or _is_stopped_at_recording(view):
            view = _start(settings, view, start, confirm)
        view = _follow(settings, rescue_id, {RescueStatus.fetching, RescueStatus.running})
        if view.comparison is None:
            raise CommandFailed(_describe_end(view))
        print(render_comparison(view))
        n_worse = write_report(view, report_dir)
        print(f"Rows that got worse: {n_worse}, in {report_dir / WORSE}.\nReport: {report_dir / REPORT}")
        return 0 if view.comparison.as_good else EXIT_WORSE
    except KeyboardInterrupt:
        if rescue_id is None:
            raise
        raise CommandFailed(
            f"\n{rescue_id} continues on its worker. To follow it: python -m app rescue --rescue {rescue_id}"
        ) from None
    except HttpError as error:
        raise CommandFailed(_describe(error)) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = f"--{'.'.join(map(str, first['loc'])).replace('_', '-')}: " if first["loc"] else ""
        raise CommandFailed(f"{option}{first['msg'].removeprefix('Value error, ')}.") from error


def write_report(view: RescueView, folder: Path) -> int:
    """Write the report of the evaluation, the rows that got worse, and the view; return their number."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rescue.json").write_text(view.model_dump_json(indent=1) + "\n", encoding="utf-8")
    assert view.evaluation_id is not None, "a comparison has an evaluation"
    worse, _ = rows.list_rows(view.evaluation_id, None, None, RowFilter.lost, 0, MAX_WORSE_ROWS)
    with (folder / WORSE).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row.model_dump(mode="json"), ensure_ascii=False) + "\n" for row in worse)
    evaluation = service.load_evaluation(view.evaluation_id)
    found = stored_files.find_report(evaluation.id, evaluation.artifact, evaluation.sha256, ReportFormat.html)
    with (folder / REPORT).open("wb") as file:
        file.writelines(found.open(None))
    return len(worse)


def _create(settings: Settings, create: dict[str, Any]) -> str:
    fields = {name: value for name, value in create.items() if value is not None}
    _refuse_second(settings, str(fields["fine_tuned_model"]))
    for name in ("dataset", "validation_dataset", "prompts"):
        if name in fields:
            fields[name] = _upload(settings, Path(fields[name]))
    rescue_id = rescues.create_rescue(settings, RescueCreate.model_validate(fields), "")
    print(f"{rescue_id} fetches the files of {fields['fine_tuned_model']}.", file=sys.stderr)
    return rescue_id


def _refuse_second(settings: Settings, model: str) -> None:
    """Raise CommandFailed if a rescue of the model asks for responses now, or stopped with some recorded.

    Another one would pay for the same responses again.
    """
    with read_session() as session:
        for rescue in rescues.list_started(session, model):
            view = view_rescue(session, settings, rescue)
            if view.status is RescueStatus.running or _is_stopped_at_recording(view):
                raise CommandFailed(
                    f"{view.id} of this model is {view.status}, and another would pay for its responses "
                    f"again. To continue: python -m app rescue --rescue {view.id}. To give it up: cancel its "
                    f"job {view.job_id}, or delete it with DELETE /api/v1/rescues/{view.id}."
                )


def _upload(settings: Settings, path: Path) -> str:
    if not path.is_file():
        raise CommandFailed(f"There is no file {path}.")
    with TemporaryDirectory() as folder:
        # A conversion writes next to the file.
        copy = Path(shutil.copyfile(path, Path(folder) / path.name))
        file = UploadedFile(path=copy, name=path.name)
        options = CsvOptions(None, None)
        dataset, _ = datasets.create_from_upload(file, path.stem[:200], options, settings.max_upload_bytes)
    return dataset.id


def _start(
    settings: Settings, view: RescueView, start: dict[str, Any], confirm: Callable[[str], bool]
) -> RescueView:
    fields = {name: value for name, value in start.items() if value is not None}
    # Before anything is asked, so that no answer is for nothing.
    body = RescueStart.model_validate({"max_cost": MAX_PRICE, **fields})
    if view.estimate is not None and body.input_price is not None:
        priced = set_prices(view.estimate, body.input_price, body.output_price, "the options")
        view = view.model_copy(update={"estimate": priced})
    print(render_estimate(view), file=sys.stderr)
    if "max_cost" not in fields:
        if not confirm("Record the responses?"):
            raise CommandFailed(
                f"Nothing was asked of the model. To continue: python -m app rescue --rescue {view.id} --yes"
            )
        if view.estimate is None or view.estimate.cost is None:
            raise CommandFailed("The prices of the model are unknown: set --input-price and --output-price.")
        fields["max_cost"] = choose_max_cost(view.estimate, body.max_completion_tokens)
    rescues.start_rescue(settings, view.id, RescueStart.model_validate(fields), "")
    return _load(settings, view.id)


def _is_stopped_at_recording(view: RescueView) -> bool:
    return view.status is RescueStatus.failed and view.job_id is not None and view.recorded is None


def _follow(settings: Settings, rescue_id: str, while_in: set[RescueStatus]) -> RescueView:
    """Print the progress of a rescue's jobs until its status is another one."""
    shown = ""
    while True:
        view = _load(settings, rescue_id)
        if view.status not in while_in:
            return view
        if (line := _describe_progress(settings, view)) != shown:
            print(line, file=sys.stderr, flush=True)
            shown = line
        time.sleep(POLL_SECONDS)


def _describe_progress(settings: Settings, view: RescueView) -> str:
    with read_session() as session:
        job = jobs.get_job(session, view.job_id or view.fetch_job_id)
        runs = jobs.view_job(session, settings, job).runs
    parts = [f"{run.name} {run.status}{_describe_steps(run.step, run.total_steps)}" for run in runs]
    reasons = [run.waiting_for for run in runs if run.waiting_for is not None]
    return "  ".join(parts) + (f"  ({reasons[0]})" if reasons else "")


def _describe_steps(step: int | None, total: int | None) -> str:
    return f" {step}/{total}" if step and total else ""


def _load(settings: Settings, rescue_id: str) -> RescueView:
    with read_session() as session:
        return view_rescue(session, settings, rescues.get_rescue(session, rescue_id))


def _describe_end(view: RescueView) -> str:
    job = view.job_id or view.fetch_job_id
    if view.error is None:
        return f"{view.id} is {view.status}: see the job {job}."
    again = (
        f"\nTo continue: python -m app rescue --rescue {view.id}" if _is_stopped_at_recording(view) else ""
    )
    return f"{view.id} is {view.status}: {view.error.message} {view.error.hint or ''}".rstrip() + again


def _describe(error: HttpError) -> str:
    # OpenAI's message may quote a part of the key.
    return redact(f"{error.message} {error.hint or ''}".rstrip())
