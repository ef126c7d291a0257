"""What takes a second to import, loaded by the worker that uses it: all workers import all test modules."""

from __future__ import annotations

import importlib
from typing import Any


class Lazy:
    """Stands for a module, `Lazy("torch")`, or for something in one, `Lazy("safetensors.torch:save_file")`.

    `monkeypatch.setattr` takes such names as text: "torch.empty".
    """

    def __init__(self, name: str):
        self.__module, _, self.__name = name.partition(":")

    def __load(self) -> Any:
        module = importlib.import_module(self.__module)
        return getattr(module, self.__name) if self.__name else module

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("_", "pytest")):  # pytest looks whether it is a test
            raise AttributeError(name)
        return getattr(self.__load(), name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.__load()(*arguments, **options)
