"""Whose code raised: the plugin of another distribution, with its version, file and line, for messages.

The registry says which modules belong to which distribution. What a plugin raises is its own bug, unless it is a
MaskZooError, which is a message to the user already.
"""

from __future__ import annotations

import dis
import inspect
import linecache
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, TracebackType
from typing import Any

from maskzoo.errors import MaskZooError, PluginError

TRACEBACK = "MASKZOO_TRACEBACK"  # the environment variable
FRAME_IN_TEXT = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')  # of a traceback that came from a worker

NOBODYS = frozenset({"maskzoo", "torch", "torchvision", "timm", "numpy", "attrs", "builtins", "__main__"})

_owners: dict[str, str | None] = {}  # module -> "distribution version" of the plugin it belongs to; None: it is ours
_files: dict[str, str] = {}  # file -> the same


def belongs(module: str, owner: str | None, file: str | None = None) -> None:
    """Remember that a module, and what is below it, is `owner`'s ("distribution version"), or ours (None)."""
    if module.split(".")[0] in NOBODYS:
        return
    _owners.setdefault(module, owner)
    if file and owner is not None:
        _files.setdefault(file, owner)


def distribution_of(thing: Any) -> str | None:
    """The "distribution version" of the plugin that something comes from; None where it is ours."""
    cls = thing if isinstance(thing, type | FunctionType) else type(thing)
    return _owner(getattr(cls, "__module__", None) or "")


def owner_of(thing: Any) -> str:
    """Where a class, a function or an object comes from: "maskzoo-dark 0.1 (maskzoo_dark.py:12)"; ours by module."""
    code = thing if isinstance(thing, type | FunctionType) else type(thing)
    owner = distribution_of(code)
    if owner is None:
        return f"{code.__module__}"
    file, line = _defined(code)
    return f"{owner} ({Path(file).name}:{line})" if file else owner


def titled(kind: str, thing: Any) -> str:
    """A plugin's object by kind, name and origin: "strategy 'dark' (maskzoo-dark 0.1 (maskzoo_dark.py:12))"."""
    return f"{kind} '{thing.name}' ({owner_of(thing)})"


def at_fault(problem: BaseException) -> str | None:
    """Where in another distribution's plugin something was raised: "maskzoo-dark 0.1 (maskzoo_dark.py:14)".

    The innermost of its frames counts, though what it called may have raised. None: no plugin but ours took part.
    """
    found = None
    for frame, line in _frames(problem):
        if owner := _owner(frame.f_globals.get("__name__", "")):
            found = f"{owner} ({Path(frame.f_code.co_filename).name}:{line})"
    if found is None and "Traceback" in str(problem):  # a worker's, as text
        for match in FRAME_IN_TEXT.finditer(str(problem)):
            if owner := _files.get(match["file"]):
                found = f"{owner} ({Path(match['file']).name}:{match['line']})"
    return found


def refuses(problem: BaseException) -> bool:
    """Whether a ValueError or TypeError refuses a value on purpose, and so is the user's to mend.

    It does where it was raised by a `raise` of the plugin itself or by attrs; what Python or a library raises on the
    way ("too many values to unpack") is a bug of the plugin. Ours refuse whenever they raise one.
    """
    if not isinstance(problem, ValueError | TypeError):
        return False
    if at_fault(problem) is None or problem.__traceback__ is None:
        return True
    last = problem.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    code, module = last.tb_frame.f_code, last.tb_frame.f_globals.get("__name__", "")
    if code.co_filename.startswith("<attrs generated") or module.split(".")[0] in ("attr", "attrs"):
        return True
    raised = last.tb_lasti >= 0 and dis.opname[code.co_code[last.tb_lasti]] == "RAISE_VARARGS"
    return raised and _owner(module) is not None


def names_used(problem: BaseException) -> set[str]:
    """The names in the code of the plugins at fault: attributes, and whatever stands in the lines that raised."""
    names: set[str] = set()
    for frame, line in _frames(problem):
        if _owner(frame.f_globals.get("__name__", "")):
            names.update(frame.f_code.co_names)
            names.update(re.findall(r"\w+", linecache.getline(frame.f_code.co_filename, line)))
    return names


def plugin_error(problem: BaseException, path: str = "") -> PluginError | None:
    """The PluginError that says whose bug a problem is; None where it is ours, or a message to the user already."""
    if isinstance(problem, MaskZooError) or not isinstance(problem, Exception | SystemExit):
        return None
    place = at_fault(problem)
    return None if place is None else PluginError(f"{path}{': ' if path else ''}{place}: {words_of(problem)}")


def words_of(problem: BaseException) -> str:
    """An exception in one line: its class, and the first line of what it says, or the last of a worker's traceback."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    if not lines:
        return type(problem).__name__
    return lines[-1] if "Traceback" in str(problem) else f"{type(problem).__name__}: {lines[0]}"


def message_of(problem: Exception, words: str = "") -> str:
    """What the command line says of an error, its own text or other `words`, and after a bug how to see its origin.

    With the environment variable MASKZOO_TRACEBACK set, the whole traceback comes first.
    """
    words = words or str(problem)
    if os.environ.get(TRACEBACK):
        return "".join(traceback.format_exception(problem)) + "\n" + words
    bug = isinstance(problem, PluginError) and problem.__cause__ is not None and "traceback" not in words
    nowhere = isinstance(problem, OSError) and not problem.filename  # of no file: perhaps a bug
    return f"{words} ({TRACEBACK}=1 shows the traceback)" if bug or nowhere else words


@contextmanager
def blaming(path: str = "") -> Iterator[None]:
    """Raise a PluginError, beginning with the key's path, for what a plugin of another distribution raises inside."""
    try:
        yield
    except (Exception, SystemExit) as problem:  # a plugin that ends the program is a bug too
        error = plugin_error(problem, path)
        if error is None:
            raise
        raise error from problem


def _frames(problem: BaseException) -> Iterator[tuple[Any, int]]:
    """The frames of a problem, outermost first, with the line in each."""
    step: TracebackType | None = problem.__traceback__
    while step is not None:
        yield step.tb_frame, step.tb_lineno
        step = step.tb_next


def _owner(module: str) -> str | None:
    """Whose a module is: that of the longest package it is in."""
    while module:
        if module in _owners:  # None where it is ours
            return _owners[module]
        module = module.rpartition(".")[0]
    return None


def _defined(code: Any) -> tuple[str, int]:
    """File and line of a class or a function; of a class whose source is gone those of its first method."""
    if isinstance(code, FunctionType):
        return code.__code__.co_filename, code.__code__.co_firstlineno
    try:
        return inspect.getsourcefile(code) or "", inspect.getsourcelines(code)[1]
    except (OSError, TypeError):
        own = [value.__code__ for value in vars(code).values() if isinstance(value, FunctionType)]
        first = min(
            (one for one in own if not one.co_filename.startswith("<")),
            key=lambda one: one.co_firstlineno,
            default=None,
        )
        return ("", 0) if first is None else (first.co_filename, first.co_firstlineno)
