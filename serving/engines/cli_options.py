"""The options of engines as flags of a command line."""

import argparse

from pydantic import ValidationError

from trainers.configs.engines import EngineChoice, EngineKind, EngineOptions


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """One flag for each field of EngineOptions: `max_model_len` is `--max-model-len`."""
    group = parser.add_argument_group("options of the engine")
    for name, field in EngineOptions.model_fields.items():
        action = argparse.BooleanOptionalAction if field.annotation is bool else "store"
        help_text = f"{field.description or ''} Default: {field.default}.".strip()
        group.add_argument(
            f"--{name.replace('_', '-')}",
            action=action,
            default=argparse.SUPPRESS,
            help=help_text.replace("%", "%%"),
        )


def read_engine_options(engine: EngineKind, given: argparse.Namespace) -> EngineOptions:
    """The options that were given, checked for this engine; raises ValueError that names the flag."""
    values = {name: value for name, value in vars(given).items() if name in EngineOptions.model_fields}
    try:
        return EngineChoice.model_validate({"engine": engine, "options": values}).options
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        flag = f"--{str(fault['loc'][1]).replace('_', '-')}: " if len(fault["loc"]) > 1 else ""
        raise ValueError(f"{flag}{fault['msg'].removeprefix('Value error, ')}.") from error
