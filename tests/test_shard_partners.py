"""Images and labels of a shard find each other wherever they lie, and what is left over is counted and told."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from maskzoo.data.contents import cache_folder
from maskzoo.data.labels import counts_of, why_unmeasurable
from maskzoo.data.remarks import remarks_of
from maskzoo.data.shards import Shards
from maskzoo.errors import DataError


@pytest.fixture(autouse=True)
def a_cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def picture(number: int) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(held, "PNG")
    return held.getvalue()


def shard(root: Path, members: Iterable[tuple[str, bytes]], name: str = "train-0000.tar") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / name, "w") as tar:
        for path, content in members:
            member = tarfile.TarInfo(path)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return root


def images(*numbers: int, ending: str = "png") -> list[tuple[str, bytes]]:
    return [(f"part/{number:03}.{ending}", picture(number)) for number in numbers]


def labels(*numbers: int) -> list[tuple[str, bytes]]:
    return [(f"part/{number:03}.cls", str(number % 3).encode()) for number in numbers]


def seen(data: Any) -> dict[int, int | None]:
    samples = [data.train[index] for index in range(len(data.train))]
    return {int(one.image[0, 0, 0]): one.label for one in samples}


NEIGHBOURS = [one for pair in zip(images(*range(9)), labels(*range(9)), strict=True) for one in pair]
ORDERS = {
    "neighbours": NEIGHBOURS,
    "images first": images(*range(9)) + labels(*range(9)),
    "labels first": labels(*range(9)) + images(*range(9)),
    "labels backwards": images(*range(9)) + labels(*reversed(range(9))),
    "half and half": NEIGHBOURS[:8] + images(*range(4, 9)) + labels(*range(4, 9)),
}


@pytest.mark.parametrize("members", ORDERS.values(), ids=ORDERS)
def test_images_and_labels_find_each_other_in_any_order(members: list[tuple[str, bytes]], tmp_path: Path):
    data = Shards(root=str(shard(tmp_path / "data", members)))
    assert seen(data) == {number: number % 3 for number in range(9)}
    assert remarks_of(data) == []
    again = Shards(root=str(tmp_path / "data"))  # from what was kept
    assert seen(again) == seen(data)


def test_labels_without_an_image_and_images_without_a_label_are_counted(tmp_path: Path):
    members = images(0, 1, 2, 3, 20, 21) + labels(0, 1, 2, 3, 30, 31, 32)
    for _ in range(2):  # the second time from what was kept
        data = Shards(root=str(shard(tmp_path / "data", members)))
        assert seen(data) == {0: 0, 1: 1, 2: 2, 3: 0, 20: None, 21: None}
        told = " ".join(remarks_of(data))
        assert "3 members 'cls' have no image of their name" in told
        assert "part/030.cls" in told
        assert "2 of 6" in told


def test_labels_below_zero_are_none(tmp_path: Path):
    members = images(0, 1, 2) + [(f"part/{number:03}.cls", b"-1") for number in range(3)]
    data = Shards(root=str(shard(tmp_path / "data", members)))
    assert data.classes is None


def test_test_images_without_labels_are_not_measured_by_them(tmp_path: Path):
    shard(tmp_path / "data", NEIGHBOURS)
    shard(tmp_path / "data", images(*range(4)), "test-0000.tar")
    data = Shards(root=str(tmp_path / "data"), test_split="test-*.tar")
    assert data.classes == ["0", "1", "2"]
    counts = counts_of(data.test, 3)
    assert counts is None or counts.shown == 0
    assert "no labels" in why_unmeasurable(data)


def test_members_of_no_use_are_told_by_their_ending(tmp_path: Path):
    members = [*NEIGHBOURS, *((f"part/{number:03}.txt", b"a caption") for number in range(9)), ("part/._000.png", b"")]
    told = " ".join(remarks_of(Shards(root=str(shard(tmp_path / "data", members)))))
    assert "9 members 'txt'" in told
    assert "._" not in told


@pytest.mark.parametrize(("ending", "said"), [("tif", "9 members 'tif'"), ("v1.0001.png", "9 members 'v1.0001.png'")])
def test_a_shard_without_images_says_what_it_holds(ending: str, said: str, tmp_path: Path):
    root = shard(tmp_path / "data", images(*range(9), ending=ending))
    with pytest.raises(DataError, match=f"hold no images.*first dot.*{said}"):
        Shards(root=str(root))
    assert len(Shards(root=str(root), image_key=(f".{ending.upper()}",)).train) == 9


def test_what_an_earlier_format_kept_is_not_read(tmp_path: Path):
    root = shard(tmp_path / "data", NEIGHBOURS)
    Shards(root=str(root))
    (kept,) = cache_folder().glob("*.npz")
    kept.write_bytes(b"PK\x03\x04 and no more")
    assert len(Shards(root=str(root)).train) == 9


def test_a_label_that_is_no_number_is_refused_without_the_words_of_python(tmp_path: Path):
    root = shard(tmp_path / "data", [*images(0), ("part/000.cls", b"cat\n")])
    with pytest.raises(DataError, match=r"part/000\.cls.* holds .cat., and a label is a class's number") as refused:
        Shards(root=str(root))
    assert "ValueError" not in str(refused.value)


@pytest.mark.parametrize("content", [b"cat", b"", b"1.5", b"true"])
def test_what_is_no_number_is_refused_by_name(content: bytes, tmp_path: Path):
    root = shard(tmp_path / "data", [*images(0), ("part/000.cls", content)])
    with pytest.raises(DataError, match=r"part/000\.cls.*label_key"):
        Shards(root=str(root))
