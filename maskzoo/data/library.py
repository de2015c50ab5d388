"""The optional libraries that read data, imported when something asks for them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from maskzoo.errors import RecipeError


def library(module: str, extra: str, key: str = "use") -> Any:
    """The imported module. RecipeError, for the option `key`, names what to install (`extra`) where it is missing."""
    try:
        return import_module(module)
    except ImportError as problem:
        missing = isinstance(problem, ModuleNotFoundError) and problem.name == module.partition(".")[0]
        why = "is not installed" if missing else f"cannot be imported ({problem})"
        raise RecipeError(f"the library '{module}' {why}; pip install '{extra}'", key=key) from problem
