"""An object of the process exists once, whatever threads ask for it first."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.once import Once

N_THREADS = 8


def test_threads_that_ask_at_the_same_time_get_the_same_object() -> None:
    barrier = threading.Barrier(N_THREADS)

    @Once
    def create() -> object:
        time.sleep(0.05)
        return object()

    def ask(_: int) -> object:
        barrier.wait()
        return create()

    with ThreadPoolExecutor(N_THREADS) as threads:
        assert len(set(threads.map(ask, range(N_THREADS)))) == 1


def test_a_forgotten_object_is_returned_and_created_again() -> None:
    create = Once(object)
    assert create.cache_clear() is None
    first = create()
    assert create.cache_clear() is first and create() is not first


def test_a_function_that_fails_is_called_again() -> None:
    divisors = iter([0, 2])

    @Once
    def create() -> float:
        return 1 / next(divisors)

    with pytest.raises(ZeroDivisionError):
        create()
    assert create() == create() == 0.5
