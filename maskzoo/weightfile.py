"""A file of weights: the tables of tensors in it, read by code that runs nothing of it, or why it cannot be read."""

from __future__ import annotations

import argparse
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from maskzoo.checkpoint import check_sums
from maskzoo.errors import MaskZooError, RecipeError
from maskzoo.inert import clean_line, named_in
from maskzoo.plain import quoted, read_json

DEEPEST = 8  # tables within each other that are looked into
BEGINNING = 600  # bytes by which a format is told
LONGEST_HEADER = 10**8  # bytes, of a safetensors file, as its own library has it
LFS = "it is a pointer of git-lfs, and the weights themselves were not downloaded; `git lfs pull` does that"
PAGE = "it is a web page, as of a login or an error, in place of the file that was to be downloaded"
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"(\xb5/\xfd": "zstd",
    b"Rar!": "rar",
    b"7z\xbc\xaf": "7z",
}
OTHERS = {
    b"\x89HDF": "it is an HDF5 file, as of Keras, and not of torch",
    b"\x93NUMPY": "it is a single NumPy array, and not a table of tensors by name",
}
AS_TENSORS = "torch.save({name: torch.from_numpy(array) for name, array in numpy.load(FILE).items()}, CLEAN)"


def tables_of(path: Path, key: str, part: str | None = None) -> tuple[dict[str, dict[str, Tensor]], Mapping[Any, Any]]:
    """The tensors of a file by the place of their table ("" at the top, "model", "state.teacher") and by their name.

    The second is all that the file holds. `part` is the place that is wanted, for the advice that an error gives.
    Raises RecipeError, which begins with `key`, for what is no such file, is damaged, or names what would be run.
    """
    problem = _foreign(path)
    if problem:
        raise _unreadable(path, key, problem)
    try:
        content = _read(path)
    except Exception as error:  # a file that is none fails in as many ways as there are formats
        raise _unreadable(path, key, _why(path, error, part)) from error
    if isinstance(content, Tensor):
        raise _unreadable(path, key, f"it holds a single tensor {list(content.shape)}, and not a table of them by name")
    if not isinstance(content, Mapping):
        raise _unreadable(path, key, f"it holds a {type(content).__name__}, and not a table of tensors by name")
    tables = dict(_tables(content))
    if not tables:
        names = ", ".join(quoted(name) for name in list(content)[:5])
        raise _unreadable(path, key, f"there is no tensor in it; it holds {names or 'an empty table'}")
    return tables, content


def _unreadable(path: Path, key: str, problem: str) -> RecipeError:
    return RecipeError(f"{key}: '{path}' cannot be read as a file of weights: {problem}")


