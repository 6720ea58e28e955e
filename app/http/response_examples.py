"""Response examples of the OpenAPI document, recorded from a real service."""

import json
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("response_examples.json")


def add_response_examples(schema: dict[str, Any]) -> None:
    """Add an example to the successful response of each operation that has one in the file."""
    examples = json.loads(PATH.read_text(encoding="utf-8"))
    for item in schema["paths"].values():
        for operation in item.values():
            example = examples.get(operation.get("operationId"))
            if example is None:
                continue
            # A request that creates an object returns 200 instead if the object exists already.
            status = max(operation["responses"].keys() & {"200", "201", "202"})
            operation["responses"][status]["content"]["application/json"]["example"] = example
