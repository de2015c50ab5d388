"""Nothing that lies among a user's data, weights and runs is unpickled, or run in another way.

Pickles that would make a folder lie wherever something is read; the first test shows that they would.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from test_timm_data import picture, write_folder, write_shards

from maskzoo import DataError, MaskZooError, RecipeError, Registry, checkpoint
from maskzoo.cli import main
from maskzoo.data.contents import cache_folder
from maskzoo.data.shards import Shards
from maskzoo.data.through_timm import ThroughTimm
from maskzoo.recipe import make
from maskzoo.weightfile import tables_of

ROOT = Path(__file__).parents[1]
REGISTRY = Registry()
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # of files that timm leaves to the collector
ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".npz", ".npy", ".pkl", ".pickle", ".tar", ".th", ".msgpack")
TINY = ["--set", "train.steps=2", "--set", "evaluation=[]", "--batch-size", "4", "--device", "cpu"]


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Where the planted pickles would make a folder; that none did is checked after each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "harm"
    assert not (tmp_path / "harm").exists(), "a planted pickle was run"


def zipped(harmful: Any, path: Path) -> None:
    torch.save(harmful, path)


def zipped_inside(harmful: Any, path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}, "args": harmful}, path)


def legacy(harmful: Any, path: Path) -> None:
    torch.save(harmful, path, _use_new_zipfile_serialization=False)


def plain(harmful: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(harmful))


def objects(harmful: Any, path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.array([harmful], dtype=object))


def one_object(harmful: Any, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([harmful], dtype=object), allow_pickle=True)


WAYS = (zipped, zipped_inside, legacy, plain, objects, one_object)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_each_planted_pickle_runs_where_it_is_opened_without_care(way: Callable[..., None], tmp_path: Path):
    path = tmp_path / "planted"
    way(Harmful(tmp_path / "harm"), path)
    with contextlib.suppress(Exception):
        if way is plain:
            pickle.loads(path.read_bytes())
        elif way in (objects, one_object):
            loaded = np.load(path, allow_pickle=True)
            _ = loaded["a"]
        else:
            torch.load(path, weights_only=False)
    assert (tmp_path / "harm").is_dir()


# ------------------------------------------------------------------------------------------------------ weights, states
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_weights_of_any_ending_are_read_without_running_anything(
    way: Callable[..., None], ending: str, harm: Path, tmp_path: Path
):
    path = tmp_path / f"weights{ending}"
    way(Harmful(harm), path)
    with pytest.raises(RecipeError, match=r"^recipe\.weights: .*cannot be read"):
        tables_of(path, "recipe.weights")


@pytest.mark.parametrize("ending", ENDINGS)
def test_weights_are_read_by_what_they_are_whatever_they_are_called(ending: str, tmp_path: Path):
    path = tmp_path / f"weights{ending}"
    save_file({"a": torch.zeros(1)}, path)
    assert set(tables_of(path, "recipe.weights")[0][""]) == {"a"}
    torch.save({"model": {"b": torch.zeros(1)}}, path)
    assert set(tables_of(path, "recipe.weights")[0]["model"]) == {"b"}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_checkpoints_are_read_without_running_anything(way: Callable[..., None], harm: Path, tmp_path: Path):
    path = tmp_path / "step-00000001.pt"
    way({"step": 1, "state": {}, "recipe": Harmful(harm)}, path)
    with pytest.raises(RecipeError, match="cannot be read"):
        checkpoint.read(path)
    folder = tmp_path / "step-00000002"
    (folder / "shards").mkdir(parents=True)
    shutil.copy(path, folder / checkpoint.REST)
    for content in (pickle.dumps(Harmful(harm)), path.read_bytes()):
        (folder / "shards" / ".metadata").write_bytes(content)
        with pytest.raises(RecipeError, match="cannot be read"):
            checkpoint.read(folder)


@pytest.mark.long
def test_a_foreign_run_full_of_pickles_runs_nothing(harm: Path, tmp_path: Path):
    words = ["train", *TINY, "--set", "train.checkpoint_steps=1", "--out", str(tmp_path / "run")]
    assert CliRunner().invoke(main, words).exit_code == 0
    for way in WAYS:
        run = tmp_path / way.__name__
        shutil.copytree(tmp_path / "run", run)
        last = max((run / "checkpoints").glob("*.pt"))
        way({**torch.load(last, weights_only=True), "more": Harmful(harm)}, last)
        for kept in [*(run / "masks").glob("*.npz")]:
            way(Harmful(harm), kept)
        for more in ("evaluation.json", "metrics.jsonl", "recipe.pkl", "checkpoints/step-00000009.pt"):
            way(Harmful(harm), run / more)
        for command in (
            ["train", "--out", str(run), "--resume"],
            ["evaluate", str(run), "--with", "knn:3"],
            ["export", str(run), str(tmp_path / f"{way.__name__} model")],
            ["compare", str(run), "--out", str(tmp_path / f"{way.__name__} report")],
            ["train", *TINY, "--weights", str(run), "--out", str(tmp_path / f"{way.__name__} next")],
            ["train", *TINY, "--weights", str(last), "--out", str(tmp_path / f"{way.__name__} last")],
        ):
            CliRunner().invoke(main, command)
            assert not harm.exists(), command


# ----------------------------------------------------------------------------------------------------------------- data
@pytest.fixture
def careless_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timm that unpickles whatever it finds, as 1.0.27 did, and takes each tar file for one that needs a cache."""
    from timm.data.readers import class_map, reader_image_in_tar

    monkeypatch.setattr(class_map, "_ClassMapUnpickler", pickle.Unpickler)
    monkeypatch.setattr(reader_image_in_tar, "_TarInfoUnpickler", pickle.Unpickler)
    size = os.path.getsize
    monkeypatch.setattr(os.path, "getsize", lambda path: size(path) + 2**40)


