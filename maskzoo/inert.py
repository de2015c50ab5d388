"""What a pickle would make, looked at without making any of it: for messages about files that are refused."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import attrs

MOST_BYTES = 2**26  # of a pickle that is looked at
MOST_THINGS = 10**6  # that are looked at inside of it
LEGACY = 3  # pickles that torch's older format has before the one that counts
WARNING = "  # runs code of the file: only if you trust it"
COMMON = ("model", "state_dict", "teacher", "encoder", "student", "module", "net")  # where weights are, most often
# What torch reads without running anything: it is what weights are made of.
PLAIN = (
    "torch._utils.",
    "torch._tensor.",
    "torch.storage.",
    "torch.nn.parameter.",
    "torch.serialization.",
    "torch.Size",
)


class _Thing:
    """In place of whatever class or function a pickle names: it takes everything, and does nothing."""

    name = ""
    state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> _Thing:
        made = super().__new__(cls)
        made.state = [args, kwargs]
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = [self.state, state]

    def __setitem__(self, key: Any, value: Any) -> None:
        self.state = [self.state, key, value]

    def append(self, item: Any) -> None:
        """Keep it."""
        self.state = [self.state, item]

    def extend(self, items: Any) -> None:
        """Keep them."""
        self.state = [self.state, items]

    def add(self, item: Any) -> None:
        """Keep it."""
        self.state = [self.state, item]


class _Table(dict[Any, Any]):
    """In place of an OrderedDict, which may carry attributes besides."""


class _Looking(pickle._Unpickler):
    """Reads a pickle as things that do nothing. No module is imported, and nothing that it names is called."""

    def find_class(self, module: str, name: str) -> Any:
        """A thing that carries the name."""
        if (module, name) == ("collections", "OrderedDict"):
            return _Table
        return type("Thing", (_Thing,), {"name": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Any:
        """In place of the numbers of a tensor; a module of the older format is its own class."""
        return pid[1] if isinstance(pid, tuple) and pid[:1] == ("module",) and len(pid) > 1 else _Thing()


@attrs.frozen
class Named:
    """What a file names that torch does not read, and where."""

    names: Sequence[str]  # of classes and functions, in full
    places: Sequence[str]  # keys of the file's table under which they are
    content: Any

    def access(self, part: str | None) -> str:
        """What to write behind the loaded file to have its weights alone, e.g. "['model']"."""
        if isinstance(self.content, _Thing):
            return ".state_dict()"
        if not isinstance(self.content, Mapping):
            return ""
        holding = [name for name, value in self.content.items() if isinstance(name, str) and _holds_tensors(value)]
        wanted = [name for name in (str(part).split(".")[0], *COMMON, *holding) if name in holding]
        if wanted:
            whole = isinstance(self.content[wanted[0]], _Thing)
            return f"[{wanted[0]!r}]" + (".state_dict()" if whole else "")
        return ""


def named_in(path: Path) -> Named | None:
    """What a file of torch names that is not plain; None where it is no pickle that can be looked at."""
    try:
        content = _looked_at(path)
        names = _names(content)
        inside = content.items() if isinstance(content, Mapping) else ()
        return Named(names, [str(key) for key, value in inside if _names(value)], content)
    except Exception:  # a damaged pickle fails in as many ways as there are bytes
        return None


def clean_line(path: Path, access: str) -> str:
    """The line that makes a file of weights alone of a file that names more."""
    loaded = f"torch.load({str(path)!r}, weights_only=False){access}"
    return f"torch.save({loaded}, {str(path.with_name(path.stem + '-clean.pth'))!r}){WARNING}"


def _looked_at(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            (member,) = [info for info in archive.infolist() if info.filename.endswith("data.pkl")]
            if member.file_size > MOST_BYTES:
                raise ValueError("too large to be looked at")
            with archive.open(member) as file:
                return _Looking(file).load()
    with path.open("rb") as file:
        return _of_older_format(file)


def _of_older_format(file: IO[bytes]) -> Any:
    """The pickle that counts in torch's older format, or in a file of a single pickle."""
    first = _Looking(file).load()
    if not isinstance(first, int):
        return first
    for _ in range(LEGACY - 1):
        _Looking(file).load()
    return _Looking(file).load()


def _walk(value: Any) -> Iterator[_Thing]:
    """All things in a value, at any depth, each once."""
    seen: set[int] = set()
    waiting = [value]
    while waiting and len(seen) < MOST_THINGS:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, _Thing):
            yield one
            waiting.append(one.state)
        elif isinstance(one, type) and issubclass(one, _Thing):
            yield one()
        elif isinstance(one, Mapping):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            waiting += one


def _names(value: Any) -> list[str]:
    found = dict.fromkeys(thing.name for thing in _walk(value))
    return [name for name in found if name and not _plain(name)]


def _plain(name: str) -> bool:
    short = name.removeprefix("torch.")
    return (
        name.startswith(PLAIN)
        or (short != name and "." not in short and (short.endswith("Storage") or short in _DTYPES))
        or name in ("argparse.Namespace", "collections.OrderedDict", "collections.Counter", "_codecs.encode")
    )


_DTYPES = frozenset(
    {*("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"), "device"}
)


def _holds_tensors(value: Any) -> bool:
    return any(thing.name.startswith("torch._utils._rebuild") for thing in _walk(value))
