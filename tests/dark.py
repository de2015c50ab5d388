"""Plugins of another distribution, maskzoo-dark 0.1, made of texts: tracebacks know their lines."""

from __future__ import annotations

import linecache
import sys
import textwrap
import types

import attrs

from maskzoo import Registry

INSTALLED = Registry()
HEAD = """
import attrs, dataclasses, torch
import numpy as np
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal
from maskzoo import *
from maskzoo import define, hookimpl, Strategy, RankedStrategy, CurriculumSchedule
"""


@attrs.frozen
class Distribution:
    name: str
    version: str


@attrs.frozen
class Point:
    """The entry point of a plugin whose source is a text."""

    name: str
    module: types.ModuleType
    dist: Distribution
    value: str = "maskzoo_dark"

    def load(self) -> types.ModuleType:
        return self.module


_count = iter(range(10**6))


def module_of(source: str, stem: str = "maskzoo_dark") -> types.ModuleType:
    """A module of this source, of which Python and tracebacks know the lines; its name is new each time."""
    name = f"{stem}_{next(_count)}"
    text = HEAD.lstrip() + textwrap.dedent(source)
    file = f"/nowhere/{name}.py"
    linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file
    module = types.ModuleType(name)
    module.__file__ = file
    sys.modules[name] = module
    exec(compile(text, file, "exec"), vars(module))
    return module


def registry_with(source: str, **hooks: str) -> tuple[Registry, types.ModuleType]:
    """What is installed, with maskzoo-dark 0.1, whose hooks offer the classes named, e.g. strategies="A"."""
    offered = "\n".join(
        f"@hookimpl\ndef maskzoo_{hook}():\n    return [{classes}]\n"
        for hook, classes in (hooks or {"strategies": "Bad"}).items()
    )
    module = module_of(f"{textwrap.dedent(source)}\n{offered}")
    dark = Point("dark", module, Distribution("maskzoo-dark", "0.1"))
    return Registry([*INSTALLED._points, dark]), module
