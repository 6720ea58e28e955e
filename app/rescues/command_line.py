"""The options of `python -m app rescue`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from app.rescues.command import CommandFailed, run_list, run_rescue
from app.scheduling.startup import open_database
from app.settings import get_settings


def rescue_command(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Fine-tuned model at OpenAI, ft:….")
    ] = None,
    list_models: Annotated[
        bool, typer.Option("--list", help="List the models with the days left, and do nothing else.")
    ] = False,
    rescue: Annotated[str | None, typer.Option(help="Continue the rescue with this id.")] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="Model to train. [default: what TUNESMITH_OPENAI_MODELS maps the base at OpenAI to]"
        ),
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="File with further prompts to record.")] = None,
    training_file: Annotated[
        Path | None, typer.Option(help="Training rows, if OpenAI has deleted its file.")
    ] = None,
    validation_file: Annotated[Path | None, typer.Option(help="Validation rows, likewise.")] = None,
    held_out: Annotated[
        int, typer.Option(min=1, help="Rows of the training file to hold out, record and compare.")
    ] = 100,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="Kind of a metric, or its config as JSON; repeatable. [default: suits the rows]"),
    ] = None,
    margin: Annotated[
        float | None, typer.Option(help="How much worse may it be? [default: a twentieth of the scale]")
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(help="US dollars that the responses may cost. [default: asks]")
    ] = None,
    yes: Annotated[
        bool,
        typer.Option("--yes", help="Accept up to three times the expected cost, and one longest response."),
    ] = False,
    requests_per_minute: Annotated[int, typer.Option(min=1, help="Maximum rate of requests.")] = 60,
    max_completion_tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens of a response.")] = 1024,
    input_price: Annotated[
        float | None, typer.Option(help="US dollars for a million tokens of prompts. [default: list price]")
    ] = None,
    output_price: Annotated[float | None, typer.Option(help="Of responses, likewise.")] = None,
    training: Annotated[
        str, typer.Option(help='Further fields of the training stage as JSON, such as {"max_length": 512}.')
    ] = "{}",
    report: Annotated[Path, typer.Option(help="Folder of the report and of the rows that got worse.")] = Path(
        "rescue-report"
    ),
) -> None:
    """Move a fine-tuned model from OpenAI: fetch its files, train an open base, and compare both.

    The key is read from OPENAI_API_KEY. A worker with the same variable must be running, such as that of
    `python -m app`. The exit status is 0 if the new model is as good, and 3 if that is not shown.
    """
    settings = get_settings()
    try:
        if list_models:
            run_list(settings)
            return
        if (model is None) == (rescue is None):
            raise typer.BadParameter("Name either a MODEL or --rescue, or use --list.")
        open_database()
        create: dict[str, Any] = {
            "rescue": rescue,
            "fine_tuned_model": model,
            "dataset": training_file,
            "validation_dataset": validation_file,
            "prompts": prompts,
            "held_out_rows": held_out,
            "requests_per_minute": requests_per_minute,
        }
        start = {
            "base": base,
            "metrics": [_read_json(one) for one in metric] if metric else None,
            "margin": margin,
            "max_cost": max_cost,
            "requests_per_minute": requests_per_minute,
            "max_completion_tokens": max_completion_tokens,
            "input_price": input_price,
            "output_price": output_price,
            "training": _read_json(training),
        }
        status = run_rescue(settings, create, start, lambda question: yes or _ask(question), report)
    except CommandFailed as error:
        sys.exit(str(error))
    raise typer.Exit(status)


def _ask(question: str) -> bool:
    # A script that has not decided must not spend.
    return sys.stdin.isatty() and typer.confirm(question, err=True)


def _read_json(text: str) -> Any:
    """Return the value of a JSON object, or a plain name as it is."""
    try:
        return json.loads(text) if text.lstrip().startswith("{") else text
    except ValueError as error:
        raise typer.BadParameter(f"{text} is not JSON: {error}. Quote it for the shell.") from error
