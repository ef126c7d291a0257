"""Python files taken apart, each once for all tests that look at them."""

import ast
from functools import cache
from pathlib import Path


@cache
def syntax(file: Path) -> ast.Module:
    return ast.parse(file.read_bytes(), str(file))
