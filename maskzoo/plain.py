"""Plain values and small files, for code that must not wait for torch."""

from __future__ import annotations

import glob
import json
import math
import os
import re
import secrets
import stat
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from maskzoo.errors import DataError, RecipeError

# What may change between a run and its resumption: no figure depends on it, or, of some, only their rounding.
FREE_KEYS = frozenset(
    f"train.{key}"
    for key in (
        *("device", "compile", "recompute", "parallel", "workers", "checkpoint_steps"),
        *("skip", "go_back", "loggers", "pictures", "max_broken"),
    )
) | {"data.kinds", "data.shown"}  # by which files are refused, or not; what pictures show

# What a terminal, or a reader's eyes, would obey: control characters but line feed and tab, two that split lines,
# overrides of the direction of writing; and surrogates, by which Python holds the bytes of a name that is not UTF-8.
DATA_PLACES = ("data.root", "data.path")  # keys that say where data lie

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


MOST_BYTES = 2**28  # of a file that is read as one JSON or TOML value
MOST_IN_LINE = 2**24  # bytes of a line of a file that is read line by line
DEEPEST = 100  # tables and lists within each other; code that walks through them recurses
HANDED = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")  # what a shell hands over, e.g. by <(...), may be a pipe
KINDS: Mapping[type, str] = {dict: "a table of values", list: "a list"}
REQUIRED: Any = object()
LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.part")  # what a kill leaves of `replace`


def same(first: Any, second: Any) -> bool:
    """Whether two plain values are the same; NaN is the same as NaN, and a tuple as a list."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(same(*pair) for pair in zip(first, second, strict=True))
    return bool(first == second or (first != first and second != second))


def rooted(data: Any) -> Any:
    """The use of a data set, its folders as absolute paths, so that a run can be opened from anywhere.

    They are its `root`, and those of its `extras`.
    """
    root = data.get("root") if isinstance(data, Mapping) else None
    if not isinstance(root, str) or "://" in root:
        return data
    extras = data.get("extras")
    if isinstance(extras, Mapping):
        data = {**data, "extras": {name: absolute(path) for name, path in extras.items()}}
    return {**data, "root": absolute(root)}


def absolute(folder: Any) -> Any:
    """A folder as an absolute path; anything else as it is."""
    return os.path.abspath(os.path.expanduser(folder)) if isinstance(folder, str) else folder


def same_place(key: str, first: Any, second: Any) -> bool:
    """Whether two values of a key are the same, where that of DATA_PLACES is a folder, perhaps relative."""
    if key in DATA_PLACES and isinstance(first, str) and isinstance(second, str):
        return os.path.realpath(os.path.expanduser(first)) == os.path.realpath(os.path.expanduser(second))
    return same(first, second)


def shown(plain: Any, path: str = "") -> dict[str, Any]:
    """Nested plain values as flat {dotted path: value}, to compare two recipes key by key."""
    if isinstance(plain, Mapping):
        items: Sequence[tuple[str, Any]] = [(f"{path}.{key}" if path else str(key), plain[key]) for key in plain]
    elif isinstance(plain, list | tuple) and any(isinstance(item, Mapping) for item in plain):
        items = [(f"{path}[{position}]", item) for position, item in enumerate(plain)]
    else:
        return {path: list(plain) if isinstance(plain, tuple) else plain}
    return {name: value for key, item in items for name, value in shown(item, key).items()}


# ------------------------------------------------------------------------------------------------------------- reading
def read_json(path: Path, kind: type = dict, missing: Any = REQUIRED, *, finite: bool = True) -> Any:
    """The value in a JSON file, which is of this `kind`; `missing` where there is no such file, if that is given.

    Raises DataError, which names the file and where possible the key, for whatever cannot be read: no regular file, no
    UTF-8, no JSON, another kind, too deep, a number that needs more than 64 bits or, where they are to be `finite`, NaN
    or infinite.
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        if missing is not REQUIRED:
            return missing
        raise DataError(f"'{path}' is missing") from None
    return parse_json(text, f"'{path}'", kind, finite=finite)


def parse_json(text: str | bytes, where: str, kind: type = dict, *, finite: bool = True) -> Any:
    """The value that a text is in JSON; DataError, beginning with `where`, as of `read_json`."""
    try:
        value = json.loads(text)
        if b"\\ud" in (text if isinstance(text, bytes) else text.encode()).lower():
            json.dumps(value, ensure_ascii=False).encode()  # half of a pair of surrogates could not be written again
    except RecursionError:
        raise DataError(f"{where} cannot be read: its values are nested too deeply") from None
    except ValueError as problem:  # no JSON, no UTF-8, or a number of thousands of digits
        raise DataError(f"{where} cannot be read: {problem}") from None
    return _checked(value, where, kind, finite=finite)


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file, with or without a byte-order mark; DataError, as of `read_json`."""
    try:
        return parse_toml(read_text(path), f"'{path}'")
    except FileNotFoundError:
        raise DataError(f"'{path}' is missing") from None


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """The table that a text is in TOML; DataError, beginning with `where`, as of `read_json`."""
    try:
        value = tomllib.loads(text)
    except RecursionError:
        raise DataError(f"{where} cannot be read: its values are nested too deeply") from None
    except ValueError as problem:  # no TOML, or a number of thousands of digits
        raise DataError(f"{where} is not valid TOML: {problem}") from None
    checked: dict[str, Any] = _checked(value, where, dict, finite=False)
    return checked


def read_text(path: Path) -> str:
    """The text of a regular file, without a byte-order mark; FileNotFoundError, or else DataError that says why not."""
    try:
        with open(_regular(path), encoding="utf-8-sig", newline=None) as file:
            text = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as problem:  # ValueError: no UTF-8, or a path with a zero byte
        raise DataError(f"'{path}' cannot be read: {problem}") from None
    if len(text) > MOST_BYTES:
        raise DataError(f"'{path}' cannot be read: it is larger than {MOST_BYTES // 2**20} MiB")
    return text


def read_bytes(path: Path) -> bytes:
    """What is in a regular file; OSError says why it cannot be read."""
    with open(_regular(path), "rb") as file:
        return file.read()


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a regular file, without their ends, and none where there is no file; DataError says why not.

    What is no UTF-8 is replaced. A line that is too long is given in pieces.
    """
    try:
        with open(_regular(path), encoding="utf-8", errors="replace", newline="\n") as file:
            while line := file.readline(MOST_IN_LINE):
                yield line.removesuffix("\n")
    except FileNotFoundError:
        return
    except (OSError, ValueError) as problem:
        raise DataError(f"'{path}' cannot be read: {problem}") from None


