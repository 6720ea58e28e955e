"""The options that the command lines of engines share, and the options of engines as flags."""

import inspect
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from trainers.configs.engines import EngineChoice, EngineKind, EngineOptions, EngineTask, Pooling

Model = Annotated[str, typer.Option(help="Folder or hub id of the base model; safetensors only.")]
Adapters = Annotated[
    list[str] | None, typer.Option("--adapter", metavar="NAME=PATH", help="LoRA adapter; repeatable.")
]
ServedName = Annotated[str | None, typer.Option(help="Name of the base model in requests. Default: --model.")]
Task = Annotated[EngineTask, typer.Option(help="What the engine computes: text or embeddings.")]
PoolingOption = Annotated[
    Pooling | None,
    typer.Option("--pooling", help="Pooling of an embedding model whose files have none."),
]
Host = Annotated[str, typer.Option(help="Loopback or private address to listen on.")]


def with_engine_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add flags for fields of EngineOptions, by default all: `max_model_len` becomes `--max-model-len`.

    The decorated command gets the flags that were given as the argument `options`, a dict. Their values are
    validated by `read_engine_options`, as those of a job's spec are.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        flags = names or tuple(EngineOptions.model_fields)

        def run(**arguments: Any) -> None:
            options = {name: arguments.pop(name) for name in flags}
            given = {name: value for name, value in options.items() if value is not None}
            command(**arguments, options=given)

        own = [
            parameter
            for name, parameter in inspect.signature(command, eval_str=True).parameters.items()
            if name != "options"
        ]
        parameters = [*own, *map(_flag, flags)]
        run.__doc__ = command.__doc__
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def read_engine_options(engine: EngineKind, options: dict[str, Any]) -> EngineOptions:
    """Validate the flags for this engine. Raises ValueError that names the flag."""
    values = {name: _parse_number(value) for name, value in options.items()}
    try:
        return EngineChoice.model_validate({"engine": engine, "options": values}).options
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        flag = f"{_flag_name(str(first['loc'][1]))}: " if len(first["loc"]) > 1 else ""
        message = first["msg"].removeprefix("Value error, ")
        # The validators of a job's spec name its fields, such as options.max_model_len.
        message = re.sub(r"\boptions\.(\w+)", lambda field: _flag_name(field[1]), message)
        raise ValueError(f"{flag}{message}.") from error


def parse_adapters(values: list[str] | None) -> dict[str, str]:
    """Parse NAME=PATH pairs. Raises ValueError for another form, or a name that occurs twice."""
    adapters: dict[str, str] = {}
    for value in values or []:
        name, _, path = value.partition("=")
        if not (name and path):
            raise ValueError(f"--adapter {value!r} does not have the form NAME=PATH.")
        if name in adapters:
            raise ValueError(f"The adapter name {name!r} occurs twice; every served name must be unique.")
        adapters[name] = path
    return adapters


def _parse_number(value: Any) -> Any:
    """Return the number that a flag's text is, since options are not converted; other values unchanged."""
    if isinstance(value, str):
        for kind in (int, float):
            with suppress(ValueError):
                return kind(value)
    return value


def _flag_name(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _flag(name: str) -> inspect.Parameter:
    field = EngineOptions.model_fields[name]
    kind: Any = bool if field.annotation is bool else str
    default = "" if field.default is None else f" Default: {field.default}."
    help_text = f"{field.description}{default}"
    flag = typer.Option(help=help_text, show_default=False, metavar=None if kind is bool else "VALUE")
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, flag]
    )
