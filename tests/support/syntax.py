"""Python files taken apart, each once for all tests that look at them."""

import ast
from functools import cache
from pathlib import Path


@cache
def syntax(file: Path) -> ast.Module:
    return ast.parse(file.read_bytes(), str(file))


@cache
def imports(file: Path) -> tuple[str, ...]:
    """Names of modules: x of `from x import y`, and of `importorskip("x")`."""
    found = []
    for node in ast.walk(syntax(file)):
        match node:
            case ast.Import(names=names):
                found += [alias.name for alias in names]
            case ast.ImportFrom(module=module, level=level):
                assert level == 0, f"{file}: imports are absolute"
                found.append(module)
            case ast.Call(
                func=ast.Attribute(attr="importorskip" | "import_module"), args=[ast.Constant(value=str(name)), *_]
            ):
                found.append(name)
            case ast.Call(func=ast.Name(id="Lazy"), args=[ast.Constant(value=str(name)), *_]):
                found.append(name.partition(":")[0])
    return tuple(found)