@pytest.mark.usefixtures("careless_timm")
@pytest.mark.parametrize("name", ["map.pkl", "map.PKL", "map", "map.pickle", "map.json"])
@pytest.mark.parametrize("source", ["", "hfds/x", "torch/folder"])
def test_a_class_map_that_is_a_pickle_is_refused(name: str, source: str, harm: Path, tmp_path: Path):
    write_folder(tmp_path / "data" / "train")
    plain(Harmful(harm), tmp_path / "data" / name)
    for path in (name, str(tmp_path / "data" / name)):
        use = {"use": "timm", "source": source, "root": str(tmp_path / "data"), "options": {"class_map": path}}
        with pytest.raises(RecipeError, match=r"^recipe\.data\.options: class_map: .*\.txt"):
            make(REGISTRY, "dataset", use, "recipe.data")


@pytest.mark.usefixtures("careless_timm")
def test_timm_s_pickles_beside_a_tar_are_neither_read_nor_written(harm: Path, tmp_path: Path):
    tar = tmp_path / "images.tar"
    with tarfile.open(tar, "w") as file:
        for number in range(4):
            member = tarfile.TarInfo(f"{'ab'[number % 2]}/{number}.png")
            content = picture(number)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    assert len(ThroughTimm(root=str(tar)).train) == 4
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["images.tar"]
    plain(Harmful(harm), tmp_path / "_images_tarinfos.pickle")
    assert len(ThroughTimm(root=str(tar)).train) == 4
    with pytest.raises(RecipeError, match="cache_tarinfo"):
        ThroughTimm(root=str(tar), options={"cache_tarinfo": True})


@pytest.mark.parametrize("way", [plain, objects, one_object], ids=lambda way: way.__name__)
def test_an_index_of_shards_that_holds_objects_is_made_anew(way: Callable[..., None], harm: Path, tmp_path: Path):
    write_shards(tmp_path / "data", shards=1)
    Shards(root=str(tmp_path / "data"))
    (kept,) = cache_folder().glob("*.npz")
    planted = tmp_path / "table.npy"
    way(Harmful(harm), planted)
    for whole in (True, False):
        if whole:
            kept.write_bytes(planted.read_bytes())
        else:
            with zipfile.ZipFile(kept, "w") as archive:
                archive.write(planted, "table.npy")
                archive.write(planted, "about.npy")
        assert len(Shards(root=str(tmp_path / "data")).train) == 6
        with np.load(kept, allow_pickle=False) as made:
            assert made["table"].shape == (6, 3)


