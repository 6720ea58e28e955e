"""A proof that an engine repeats: one chat of the full comparison, without the trained model at hand.

An adapter that wakes up, or an engine that is started again, may go wrong where the first start did not.
"""

from collections.abc import Mapping
from typing import Any

from serving.engines.engine import Engine


def passes_spot_check(engine: Engine, address: str, name: str, report: Mapping[str, Any]) -> bool:
    """Whether the engine renders and scores the witness of a passed report as the trained model did.

    Raises EngineRefused where the engine gives no answer.
    """
    witness, tolerance = report["witness"], report["tolerance"]
    if engine.render(address, name, witness["chat"]) != witness["prompt_ids"]:
        return False
    found = engine.score(address, name, witness["ids"])
    apart = [abs(a - b) for a, b in zip(found, witness["logprobs"], strict=True)]
    return bool(max(apart) <= tolerance["one"] and sum(apart) / len(apart) <= 2 * tolerance["mean"])