def _read(path: Path) -> Any:
    """What is in a file of torch or safetensors, by its content, whatever its name; their own errors where damaged."""
    with path.open("rb") as file:
        beginning = file.read(16)
    if _header_of(beginning):
        return load_file(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            check_sums(archive)
    with (
        path.open("rb") as opened,  # of a name, torch would look at the ending
        torch.serialization.safe_globals([argparse.Namespace]),  # plain options, which most training code leaves
    ):
        return torch.load(opened, map_location="cpu", weights_only=True)


def _tables(
    content: Mapping[Any, Any], place: str = "", above: tuple[int, ...] = ()
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The tables of tensors at any depth, with their places; none that is inside of itself."""
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if tensors:
        yield place, tensors
    for name, value in content.items():
        if isinstance(value, Mapping) and len(above) < DEEPEST and id(value) not in (*above, id(content)):
            yield from _tables(value, f"{place}.{name}" if place else str(name), (*above, id(content)))


# --------------------------------------------------------------------------------------------------- what it is instead
def _foreign(path: Path) -> str:
    """What a file is that is certainly none of weights, and what to do; empty where it may be one."""
    try:
        if not path.is_file():
            return "it is not a regular file"
        size = path.stat().st_size
        with path.open("rb") as file:
            beginning = file.read(BEGINNING)
    except OSError as problem:
        return problem.strerror or str(problem)
    if not beginning:
        return "it is empty (0 bytes)"
    for format_of in (_by_beginning, _archive, _text):
        with suppress(OSError, tarfile.TarError, zipfile.BadZipFile):  # a damaged one, which torch will not read either
            if told := format_of(path, beginning):
                return told
    header = _header_of(beginning)
    if header and size < 8 + header:
        return f"it is a safetensors file that was cut off: {size:,} bytes, and its header alone has {header:,}"
    if header or zipfile.is_zipfile(path) or beginning[0] == 0x80:  # the first byte of a pickle
        return ""
    return f"it is in no format of weights that is known here (it begins with the bytes {beginning[:8].hex(' ')})"


def _header_of(beginning: bytes) -> int:
    """The bytes of the header, if it is a safetensors file; else 0."""
    length = int.from_bytes(beginning[:8], "little")
    return length if beginning[8:9] == b"{" and 2 <= length <= LONGEST_HEADER else 0


def _by_beginning(path: Path, beginning: bytes) -> str:
    if beginning.startswith(b"version https://git-lfs"):
        return LFS
    for begins, name in COMPRESSED.items():
        if beginning.startswith(begins):
            return f"it is compressed ({name}); unpack it first"
    for begins, told in OTHERS.items():
        if beginning.startswith(begins):
            return told
    return ""


def _archive(path: Path, beginning: bytes) -> str:
    """What an archive is that torch.save has not written."""
    if beginning[257:262] == b"ustar":
        with tarfile.open(path) as archive:
            member = archive.next()
            names = {member.name} if member else set()
            while len(names) < 5 and (member := archive.next()):
                names.add(member.name)
        if {"storages", "tensors"} <= names:
            return f"it is in torch's first format, of 2016; make a file of today of it: {clean_line(path, '')}"
        return f"it is a tar archive (of {', '.join(sorted(names))}, ...); unpack it, and name a file in it"
    if not beginning.startswith(b"PK\x03\x04"):
        return ""
    if not zipfile.is_zipfile(path):
        return "it was cut off or is damaged: it begins as a file of torch does, and its end is missing"
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
    if all(name.endswith(".npy") for name in names):
        return f"it is a NumPy archive (.npz); if its names are timm's, make a file of torch of it: {AS_TENSORS}"
    if any(re.search(r"(^|/)(constants\.pkl|code/)", name) for name in names):
        line = "torch.save(torch.jit.load(FILE).state_dict(), CLEAN)  # runs code of the file: only if you trust it"
        return f"it is a TorchScript archive, a program and its weights; keep the weights alone: {line}"
    if not any(name.endswith("data.pkl") for name in names):
        some = ", ".join(sorted(names)[:3])
        return f"it is a zip archive that torch.save has not written (of {some}); unpack it first"
    return ""


def _text(path: Path, beginning: bytes) -> str:
    try:
        words = beginning.decode("utf-8-sig" if len(beginning) < BEGINNING else "latin-1").strip()
    except UnicodeDecodeError:
        return ""
    if re.match(r"<(!doctype|html|head|body|\?xml|!--)", words, re.IGNORECASE):
        return PAGE
    if any(letter < " " and letter not in "\t\n\r\f" for letter in words) or (
        not words.isprintable() and "\n" not in words
    ):
        return ""
    if words.startswith("{"):
        return _json(path)
    return f"it is a text, which begins with {quoted(words[:60])}"


def _json(path: Path) -> str:
    """What a JSON file is: most often the index of weights that were saved in several pieces."""
    try:
        pieces = sorted(set(read_json(path)["weight_map"].values()))
        listed = ", ".join(pieces[:3])
    except (MaskZooError, KeyError, AttributeError, TypeError):  # whatever else it is
        return "it is a JSON file"
    line = "save_file({name: t for piece in PIECES for name, t in load_file(piece).items()}, 'whole.safetensors')"
    return f"it is the index of weights in {len(pieces)} pieces ({listed}, ...); join them: {line}"


def in_folder(path: Path) -> str:
    """What to say of a folder that is neither a run nor a checkpoint: which file to name, if one is there."""
    endings = ("*.safetensors", "*.bin", "*.pth", "*.pt", "*.ckpt", "*.index.json")
    files = sorted(file for ending in endings for file in path.glob(ending))
    told = f"the folder '{path}' is neither a run nor a checkpoint"
    if any(path.glob("*.distcp")):
        join = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE"
        return f"{told}, but one of torch in pieces; `{join}` makes a file of it"
    index = [file for file in files if file.name.endswith(".index.json")]
    if index:
        return f"{told}; '{index[0].name}': {_json(index[0])}"
    return f"{told}; name the file in it, e.g. '{files[0]}'" if files else told


# ------------------------------------------------------------------------------------------------------- what was wrong
def _why(path: Path, error: Exception, part: str | None) -> str:
    """Why torch or safetensors could not read a file: what it names that would be run, or that it is damaged."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, OSError | MemoryError) and not isinstance(error, EOFError):
        return reason
    found = named_in(path)
    if found is not None and found.names:
        where = f" (in {', '.join(map(quoted, found.places[:3]))})" if found.places else ""
        names = ", ".join(found.names[:3]) + (f" and {len(found.names) - 3} more" if len(found.names) > 3 else "")
        return (
            f"it holds {names}{where}, which cannot be had without running code that the file names, and nothing of a "
            f"file is run here; make a file of its weights alone: {clean_line(path, found.access(part))}"
        )
    if "weights_only" in str(error) or "WeightsUnpickler" in str(error):
        told = re.search(r"WeightsUnpickler error: (.*)", str(error))
        return f"it is damaged, or no file of torch{': ' + told[1] if told else ''}"
    return f"it is damaged: {reason}" if found is None or isinstance(error, EOFError) else reason