def step_line(line: str) -> dict[str, Any] | None:
    """What a line of metrics.jsonl tells of a step; None for one that is no whole step, as a kill leaves it."""
    try:
        step: dict[str, Any] = parse_json(line, "a line")
    except DataError:
        return None
    number = step.get("step")
    return step if isinstance(number, int) and not isinstance(number, bool) and number >= 0 else None


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _regular(path: Path) -> int:
    """A descriptor of an open file; OSError where it is something that has no end, such as a pipe or a device."""
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # or to open a pipe would wait for a writer
    mode = os.fstat(number).st_mode
    if stat.S_ISREG(mode):
        return number
    if stat.S_ISFIFO(mode) and os.fspath(path).startswith(HANDED):
        os.set_blocking(number, True)
        return number
    os.close(number)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError("it is a folder")
    raise OSError("it is not a regular file")


def _checked(value: Any, where: str, kind: type, *, finite: bool) -> Any:
    """The same value; DataError where it is of another kind, too deep, or holds a number that is not usable."""
    if not isinstance(value, kind):
        raise DataError(f"{where} cannot be read: expected {KINDS.get(kind, kind.__name__)}")
    waiting: list[tuple[str, int, Any]] = [("", 0, value)]
    while waiting:
        path, depth, one = waiting.pop()
        if isinstance(one, dict | list):
            if depth >= DEEPEST:
                raise DataError(f"{where} cannot be read: its values are nested too deeply")
            items: Any = one.items() if isinstance(one, dict) else enumerate(one)
            for key, item in items:
                if not isinstance(item, str):
                    name = f"{path}[{key}]" if isinstance(one, list) else f"{path}.{key}" if path else str(key)
                    waiting.append((name, depth + 1, item))
        elif isinstance(one, float):
            if finite and not math.isfinite(one):
                raise DataError(f"{where} cannot be read: {path or 'it'} is {one}, no finite number")
        elif isinstance(one, int) and not -(2**63) <= one < 2**63:
            raise DataError(f"{where} cannot be read: {path or 'it'} is a number that needs more than 64 bits")
    return value


# ------------------------------------------------------------------------------------------------------------- writing
def write_json(path: Path, plain: Any) -> None:
    """Write a value as JSON, as `replace` does; a number that is not finite becomes a text, for JSON has no word."""
    replace(path, json_text(plain, indent=2) + "\n")


def json_text(plain: Any, indent: int | None = None) -> str:
    """A value as JSON that `parse_json` reads; what JSON does not know, such as a path, becomes a text."""
    try:
        text = json.dumps(plain, indent=indent, allow_nan=False, default=str)
        if "\\ud" not in text:
            return text
    except ValueError:
        pass
    return json.dumps(_sayable(plain), indent=indent, allow_nan=False, default=_sayable)


def _sayable(plain: Any) -> Any:
    """The same value, in which numbers that are not finite are texts, and bytes that are no text are escaped."""
    if isinstance(plain, Mapping):
        return {key: _sayable(value) for key, value in plain.items()}
    if isinstance(plain, list | tuple):
        return [_sayable(value) for value in plain]
    if isinstance(plain, int | None) or (isinstance(plain, float) and math.isfinite(plain)):
        return plain
    return str(plain).encode(errors="backslashreplace").decode()


def replace(path: Path, content: str | bytes) -> None:
    """Write a file beside, and rename it into place when all of it is on the disk; OSError leaves what was there.

    The file beside is always a new one, under a name at which no link can lie in wait.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with beside.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):  # of one that was killed while it wrote
        if LEFTOVER.fullmatch(left.name):
            left.unlink(missing_ok=True)


def named(use: Any) -> Any:
    """The name in a use, whichever way it is written."""
    if isinstance(use, Mapping):
        use = use.get("use", "?")
    return use.split(":")[0] if isinstance(use, str) else use


def not_empty(_: object, field: Any, value: Any) -> None:
    """A validator of attrs: refuse an empty text, which as a path would be the current folder.

    An unset variable of a shell gives such a text. Raises RecipeError with the field's name as its key.
    """
    if value is not None and not value.strip():
        raise RecipeError("is empty; give a value, or leave it out", key=field.name)
