"""Files that are no weights, or hold what would have to be run: each is refused with what is in it, and what to do."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import pickle
import sys
import tarfile
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from maskzoo import RecipeError
from maskzoo.inert import named_in
from maskzoo.weightfile import in_folder, tables_of

STATE = {"blocks.0.norm1.weight": torch.ones(4), "norm.weight": torch.ones(4)}


def refusal(path: Path, part: str | None = None) -> str:
    with pytest.raises(RecipeError) as caught:
        tables_of(path, "recipe.weights", part)
    told = str(caught.value)
    assert told.startswith(f"recipe.weights: '{path}' cannot be read as a file of weights: ")
    assert "\n" not in told
    return told


def zipped(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def tarred(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def saved() -> bytes:
    held = io.BytesIO()
    torch.save({"model": STATE}, held)
    return held.getvalue()


def safetensors() -> bytes:
    from safetensors.torch import save

    return save(STATE)


def arrays(path: Path, save: Any, *values: Any, **named: Any) -> None:
    with path.open("wb") as file:
        save(file, *values, **named)


def written(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


INDEX = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
FOREIGN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (written(b""), "it is empty (0 bytes)"),
    "git-lfs": (written(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"), "`git lfs pull`"),
    "login page": (written(b"\n<!DOCTYPE html>\n<html><title>Sign in</title>"), "it is a web page"),
    "error page": (written(b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>'), "it is a web page"),
    "long page": (written(b"<html>" + "é".encode() * 5000), "it is a web page"),
    "text": (written(b"404: Not Found"), "it is a text, which begins with '404: Not Found'"),
    "text of a drive": (written("Quota exceeded für heute".encode()), "it is a text, which begins with 'Quota"),
    "json": (written(b'{"error": "Entry not found"}'), "it is a JSON file"),
    "index": (written(json.dumps(INDEX).encode()), "weights in 2 pieces (model-00001-of-00002.safetensors, model-"),
    "gzip": (written(gzip.compress(saved())), "it is compressed (gzip); unpack it first"),
    "tar": (lambda path: tarred(path, {"a/model.pth": b"x"}), "it is a tar archive (of a/model.pth"),
    "torch's first": (lambda path: tarred(path, {"storages": b"x", "tensors": b"", "pickle": b""}), "first format"),
    "npz": (lambda path: arrays(path, np.savez, a=np.ones(2)), "it is a NumPy archive (.npz)"),
    "npy": (lambda path: arrays(path, np.save, np.ones(2)), "it is a single NumPy array"),
    "hdf5": (written(b"\x89HDF\r\n\x1a\n" + bytes(50)), "it is an HDF5 file"),
    "torchscript": (
        lambda path: zipped(path, {"m/constants.pkl": b"", "m/data.pkl": b"", "m/code/m.py": b""}),
        "it is a TorchScript archive",
    ),
    "other zip": (lambda path: zipped(path, {"photo.jpg": b"x"}), "torch.save has not written (of photo.jpg)"),
    "photo": (written(b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(99)), "it begins with the bytes ff d8 ff e0"),
    "damaged tar": (written(bytes(257) + b"ustar" + bytes(999)), "it begins with the bytes 00"),
    "zeros": (written(bytes(4096)), "it begins with the bytes 00 00"),
    "cut off": (written(saved()[:-60]), "it was cut off or is damaged"),
    "half": (written(saved()[: len(saved()) // 2]), "it was cut off or is damaged"),
    "safetensors cut off": (written(safetensors()[:20]), "it is a safetensors file that was cut off"),
    "safetensors half": (written(safetensors()[:-5]), "it is damaged"),
    "a tensor": (lambda path: torch.save(torch.ones(3, 2), path), "it holds a single tensor [3, 2]"),
    "a list": (lambda path: torch.save([torch.ones(1)], path), "it holds a list"),
    "no tensor": (lambda path: torch.save({"epoch": 3, "args": {}}, path), "no tensor in it; it holds 'epoch', 'args'"),
    "nothing": (lambda path: torch.save({}, path), "no tensor in it; it holds an empty table"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_file_of_weights_is_called_what_it_is(kind: str, tmp_path: Path):
    write, told = FOREIGN[kind]
    path = tmp_path / "weights.pth"
    write(path)
    assert told in refusal(path)


def test_a_byte_that_has_changed_is_seen(tmp_path: Path):
    content = bytearray(saved())
    content[content.index(b"norm1")] ^= 1
    (tmp_path / "weights.pth").write_bytes(content)
    assert "damaged" in refusal(tmp_path / "weights.pth")


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes here")
    os.mkfifo(tmp_path / "weights.pth")
    assert "it is not a regular file" in refusal(tmp_path / "weights.pth")


# ----------------------------------------------------------------------------------------------- what would have to run
class CfgNode(dict[str, Any]):
    """As configurations of several libraries are."""


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(2, 2)


def foreign_class(module: str, name: str, base: type = object) -> type:
    """A class of a module that is not installed here."""
    made = type(name, (base,), {"__module__": module})
    sys.modules[module] = types.ModuleType(module)
    setattr(sys.modules[module], name, made)
    return made


@pytest.fixture
def config() -> Any:
    made = foreign_class("yacs_like", "CfgNode", dict)
    yield made({"A": 1})
    sys.modules.pop("yacs_like")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "older format"])
@pytest.mark.parametrize(
    ("content", "names", "where", "line"),
    [
        ({"model": STATE, "best": np.float64(0.5)}, "multiarray.scalar", "(in 'best')", "['model']"),
        ({"model": STATE, "args": argparse.Namespace(out=PosixPath("x"))}, "pathlib", "(in 'args')", "['model']"),
        ({"student": STATE, "teacher": STATE, "c": CfgNode(a=1)}, "CfgNode", "(in 'c')", "['teacher']"),
        ({"weights": OrderedDict(STATE), "x": np.ones(2)}, "_reconstruct", "(in 'x')", "['weights']"),
        (Network(), "test_refused_files.Network", "which cannot be had", ".state_dict()"),
        ({"model": Network(), "epoch": 1}, "test_refused_files.Network", "(in 'model')", "['model'].state_dict()"),
    ],
    ids=["numpy number", "path in args", "configuration", "numpy array", "whole module", "module under a key"],
)
def test_what_torch_will_not_unpickle_is_named_with_the_line_that_makes_a_clean_file(
    content: Any, names: str, where: str, line: str, legacy: bool, tmp_path: Path
):
    path = tmp_path / "weights.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    told = refusal(path)
    assert all(words in told for words in (names, where, f"torch.load({str(path)!r}, weights_only=False){line}"))
    assert told.endswith("# runs code of the file: only if you trust it")


def test_the_line_makes_a_clean_file(tmp_path: Path):
    path = tmp_path / "weights.pth"
    torch.save({"model": STATE, "best": np.float64(0.5)}, path)
    line = refusal(path).split("weights alone: ")[1]
    exec(line, {"torch": torch})
    (clean,) = [file for file in tmp_path.iterdir() if file != path]
    assert set(tables_of(clean, "k")[0][""]) == set(STATE)


def test_the_line_takes_the_part_that_was_asked_for(tmp_path: Path):
    torch.save({"student": STATE, "teacher": STATE, "best": np.float64(1)}, tmp_path / "w.pth")
    assert "['student']" in refusal(tmp_path / "w.pth", "student.backbone")


def test_a_class_that_is_not_installed_is_named(config: Any, tmp_path: Path):
    torch.save({"model": STATE, "config": config}, tmp_path / "w.pth")
    sys.modules["yacs_like"] = None  # type: ignore[assignment]  # to import it fails
    assert "it holds yacs_like.CfgNode (in 'config')" in refusal(tmp_path / "w.pth")


def test_plain_options_of_argparse_are_read(tmp_path: Path):
    torch.save({"model": STATE, "args": argparse.Namespace(lr=1.0, name="x")}, tmp_path / "w.pth")
    assert set(tables_of(tmp_path / "w.pth", "k")[0]) == {"model"}


# ------------------------------------------------------------------------------------------------------ nothing is run
class Harmful:
    """Makes a folder when it is unpickled, in one of the ways that a pickle has."""

    def __init__(self, path: Path, way: str) -> None:
        self.path, self.way = str(path), way

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.way == "call":
            return os.mkdir, (self.path,)
        if self.way == "items":
            return OrderedDict, (), None, None, iter([(MakesFolder(self.path), 1)])
        return list, (), None, iter([MakesFolder(self.path)])


class MakesFolder:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("way", ["call", "items", "list"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_looking_into_a_file_runs_nothing_of_it(way: str, protocol: int, tmp_path: Path):
    path = tmp_path / "w.pth"
    planted = {"model": STATE, "x": Harmful(tmp_path / "harm", way)}
    torch.save(planted, path, pickle_protocol=protocol)
    looked = named_in(path)
    assert looked is not None
    assert f"{os.mkdir.__module__}.mkdir" in looked.names
    refusal(path)
    assert not (tmp_path / "harm").exists()
    torch.load(path, weights_only=False)  # what it would do
    assert (tmp_path / "harm").is_dir()


def test_a_plain_pickle_is_looked_into_and_not_run(tmp_path: Path):
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": 1, "x": MakesFolder(str(tmp_path / "harm"))}))
    assert f"{os.mkdir.__module__}.mkdir (in 'x')" in refusal(tmp_path / "w.pkl")
    assert not (tmp_path / "harm").exists()


# ------------------------------------------------------------------------------------------------------------- folders
def test_a_folder_with_a_file_of_weights_says_which_to_name(tmp_path: Path):
    save_file(STATE, tmp_path / "model.safetensors")
    assert in_folder(tmp_path).endswith(f"name the file in it, e.g. '{tmp_path / 'model.safetensors'}'")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(INDEX))
    assert "index of weights in 2 pieces" in in_folder(tmp_path)
