"""A known point of a program that announces itself, and stays there until it is told to continue."""

from __future__ import annotations

import functools
import hashlib
import importlib
import time
from pathlib import Path
from typing import Any

LONGEST = 120.0  # seconds


def pause_at(point: str, place: str, *, nth: int = 1, once: str = "", deaf: bool = False) -> None:
    """Have the nth call of `point`, e.g. "maskzoo.gallery:Gallery.draw_all", wait before it does its work.

    It touches `here` in the folder at `place`, and waits for `on`. With `once`, calls count from when such a file
    exists. With `deaf`, the main thread is in a call of C for a minute or so instead, and sees no signal.
    """
    folder = Path(place)
    module, _, qualified = point.partition(":")
    owner: Any = importlib.import_module(module)
    *path, name = qualified.split(".")
    for part in path:
        owner = getattr(owner, part)
    real, calls = getattr(owner, name), 0

    @functools.wraps(real)
    def paused(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += not once or any(folder.glob(once))
        if calls == nth:
            calls += 1
            (folder / "here").touch()
            if deaf:
                hashlib.pbkdf2_hmac("sha256", b"", b"", 200_000_000)
            deadline = time.monotonic() + LONGEST
            while not (folder / "on").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
        return real(*arguments, **options)

    setattr(owner, name, paused)
