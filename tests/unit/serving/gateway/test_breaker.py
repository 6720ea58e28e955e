"""Circuit breakers under a clock that the test sets."""

from serving.gateway.engine_state.breaker import FAILURES_TO_OPEN, OPEN_SECONDS, CircuitBreakers
from serving.gateway.routes import Target

TARGET = Target("deployment_a", "http://127.0.0.1:1", "a")


class Clock:
    """Seconds that only the test advances."""

    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def open_circuit(clock: Clock) -> CircuitBreakers:
    breakers = CircuitBreakers(clock)
    for _ in range(FAILURES_TO_OPEN):
        breakers.record_failure(TARGET)
    return breakers


def test_a_circuit_opens_after_several_failures_in_a_row() -> None:
    breakers = CircuitBreakers(Clock())
    for _ in range(FAILURES_TO_OPEN - 1):
        breakers.record_failure(TARGET)
    assert breakers.open_targets() == []
    breakers.record_failure(TARGET)
    assert breakers.open_targets() == [TARGET]
    assert breakers.retry_after_seconds() == OPEN_SECONDS


def test_a_success_closes_the_circuit() -> None:
    breakers = open_circuit(Clock())
    breakers.record_success(TARGET)
    breakers.record_failure(TARGET)
    assert breakers.open_targets() == []


def test_one_request_tests_the_engine_when_the_time_is_over() -> None:
    clock = Clock()
    breakers = open_circuit(clock)
    clock.seconds += OPEN_SECONDS
    assert breakers.open_targets() == []
    breakers.record_attempt(TARGET)
    assert breakers.open_targets() == [TARGET]
