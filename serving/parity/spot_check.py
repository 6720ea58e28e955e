"""A repetition of one chat of a passed comparison, without loading the trained model.

An adapter that is loaded again, or an engine that is restarted, may go wrong where the first start did not.
"""

from collections.abc import Mapping
from typing import Any

from serving.engines.engine import Engine


def passes_spot_check(engine: Engine, address: str, name: str, report: Mapping[str, Any]) -> bool:
    """Return whether the engine renders and scores a passed report's chat as the trained model did.

    Raises:
        EngineRequestFailed: The engine did not respond.
    """
    chat, tolerance = report.get("spot_check"), report["tolerance"]
    if chat is None:
        return False
    if engine.render(address, name, chat["messages"]) != chat["prompt_ids"]:
        return False
    found = engine.score(address, name, chat["ids"])
    differences = [abs(a - b) for a, b in zip(found, chat["logprobs"], strict=True)]
    mean = sum(differences) / len(differences)
    # The mean of one chat varies more than that of the whole comparison.
    return bool(max(differences) <= tolerance["max"] and mean <= 2 * tolerance["mean"])
