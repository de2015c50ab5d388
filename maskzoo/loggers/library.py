"""The libraries that loggers stand on, none of which MaskZoo itself depends on."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from maskzoo.errors import RecipeError


def library(module: str, extra: str) -> Any:
    """The imported module. Raises RecipeError where it cannot be imported, naming the extra that brings it."""
    try:
        return import_module(module)
    except ImportError as problem:
        missing = isinstance(problem, ModuleNotFoundError) and problem.name == extra
        why = "is not installed" if missing else f"cannot be imported ({problem})"
        raise RecipeError(f"the library '{extra}' {why}; pip install 'maskzoo[{extra}]'") from problem