@pytest.mark.parametrize(
    ("root", "split"),
    [
        ("pipe:mkdir {harm}; cat ", "train.tar"),
        ("PIPE:mkdir {harm}; cat ", "train.tar"),
        (None, "pipe:mkdir {harm}; cat x.tar"),
        ("", "pipe:mkdir {harm}; cat x.tar|100"),
        ("", "x.tar::pipe:mkdir {harm}; cat x.tar"),
        ("https://localhost/'; mkdir {harm}; '", "train.tar"),
        ("gs://x", "`mkdir {harm}`.tar"),
    ],
)
def test_no_program_is_run_for_shards_that_timm_reads(root: str | None, split: str, harm: Path):
    filled = None if root is None else root.format(harm=harm)
    use = {"use": "timm", "source": "wds/x", "root": filled, "train_split": split.format(harm=harm)}
    use = {key: value for key, value in use.items() if value is not None}
    with pytest.raises(RecipeError, match=r"^recipe\.data\.(root|train_split): (.*neither a file nor a URL|is empty)"):
        make(REGISTRY, "dataset", {**use, "train_images": 4, "labels": False}, "recipe.data")


def test_no_program_is_run_for_shards_that_a_list_beside_them_names(harm: Path, tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    command = f"pipe:mkdir {harm}"
    listed = {"name": "train", "filenames": [command], "num_samples": 4, "shard_lengths": [4]}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"train": listed}}))
    for root in ("", "."):
        with contextlib.suppress(MaskZooError):
            dataset = ThroughTimm(source="wds/x", root=root, labels=False, shares=1)
            list(dataset.train.read(0, 0))  # type: ignore[attr-defined]
        assert not harm.exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("source", ["hfds", "hfids"])
def test_a_program_among_images_that_hugging_face_reads_is_not_run(source: str, harm: Path, tmp_path: Path):
    pytest.importorskip("datasets")
    folder = tmp_path / "foreign"
    write_folder(folder / "train")
    (folder / "foreign.py").write_text(f"import os\nos.mkdir({str(harm)!r})\n")
    plain(Harmful(harm), folder / "train" / "more.pkl")
    with contextlib.suppress(RecipeError, DataError):
        ThroughTimm(source=f"{source}/{folder}", root=str(tmp_path / "c"), labels=False, train_images=12, shares=1)


