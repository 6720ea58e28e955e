"""Response examples of the OpenAPI document, recorded from a real service."""

import json
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("response_examples.json")
# The key of the errors in the file, next to the ids of the operations; an error has a summary and a value.
ERRORS = "errors"
SUCCESSES = {"200", "201", "202"}


def add_response_examples(schema: dict[str, Any]) -> None:
    """Add the examples of the file to the successful responses of each operation, and errors to all."""
    examples = load_response_examples()
    for item in schema["paths"].values():
        for operation in item.values():
            responses = operation["responses"]
            for status in SUCCESSES & responses.keys():
                content = responses[status].get("content", {}).get("application/json")
                if content and operation["operationId"] in examples:
                    content["example"] = examples[operation["operationId"]]
            if "default" in responses:
                responses["default"]["content"]["application/json"]["examples"] = examples[ERRORS]


def load_response_examples() -> dict[str, Any]:
    """Return the examples by the id of their operation, and the errors under `errors`."""
    examples: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))
    return examples
