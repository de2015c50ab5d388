"""Plain values and small files, for code that must not wait for torch."""

from __future__ import annotations

import os
import re
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

# What a terminal, or a reader's eyes, would obey: control characters but line feed and tab, two that split lines,
# overrides of the direction of writing; and surrogates, by which Python holds the bytes of a name that is not UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
LONGEST_QUOTED, LONGEST_WORD = 80, 400  # letters of a user's value, and of any word, in a message


def printable(text: object) -> str:
    """A text, or a path, for people: what could not be printed, or would be obeyed, as `\\x1b` or `\\u202e`.

    Line feeds and tabs stay. Files names that are not UTF-8 show their bytes: `caf\\xe9.png`.
    """
    return _UNPRINTABLE.sub(_escaped, str(text))


def _escaped(found: re.Match[str]) -> str:
    number = ord(found[0])
    if 0xDC80 <= number <= 0xDCFF:  # a byte that is no text, see PEP 383
        number -= 0xDC00
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def is_utf8(text: str) -> bool:
    """Whether a text, or a file's name as Python holds it, can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shortened(text: str) -> str:
    """A message in which no word is longer than a path that people type: a name of 5,000 letters says little more."""
    return re.sub(rf"\S{{{LONGEST_WORD},}}", lambda found: f"{found[0][:LONGEST_QUOTED]}...{found[0][-20:]}", text)


def quoted(value: object) -> str:
    """A user's value as Python writes it, shortened where it is long, for a message that says what is wrong with it."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 4 * LONGEST_QUOTED:
        return f"a number of {value.bit_length()} bits"  # Python refuses to write the largest ones
    try:
        words = repr(value)
    except (ValueError, RecursionError):  # a number inside, or tables within tables, too large to write
        return f"a {type(value).__name__} that is too large to show"
    if len(words) <= LONGEST_QUOTED:
        return words
    half = LONGEST_QUOTED // 2
    return f"{words[:half]}...{words[-half // 2 :]} ({len(words)} characters)"


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