# ------------------------------------------------------------------------------------------------------------- options
@pytest.mark.parametrize(
    "option",
    [
        *("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "cache_dir"),
        *("hf_hub_id", "file", "url", "state_dict", "custom_load", "weights_only", "pretrained", "num_classes"),
        *("pretrained_some_day", "device", "in_chans", "drop_path_rate"),
    ],
)
@pytest.mark.parametrize("timm", ["vit_tiny_patch16_224", "resnet18", "swin_tiny_patch4_window7_224", "hiera_tiny_224"])
def test_options_by_which_timm_reads_weights_are_refused(option: str, timm: str, harm: Path, tmp_path: Path):
    adapter = {"vit": "vit", "res": "cnn", "swi": "swin", "hie": "hiera"}[timm[:3]]
    plain(Harmful(harm), tmp_path / "weights.pth")
    for value in (str(tmp_path / "weights.pth"), {"file": str(tmp_path / "weights.pth")}):
        use = {"use": adapter, "timm": timm, "options": {option: value}}
        with pytest.raises(RecipeError, match=rf"^recipe\.backbone\.options: {option} cannot be given here; "):
            make(REGISTRY, "backbone", use, "recipe.backbone")


@pytest.mark.parametrize("place", ["local-dir:{folder}", "hf-hub:timm/resnet18.a1_in1k", "hf_hub:x/y"])
@pytest.mark.parametrize("adapter", ["vit", "cnn"])
def test_a_model_is_no_place(place: str, adapter: str, harm: Path, tmp_path: Path):
    plain(Harmful(harm), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"architecture": "resnet18", "pretrained_cfg": {}}')
    use = {"use": adapter, "timm": place.format(folder=tmp_path), "pretrained": True}
    with pytest.raises(RecipeError, match=r"^recipe\.backbone\.timm: .*is a place.*recipe\.weights"):
        make(REGISTRY, "backbone", use, "recipe.backbone")


@pytest.mark.parametrize("option", ["trust_remote_code", "cache_dir", "loader", "root", "name"])
def test_options_by_which_data_run_programs_are_refused(option: str, tmp_path: Path):
    use = {"use": "timm", "source": "hfds/x", "root": str(tmp_path), "options": {option: True}}
    with pytest.raises(RecipeError, match=rf"^recipe\.data\.options: .*{option}"):
        make(REGISTRY, "dataset", use, "recipe.data")


# -------------------------------------------------------------------------------------------------------------- source
ALLOWED = {
    ("maskzoo/data/cifar10.py", "pickle.loads"),  # of bytes whose checksum is the original's
    ("maskzoo/meanings.py", "eval"),  # of annotations in a module that has been imported
}


PICKLERS = ("pickle", "dill", "joblib", "cloudpickle", "marshal", "shelve", "yaml", "runpy")
RUNNERS = ("eval", "exec", "os.system", "os.popen", "pd.read_pickle", "torch.hub.load")
# What a keyword has to be in a call of these; where it is missing, the second says whether that is as good.
SAFE = {
    "torch.load": ("weights_only", True, False),
    "load_state_dict": ("weights_only", True, False),  # timm's
    "np.load": ("allow_pickle", False, True),
    "numpy.load": ("allow_pickle", False, True),
}


def careless(path: Path) -> list[str]:
    """The calls in a file that could unpickle, or run, what they read."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module in PICKLERS:
            found.append(f"from {node.module}")
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
        keyword, value, unless_given = SAFE.get(name, ("", None, True))
        unsafe = given[keyword] is not value if keyword in given else not unless_given
        if unsafe or name in RUNNERS or name.split(".")[0] in PICKLERS or given.get("shell") is True:
            found.append(name)
    return found


def test_no_module_reads_pickles():
    files = [*(ROOT / "maskzoo").rglob("*.py"), *(ROOT / "plugins").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    assert len(files) > 60
    found = {(path.relative_to(ROOT).as_posix(), call) for path in files for call in careless(path)}
    assert found == {*ALLOWED, ("maskzoo/checkpoint.py", "pickle.UnpicklingError")}


def test_the_check_of_sources_sees_what_it_is_for(tmp_path: Path):
    for line in (
        "pickle.load(f)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "torch.load(f, weights_only=x)",
        "np.load(f, allow_pickle=True)",
        "numpy.load(f, allow_pickle=x)",
        "load_state_dict(f)",
        "joblib.load(f)",
        "yaml.load(f)",
        "from pickle import load",
        "subprocess.run(c, shell=True)",
        "exec(c)",
    ):
        (tmp_path / "module.py").write_text(line)
        assert careless(tmp_path / "module.py"), line
    (tmp_path / "module.py").write_text(
        "torch.load(f, weights_only=True)\nnp.load(f)\njson.load(f)\nmodel.load_state_dict(s)"
    )
    assert not careless(tmp_path / "module.py")


def test_what_reads_a_sharded_checkpoint_s_table_may_name_plain_classes_only():
    for module, name in (
        ("os", "mkdir"),
        ("builtins", "eval"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("torch", "x.y"),
    ):
        with pytest.raises(pickle.UnpicklingError, match="no place in a checkpoint"):
            checkpoint._Plain(io.BytesIO()).find_class(module, name)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_what_submitit_left_in_a_comparison_is_not_unpickled(
    harm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    submitit = pytest.importorskip("submitit")
    opened: list[Path] = []
    monkeypatch.setattr(submitit.core.utils, "pickle_load", opened.append)
    write_folder(tmp_path / "data", each=6)
    for file in (tmp_path / "data").rglob("*.png"):
        file.write_bytes(file.read_bytes()[:41])  # its size can be read, its pixels cannot
    words = ["compare", "--maskers", "random", "--seeds", "1", *TINY, "--data", str(tmp_path / "data")]
    result = CliRunner().invoke(main, [*words, "--launcher", "submitit", "--out", str(tmp_path / "out")])
    assert result.exit_code == 2, result.output
    assert "can be read" in result.output
    assert not opened
