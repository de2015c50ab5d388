"""Plain values and small files, for code that must not wait for torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# What may change between a run and its resumption: no figure depends on it, or, of some, only their rounding.
FREE_KEYS = frozenset(
    f"train.{key}"
    for key in (
        *("device", "compile", "recompute", "parallel", "workers", "checkpoint_steps"),
        *("skip", "go_back", "loggers", "pictures", "max_broken"),
    )
)


def shown(plain: Any, path: str = "") -> dict[str, Any]:
    """Nested plain values as flat {dotted path: value}, to compare two recipes key by key."""
    if isinstance(plain, Mapping):
        items: Sequence[tuple[str, Any]] = [(f"{path}.{key}" if path else str(key), plain[key]) for key in plain]
    elif isinstance(plain, list | tuple) and any(isinstance(item, Mapping) for item in plain):
        items = [(f"{path}[{position}]", item) for position, item in enumerate(plain)]
    else:
        return {path: list(plain) if isinstance(plain, tuple) else plain}
    return {name: value for key, item in items for name, value in shown(item, key).items()}


def replace(path: Path, text: str) -> None:
    """Write a file beside, and rename it into place when all of it is on the disk; OSError leaves what was there."""
    beside = path.with_name(path.name + ".part")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    beside.replace(path)
