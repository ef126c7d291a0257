"""Async generators within async generators, each of which closes the one inside it.

An event loop that ends closes all that it knows, at once: two that are one within the other then close the inner one
twice, which asyncio reports. So it gets to know the outermost alone.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def inner(function: Callable[P, AsyncGenerator[T]]) -> Callable[P, AsyncGenerator[T]]:
    """An async generator function for the use of another, which closes what it gets (`contextlib.aclosing`)."""

    @functools.wraps(function)
    def made(*args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[T]:
        return _Inner(function(*args, **kwargs))

    return made


class _Inner(AsyncGenerator[T]):
    def __init__(self, generator: AsyncGenerator[T]):
        self._generator = generator
        self._begun = False

    def __anext__(self) -> Coroutine[Any, Any, T]:
        if self._begun:
            return self._generator.__anext__()
        self._begun = True
        with _unknown_to_the_loop():
            return self._generator.__anext__()

    def asend(self, value: None) -> Coroutine[Any, Any, T]:
        with _unknown_to_the_loop():
            return self._generator.asend(value)

    def athrow(self, *error: Any) -> Coroutine[Any, Any, T]:
        with _unknown_to_the_loop():
            return self._generator.athrow(*error)

    def aclose(self) -> Coroutine[Any, Any, None]:
        with _unknown_to_the_loop():
            return self._generator.aclose()


@contextlib.contextmanager
def _unknown_to_the_loop() -> Iterator[None]:
    """What is called for the first time in here tells nobody, and is not closed when it is collected."""
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(firstiter=None, finalizer=lambda generator: None)
    try:
        yield
    finally:
        sys.set_asyncgen_hooks(*hooks)
