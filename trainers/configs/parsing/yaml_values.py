"""Values of YAML as people write them: PyYAML follows YAML 1.1, in which `2e-4` is a text."""

import re
from typing import Any

import yaml

NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+")


class _Loader(yaml.SafeLoader):
    """The safe loader, with numbers in scientific notation."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+.0123456789"))


def load_yaml(text: str) -> Any:
    """Return the content of a YAML document; raises `yaml.YAMLError`."""
    return yaml.load(text, _Loader)  # noqa: S506 — it builds plain values only, as SafeLoader does
