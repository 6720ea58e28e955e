"""Request examples of replays in the OpenAPI document."""

from fastapi.openapi.models import Example

REPLAY_EXAMPLES: dict[str, Example] = {
    "same": {"summary": "The same again", "value": {}},
    "other_seed": {
        "summary": "With another seed, and the outputs of unchanged stages",
        "value": {"name": "arithmetic-seed-7", "changes": {"sft": {"seed": 7}}, "reuse": True},
    },
}
