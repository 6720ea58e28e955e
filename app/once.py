"""Objects of which a process has one, such as its connection pool."""

from collections.abc import Callable
from functools import update_wrapper
from threading import RLock
from typing import Generic, TypeVar

T = TypeVar("T")


class Once(Generic[T]):
    """A decorator: the function runs once, also when threads call it at the same time.

    `functools.cache` would run it in each of these threads, and all but one would keep an object that nobody
    closes.
    """

    def __init__(self, create: Callable[[], T]) -> None:
        self._create = create
        self._lock = RLock()
        self._created: list[T] = []
        update_wrapper(self, create)

    def __call__(self) -> T:
        """Return the object, and create it if there is none."""
        with self._lock:
            if not self._created:
                self._created.append(self._create())
            return self._created[0]

    def cache_clear(self) -> T | None:
        """Forget the object, so that the next call creates another one, and return it; None without one."""
        with self._lock:
            return self._created.pop() if self._created else None
