"""The repository's scripts, which stand beside packages and not in one."""

import importlib.util
from types import ModuleType

from paths import ROOT


def script_of(path: str) -> ModuleType:
    """The module that `path`, from the repository's root on, is: made anew each time."""
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(f"{file.stem}_script", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
