"""The cost of recorded responses, and the limit that no request may exceed."""

import threading
from collections.abc import Mapping
from typing import Any

from trainers.configs.stages.migration.record import RecordConfig
from trainers.record.answers import USAGE
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ProgramError

MILLION = 1_000_000


class CostLimitReached(ProgramError):
    code = ErrorCode.cost_limit_reached


class Budget:
    """What was spent, and what requests in progress may cost; threads share it."""

    def __init__(self, config: RecordConfig) -> None:
        self._config = config
        self._released = threading.Condition()
        self._reserved, self._in_progress = 0.0, 0
        self.spent = 0.0
        self.tokens = dict.fromkeys(USAGE, 0)

    def bound(self, n_prompt_bytes: int) -> float:
        """Return the most that a request can cost: a token has at least one byte."""
        return self._price(n_prompt_bytes, self._config.max_completion_tokens)

    def reserve(self, cost: float) -> None:
        """Set the cost of a request aside, if need be after others have released theirs.

        Raises CostLimitReached if what is spent leaves too little.
        """
        with self._released:
            self._take(cost)
            self._in_progress += 1

    def repeat(self, cost: float) -> None:
        """Count a reserved request whose response is lost as if it had cost the most, and reserve another.

        Raises CostLimitReached if too little is left, with the first reservation in place.
        """
        with self._released:
            self.spent += cost
            self._reserved = self._reserved - cost if self._in_progress > 1 else 0.0
            self._released.notify_all()
            try:
                self._take(cost)
            except CostLimitReached:
                self._reserved += cost
                raise

    def release(self, cost: float) -> None:
        """Return what was set aside for a request."""
        with self._released:
            # Exactly nothing after the last one, whatever the rounding.
            self._in_progress -= 1
            self._reserved = self._reserved - cost if self._in_progress else 0.0
            self._released.notify_all()

    def add(self, answer: Mapping[str, Any], cost: float) -> None:
        """Count the tokens of a response; without their numbers it costs the most."""
        usage = answer.get("usage")
        if usage is None:
            if not answer.get("is_free"):
                self.presume(cost)
            return
        counts = {name: usage[name] for name in self.tokens}
        with self._released:
            for name, count in counts.items():
                self.tokens[name] += count
            self.spent += self._price(counts["prompt_tokens"], counts["completion_tokens"])

    def presume(self, cost: float) -> None:
        """Count a request whose response a kill has lost, as if it had cost the most."""
        with self._released:
            self.spent += cost

    def _take(self, cost: float) -> None:
        limit = self._config.max_cost
        while limit is not None and self.spent + self._reserved + cost > limit:
            if self._reserved <= 0 or self.spent + cost > limit:
                raise CostLimitReached(
                    f"{self.spent:.4f} of {limit:.4f} USD are spent; the next request could exceed them.",
                    "What is recorded is kept: start the rescue again with a higher `max_cost`.",
                )
            self._released.wait()
        self._reserved += cost

    def _price(self, n_prompt: int, n_completion: int) -> float:
        inputs, outputs = self._config.input_price or 0.0, self._config.output_price or 0.0
        return (n_prompt * inputs + n_completion * outputs) / MILLION
