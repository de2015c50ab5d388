"""Shards by a URL: read as those of a folder are, a part at a time, and refused in one message where they cannot be."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_timm_data import number_of, write_shards

from maskzoo.data.batches import batches
from maskzoo.data.contents import cache_folder
from maskzoo.data.folder import SourceGoneError
from maskzoo.data.places import SCHEMES, harmless
from maskzoo.data.shards import Shards
from maskzoo.errors import DataError, RecipeError
from maskzoo.recipe import describe, make
from maskzoo.registry import Registry

fsspec = pytest.importorskip("fsspec")
pytestmark = [pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*multi-threaded.*fork")]
ROOT = "memory://bucket/animals"


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("maskzoo.data.places.PAUSE", 0.0)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Any]:
    """The memory file system, with two shards of six images below ROOT."""
    system = fsspec.filesystem("memory")
    for file in sorted(write_shards(tmp_path / "local", 2).iterdir()):
        system.pipe(f"/bucket/animals/{file.name}", file.read_bytes())
    yield system
    system.store.clear()


def numbers(dataset: Shards) -> list[tuple[int, int | None]]:
    samples = (dataset.train[place] for place in range(len(dataset.train)))
    return [(number_of(sample.image), sample.label) for sample in samples]


@pytest.mark.parametrize("split", ["train-*.tar", "train-{0000..0001}.tar"])
@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_a_url_gives_what_a_folder_gives(memory: Any, tmp_path: Path, scheme: str, split: str):
    root = ROOT if scheme == "memory" else f"file://{tmp_path}/local"
    there, here = (Shards(root=place, train_split=split) for place in (root, str(tmp_path / "local")))
    assert numbers(there) == numbers(here) == [(number, number % 3) for number in range(12)]
    assert (there.classes, there.size) == (here.classes, here.size)
    assert there.train.files == [f"{root}/train-{number:04d}.tar" for number in range(2)]
    assert describe(there)["root"] == root


def test_a_lookup_fetches_the_bytes_of_its_image_alone(memory: Any, monkeypatch: pytest.MonkeyPatch):
    first = Shards(root=ROOT)
    settled = {key: getattr(first, key) for key in ("channels", "kinds", "gaps", "mean", "std")}
    fetched, opened = [], []
    cat, open_ = type(memory).cat_file, type(memory)._open

    def opening(system: Any, path: str, *arguments: Any, **options: Any) -> Any:
        opened.append(path)
        return open_(system, path, *arguments, **options)

    def counted(system: Any, path: str, start: int | None = None, end: int | None = None, **rest: Any) -> bytes:
        fetched.append((start, end))
        content: bytes = cat(system, path, start=start, end=end, **rest)
        opened.clear()  # which is how this file system fetches them
        return content

    monkeypatch.setattr(type(memory), "_open", opening)
    monkeypatch.setattr(type(memory), "cat_file", counted)
    dataset = Shards(root=ROOT, size=8, **settled)
    assert fetched == opened == [], "what the shards hold was in the cache"
    assert number_of(dataset.train[7].image) == 7
    assert fetched == [(int(dataset.train.start[7]), int(dataset.train.start[7] + dataset.train.size[7]))]


def test_a_shard_that_changes_is_gone_through_again(memory: Any, tmp_path: Path):
    Shards(root=ROOT)
    write_shards(tmp_path / "other", 1, each=3, first=20)
    memory.pipe("/bucket/animals/train-0001.tar", (tmp_path / "other/train-0000.tar").read_bytes())
    assert [number for number, _ in numbers(Shards(root=ROOT))] == [*range(6), 20, 21, 22]


def test_a_place_that_tells_no_time_of_change_is_never_read_by_the_cache(memory: Any, monkeypatch: pytest.MonkeyPatch):
    info = type(memory).info
    monkeypatch.setattr(
        type(memory), "info", lambda fs, path, **k: {n: v for n, v in info(fs, path, **k).items() if n != "created"}
    )
    assert len(Shards(root=ROOT).train) == 12
    assert not cache_folder().exists()


def test_two_workers_read_by_a_url(memory: Any):
    options = {"size": (8, 8), "batch_size": 4, "seed": 0, "start": 0, "steps": 3}
    plain, shared = (
        [batch.index.tolist() for batch in batches(Shards(root=ROOT, size=8), **options, workers=workers)]
        for workers in (0, 2)
    )
    assert plain == shared
    assert sorted(index for batch in plain for index in batch) == list(range(12))


def test_splits_may_be_listed_by_a_file_beside_the_shards(memory: Any):
    memory.pipe("/bucket/animals/_info.json", b'{"splits": {"seen": {"filenames": ["train-0001.tar"]}}}')
    assert [number for number, _ in numbers(Shards(root=ROOT, train_split="seen"))] == list(range(6, 12))


@pytest.mark.parametrize(
    ("root", "words"),
    [
        ("pipe://cat x", "neither a folder nor a URL"),
        ("pipe:cat /etc/passwd", "does not exist"),
        ("git://x", "neither a folder nor a URL"),
        ("reference://x.json", "neither a folder nor a URL"),
        ("simplecache::memory://bucket/animals", "neither a folder nor a URL"),
        ("zip://a::file:///b.zip", "neither a folder nor a URL"),
        ("memory://bucket/nothing", "does not exist"),
        ("file:///nowhere/at/all", "does not exist"),
    ],
)
def test_what_is_no_place_of_shards_is_refused(memory: Any, root: str, words: str):
    with pytest.raises((DataError, RecipeError), match=words):
        Shards(root=root)


@pytest.mark.parametrize(
    "root",
    [
        "s3://AKIA:hunter2@bucket/x",
        "https://me:hunter2@host/x",
        "ftp://:hunter2@host/x",
        "https://host/x?X-Amz-Signature=hunter2",
        "pipe://me:hunter2@host/x?sig=hunter2",
    ],
)
def test_a_password_in_a_url_is_refused_and_not_repeated(root: str):
    with pytest.raises(RecipeError) as told:
        make(Registry(), "dataset", {"use": "shards", "root": root}, "recipe.data")
    assert str(told.value).startswith("recipe.data.root: ")
    assert "hunter2" not in str(told.value)


@pytest.mark.parametrize(("scheme", "package"), [(name, needed) for name, needed in SCHEMES.items() if needed][:6])
def test_a_missing_package_is_named(scheme: str, package: str, monkeypatch: pytest.MonkeyPatch):
    for module in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RecipeError, match=f"pip install {package}"):
        Shards(root=f"{scheme}://bucket/x")


def test_without_fsspec_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(RecipeError, match=r"pip install 'maskzoo\[data\]'"):
        Shards(root=ROOT)


def test_what_may_not_be_read_says_so_without_secrets(memory: Any, monkeypatch: pytest.MonkeyPatch):
    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError("403 for https://me:pw@host/x?sig=abc&AWSSecretKey=def")

    monkeypatch.setattr(type(memory), "info", refused)
    with pytest.raises(DataError, match="may not be read") as told:
        Shards(root=ROOT)
    assert not any(secret in str(told.value) for secret in ("pw", "abc", "def"))


def test_a_hiccup_of_the_network_is_nothing(memory: Any, monkeypatch: pytest.MonkeyPatch):
    dataset, cat, failures = Shards(root=ROOT), type(memory).cat_file, [0]

    def shaky(*arguments: Any, **options: Any) -> bytes:
        failures[0] += 1
        if failures[0] < 3:
            raise TimeoutError("slow")
        return cat(*arguments, **options)

    monkeypatch.setattr(type(memory), "cat_file", shaky)
    assert number_of(dataset.train[0].image) == 0


def test_a_network_that_is_gone_ends_a_run_instead_of_skipping_every_image(
    memory: Any, monkeypatch: pytest.MonkeyPatch
):
    dataset = Shards(root=ROOT)

    def gone(*_: Any, **__: Any) -> bytes:
        raise OSError("no route to host")

    monkeypatch.setattr(type(memory), "cat_file", gone)
    with pytest.raises(SourceGoneError, match=r"no route to host.*--resume"):
        dataset.train[0]


def test_a_shard_that_is_gone_or_cut_is_named(memory: Any):
    dataset = Shards(root=ROOT)
    memory.pipe("/bucket/animals/train-0001.tar", memory.cat("/bucket/animals/train-0001.tar")[:600])
    memory.rm("/bucket/animals/train-0000.tar")
    with pytest.raises(DataError, match=r"train-0000\.tar' is missing"):
        dataset.train[0]
    with pytest.raises(DataError, match=r"train-0001\.tar' is cut short"):
        dataset.train[11]
    with pytest.raises(DataError, match=r"train-0000\.tar' is missing"):
        Shards(root=ROOT, train_split="train-{0000..0001}.tar")


def test_words_of_libraries_lose_their_secrets():
    assert harmless("GET https://a:b@c/d?token=e&x=f") == "GET https://***@c/d?token=***&x=f"


def test_a_short_use_may_name_a_url(tmp_path: Path):
    write_shards(tmp_path / "local", 2)
    made = make(Registry(), "dataset", f"shards:file://{tmp_path}/local", "recipe.data")
    assert len(made.train) == 12
    assert torch.equal(made.train[3].image, Shards(root=str(tmp_path / "local")).train[3].image)
