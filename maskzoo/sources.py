"""The source of a plugin, by which its code is known again when its version is the same."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any


def source_of(module: str, name: str) -> str:
    """A hash of the Python files of the package that a module is in, and of the distribution `name`; "" without any.

    Nothing is imported.
    """
    files = {**_of_distribution(name), **_of_module(module.split(".")[0])}
    if not files:
        return ""
    hashed = hashlib.blake2b(digest_size=8)
    for path in sorted(files):
        try:
            hashed.update(path.encode() + b"\0" + files[path].read_bytes() + b"\0")
        except OSError:
            return ""
    return hashed.hexdigest()


def changes(environment: Mapping[str, Any]) -> list[str]:
    """A clause for each plugin that a run used, as its environment.json says, and whose code is another by now.

    Of another version, or of the same version with other code. What is not installed any more is not among them.
    """
    used = environment.get("used")
    clauses: dict[str, None] = {}
    for one in used if isinstance(used, list) else []:
        if not isinstance(one, dict) or not all(
            isinstance(one.get(key), str) for key in ("source", "module", "version")
        ):
            continue
        name, then = str(one.get("distribution")), one["version"]
        try:
            now = version(name)
        except (PackageNotFoundError, ValueError):
            now = then  # not installed, but perhaps here all the same
        source = source_of(one["module"], name)
        if now != then:
            clauses[f"the plugin distribution '{name}' was {then} then and is {now} now"] = None
        elif source and source != one["source"]:
            clauses[f"the plugin distribution '{name}' {then} has other code now than then, under the same version"] = (
                None
            )
    return list(clauses)


def _of_module(top: str) -> dict[str, Path]:
    """The Python files of a top-level module or package, by their path in it."""
    try:
        spec = importlib.util.find_spec(top)
        places = list(spec.submodule_search_locations or []) if spec is not None else []
        origin = spec.origin if spec is not None else None
    except (ImportError, ValueError, AttributeError):
        places, origin = [], getattr(sys.modules.get(top), "__file__", None)
    if places:
        return _python_files({Path(place).name: Path(place) for place in places})
    return {Path(origin).name: Path(origin)} if origin is not None and Path(origin).is_file() else {}


def _python_files(folders: Mapping[str, Path]) -> dict[str, Path]:
    return {
        f"{name}/{file.relative_to(folder).as_posix()}": file
        for name, folder in folders.items()
        for file in folder.rglob("*.py")
    }


def _of_distribution(name: str) -> dict[str, Path]:
    """The Python files that a distribution has installed, by their path; those of an editable one are elsewhere."""
    try:
        files: Iterable[Any] = distribution(name).files or []
    except (PackageNotFoundError, ValueError):
        return {}
    found = {str(file): Path(str(file.locate())) for file in files if str(file).endswith(".py")}
    return {path: file for path, file in found.items() if file.is_file()}
