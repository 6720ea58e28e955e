"""One implementation for the blocking and the asynchronous client.

Every method is written once, as a coroutine function or an asynchronous generator function. The transport
of a blocking client does its work without ever suspending, so a coroutine on top of it ends at its first
step; the descriptors below take that step for a blocking client, and hand out the coroutine itself for an
asynchronous one.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from functools import update_wrapper
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

Parameters = ParamSpec("Parameters")
Value = TypeVar("Value")
Mode = TypeVar("Mode")


class Blocking:
    """The mode of objects whose methods return values."""


class Concurrent:
    """The mode of objects whose methods return awaitables and asynchronous iterators."""


class ModeBound(Generic[Mode]):
    """An object whose operations work in the mode of its connection."""

    def is_blocking(self) -> bool:
        """Return whether operations return values instead of awaitables."""
        raise NotImplementedError


def run_blocking(coroutine: Coroutine[Any, Any, Value]) -> Value:
    """Return the result of a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        result: Value = ended.value
        return result
    coroutine.close()
    raise AssertionError("a blocking transport has suspended")


def iterate_blocking(items: AsyncGenerator[Value, None]) -> Iterator[Value]:
    """Yield the items of an asynchronous generator that never suspends, and close it at the end."""
    try:
        while True:
            try:
                yield run_blocking(items.__anext__())
            except StopAsyncIteration:
                return
    finally:
        run_blocking(items.aclose())


class Operation(Generic[Parameters, Value]):
    """A method that returns a value, or for an asynchronous client an awaitable of it."""

    def __init__(self, function: Callable[Concatenate[Any, Parameters], Coroutine[Any, Any, Value]]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    @overload
    def __get__(
        self, owner: ModeBound[Blocking], kind: type[Any] | None = None
    ) -> Callable[Parameters, Value]: ...

    @overload
    def __get__(
        self, owner: ModeBound[Concurrent], kind: type[Any] | None = None
    ) -> Callable[Parameters, Coroutine[Any, Any, Value]]: ...

    @overload
    def __get__(self, owner: None, kind: type[Any]) -> "Operation[Parameters, Value]": ...

    def __get__(self, owner: Any, kind: type[Any] | None = None) -> Any:
        if owner is None:
            return self

        def call(*arguments: Parameters.args, **options: Parameters.kwargs) -> Any:
            coroutine = self.function(owner, *arguments, **options)
            return run_blocking(coroutine) if owner.is_blocking() else coroutine

        return _describe(call, self.function, owner)


class Iteration(Generic[Parameters, Value]):
    """A method that returns an iterator, or for an asynchronous client an asynchronous one."""

    def __init__(self, function: Callable[Concatenate[Any, Parameters], AsyncIterator[Value]]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    @overload
    def __get__(
        self, owner: ModeBound[Blocking], kind: type[Any] | None = None
    ) -> Callable[Parameters, Iterator[Value]]: ...

    @overload
    def __get__(
        self, owner: ModeBound[Concurrent], kind: type[Any] | None = None
    ) -> Callable[Parameters, AsyncIterator[Value]]: ...

    @overload
    def __get__(self, owner: None, kind: type[Any]) -> "Iteration[Parameters, Value]": ...

    def __get__(self, owner: Any, kind: type[Any] | None = None) -> Any:
        if owner is None:
            return self

        def call(*arguments: Parameters.args, **options: Parameters.kwargs) -> Any:
            items: Any = self.function(owner, *arguments, **options)
            return iterate_blocking(items) if owner.is_blocking() else items

        return _describe(call, self.function, owner)


def _describe(call: Callable[..., Any], function: Callable[..., Any], owner: object) -> Callable[..., Any]:
    """Give a bound function the name, the documentation and the signature of its method."""
    update_wrapper(call, function)
    call.__wrapped__ = function.__get__(owner)  # type: ignore[attr-defined] # inspect omits `self` of it
    return call
