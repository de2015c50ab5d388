"""What a run comes back from: kills, signals, damaged checkpoints, full disks, NaN, lost data."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import distributed_steps
import pytest
import tomli_w
import torch
from helpers import REGISTRY, random_batches, same_state, state_of, tiny_session
from programs import ENVIRONMENT, Starter, small_recipe, starter
from rich.console import Console
from test_run import last_state, metrics, write_images
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

import maskzoo.checkpoint
import maskzoo.run
from maskzoo import Recipe
from maskzoo.build import build
from maskzoo.diagnosis import first_bad
from maskzoo.errors import MaskZooError, RecipeError, StoppedError
from maskzoo.recipe import read
from maskzoo.train import Session, train

pytestmark = pytest.mark.slow

CLMAE = {"use": "clmae", "depth": 1}
NAN = float("nan")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    with starter(tmp_path_factory.mktemp("programs")) as made:
        yield made


def written(folder: Path, strategy: Any = "random", **train: Any) -> Path:
    """A recipe file of the smallest run."""
    path = folder / "recipe.toml"
    path.write_text(tomli_w.dumps(small_recipe(strategy, **train)))
    return path


def run(out: Path, strategy: Any = "random", *, resume: bool = False, **train: Any) -> str:
    """A run in this process; what it printed, also in `run.said` if it raised."""
    console = Console(file=io.StringIO(), width=10_000)
    try:
        maskzoo.run.run(Recipe.from_plain(small_recipe(strategy, **train)), REGISTRY, console, out, resume=resume)
    finally:
        run.said = console.file.getvalue()
    return run.said


def checkpoints(out: Path) -> list[Path]:
    return sorted((out / "checkpoints").iterdir())


def lines_of(out: Path) -> int:
    path = out / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a run."""
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def assert_same_run(there: Path, here: Path) -> None:
    """The same figures, and the same last state to the bit."""
    assert metrics(there) == metrics(here)
    assert same(last_state(there)["state"], last_state(here)["state"])


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


# ------------------------------------------------------------------------------------------------------------- killed
STEPS_OF_THE_KILLED = 500  # more than the fastest machine takes between twenty kills


@pytest.mark.long
@pytest.mark.parametrize("strategy", [CLMAE, "attmask"], ids=["clmae", "attmask"])
def test_a_run_killed_twenty_times_ends_as_if_it_had_not_been(strategy: Any, tmp_path: Path, programs: Starter):
    recipe = written(tmp_path, strategy, steps=STEPS_OF_THE_KILLED, checkpoint_steps=1)
    chance = random.Random(str(strategy))
    out, killed, in_writing = tmp_path / "killed", 0, 0
    for kill in range(20):
        process = programs.start("train", recipe, "--out", out, "--resume", "--set", f"train.workers={kill % 3}")
        before = lines_of(out)
        if kill % 2:  # while a checkpoint is being written
            process.until(lambda: list((out / "checkpoints").glob("*.part")))
        elif kill % 4:  # some while after the first step
            process.until(lambda: lines_of(out) > before)  # noqa: B023
            time.sleep(chance.uniform(0, 0.5))
        else:  # at any moment, also before there is anything
            time.sleep(chance.uniform(0, 1.5))
        process.signal(signal.SIGKILL)
        killed += process.wait().code == -signal.SIGKILL
        in_writing += bool(list((out / "checkpoints").glob("*.part")))
    programs.train(recipe, "--out", out, "--resume")
    programs.train(recipe, "--out", tmp_path / "whole", "--set", f"train.checkpoint_steps={STEPS_OF_THE_KILLED}")
    assert killed >= 15, "it was over before it could be killed"
    assert in_writing >= 1
    assert not list((out / "checkpoints").glob("*.part"))
    assert [line["step"] for line in metrics(out)] == list(range(STEPS_OF_THE_KILLED))
    assert_same_run(tmp_path / "whole", out)


# ------------------------------------------------------------------------------------------------------------ signals
@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "workers", "group"),
    [
        (signal.SIGTERM, 0, False),
        (signal.SIGINT, 0, False),
        (signal.SIGUSR1, 0, False),
        (signal.SIGINT, 2, True),
        (signal.SIGTERM, 2, True),
        (signal.SIGUSR1, 2, True),
    ],
)
def test_a_signal_ends_a_run_after_the_step_in_hand(
    number: int, workers: int, group: bool, tmp_path: Path, programs: Starter
):
    recipe = written(tmp_path, CLMAE, steps=60, checkpoint_steps=60)
    out = tmp_path / "stopped"
    process = programs.start("train", recipe, "--out", out, "--set", f"train.workers={workers}")
    process.until(lambda: lines_of(out) > 5)
    process.signal(number, group=group)
    assert process.wait().code == 75, process.words
    assert "Traceback" not in process.words
    done = len(metrics(out))
    assert process.words.splitlines()[-1] == (
        f"Stopped after step {done} of 60. Resume with: maskzoo train --out {out} --resume"
    )
    assert [path.name for path in checkpoints(out)] == [f"step-{done:08d}.pt"]
    programs.train(recipe, "--out", out, "--resume")
    programs.train(recipe, "--out", tmp_path / "whole")
    assert_same_run(tmp_path / "whole", out)


@pytest.mark.slow
def test_a_job_that_resumes_until_it_is_done_needs_to_know_nothing(tmp_path: Path, programs: Starter):
    recipe, out, codes = written(tmp_path, steps=60), tmp_path / "run", []
    while 0 not in codes:
        assert len(codes) < 20
        process = programs.start("train", recipe, "--out", out, "--resume")
        before = lines_of(out)
        process.until(lambda: lines_of(out) > before + 10)  # noqa: B023
        process.signal(signal.SIGTERM)
        codes.append(process.wait().code)
    assert set(codes[:-1]) == {75}
    before = contents(out)
    said = programs.train(recipe, "--out", out, "--resume").words
    assert "already finished at step 60 of 60" in said
    assert "left" not in said
    assert contents(out) == before
    programs.train(recipe, "--out", tmp_path / "whole")
    assert_same_run(tmp_path / "whole", out)


@pytest.mark.slow
def test_a_second_interrupt_ends_a_run_at_once_and_loses_no_checkpoint(tmp_path: Path, programs: Starter):
    recipe, out = written(tmp_path, steps=60, checkpoint_steps=3), tmp_path / "run"
    slow = """
import time, maskzoo.run as r
real = r.batches
def batches(*arguments, **options):
    for number, batch in enumerate(real(*arguments, **options)):
        if number == 10:
            time.sleep(60)
        yield batch
r.batches = batches
"""
    process = programs.start("train", recipe, "--out", out, before=slow)
    process.until(lambda: lines_of(out) == 10)
    process.signal(signal.SIGINT)
    time.sleep(0.5)
    assert not process.ended()
    process.signal(signal.SIGINT)
    assert process.wait(20).code == 75
    assert process.words.splitlines()[-2:] == [
        "Stopping after this step; once more to abort",
        f"Stopped at once; the checkpoint after step 9 of 60 is safe. Resume with: maskzoo train --out {out} --resume",
    ]
    programs.train(recipe, "--out", out, "--resume")
    programs.train(recipe, "--out", tmp_path / "whole")
    assert_same_run(tmp_path / "whole", out)


def together(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    """Start two processes under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *map(str, arguments)], env=ENVIRONMENT, **pipes, **options)


def process_of(rank: int, launcher: int) -> int:
    """The process of that rank among those that a launcher has started."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and f"\0RANK={rank}\0".encode() in (folder / "environ").read_bytes():
                return int(folder.name)
        except OSError:
            continue
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["process 1", "launcher"])
def test_a_signal_to_one_of_two_processes_stops_both(whom: str, tmp_path: Path, programs: Starter):
    recipe, out = written(tmp_path, CLMAE, steps=60, checkpoint_steps=60), tmp_path / "two"
    launcher = together("-m", "maskzoo", "train", recipe, "--out", out)
    deadline = time.monotonic() + 120
    while lines_of(out) < 5 and launcher.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert launcher.poll() is None, launcher.communicate()[1]
    os.kill(launcher.pid if whom == "launcher" else process_of(1, launcher.pid), signal.SIGTERM)
    _, errors = launcher.communicate(timeout=120)
    last = r"^Stopped after step \d+ of 60\. Resume with: torchrun \.\.\. -m maskzoo train --out \S+ --resume$"
    assert re.search(last, errors, re.MULTILINE), errors

    done = len(metrics(out))
    assert [path.name for path in checkpoints(out)] == [f"step-{done:08d}.pt"]
    assert done < 60

    programs.train(recipe, "--out", out, "--resume")  # a single process goes on
    programs.train(recipe, "--out", tmp_path / "one")
    for there, here in zip(metrics(tmp_path / "one"), metrics(out), strict=True):
        assert here == pytest.approx(there, rel=1e-3, abs=1e-5)


# -------------------------------------------------------------------------------------------------------- checkpoints
def flipped(path: Path) -> None:
    """Change one bit in the middle of a tensor."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def made_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def made_something_else(path: Path) -> None:
    torch.save([torch.zeros(3)], path)


def made_a_table_of_something_else(path: Path) -> None:
    torch.save({"model": torch.zeros(3)}, path)


def made_a_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


DAMAGES = [
    flipped,
    halved,
    emptied,
    made_a_folder,
    made_something_else,
    made_a_table_of_something_else,
    made_a_dangling_link,
]


@pytest.fixture(scope="module")
def nine_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of nine steps with a checkpoint every third."""
    out = tmp_path_factory.mktemp("nine") / "run"
    run(out, steps=9, checkpoint_steps=3)
    return out


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.sampled(1)
def test_a_damaged_newest_checkpoint_is_said_and_the_one_before_taken(
    damage: Callable[[Path], None], nine_steps: Path, tmp_path: Path
):
    out = tmp_path / "run"
    shutil.copytree(nine_steps, out)
    damage(out / "checkpoints" / "step-00000009.pt")
    said = run(out, steps=9, checkpoint_steps=3, resume=True)
    assert "step-00000009.pt' cannot be read: " in said
    assert "resumed at step 6 of 9" in said
    assert_same_run(nine_steps, out)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.sampled(3)
def test_damaged_checkpoints_alone_are_refused_and_left_alone(
    damage: Callable[[Path], None], nine_steps: Path, tmp_path: Path
):
    out = tmp_path / "run"
    shutil.copytree(nine_steps, out)
    for path in checkpoints(out):
        damage(path)
    before = contents(out)
    with pytest.raises(RecipeError, match="cannot be read"):
        run(out, steps=9, checkpoint_steps=3, resume=True)
    assert contents(out) == before


def test_damaged_checkpoints_do_not_crowd_out_good_ones(nine_steps: Path, tmp_path: Path):
    out = tmp_path / "run"
    shutil.copytree(nine_steps, out)
    emptied(out / "checkpoints" / "step-00000009.pt")
    run(out, steps=9, checkpoint_steps=1, resume=True)
    assert [path.name for path in checkpoints(out)] == ["step-00000008.pt", "step-00000009.pt"]
    assert_same_run(nine_steps, out)


def test_what_a_kill_left_half_written_is_cleared_away(nine_steps: Path, tmp_path: Path):
    out = tmp_path / "run"
    shutil.copytree(nine_steps, out)
    emptied(out / "checkpoints" / "step-00000009.pt")
    (out / "checkpoints" / "step-00000007.pt.part").write_bytes(b"half")
    (out / "checkpoints" / "step-00000008.part").mkdir()
    run(out, steps=9, checkpoint_steps=3, resume=True)
    assert [path.name for path in checkpoints(out)] == ["step-00000006.pt", "step-00000009.pt"]


def test_a_run_that_was_killed_before_it_had_a_recipe_begins(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").touch()
    (tmp_path / "run" / "recipe.toml.part").write_text("[tra")
    run(tmp_path / "run", steps=2, resume=True)
    assert len(metrics(tmp_path / "run")) == 2


@pytest.mark.slow
def test_metrics_that_end_in_anything_at_all_are_cut_to_the_checkpoint(nine_steps: Path, tmp_path: Path):
    for number, torn in enumerate((b'{"step": 9, "lo', b"\0" * 50, b"\xff\xfe\x00", b"[1]\n{}\n")):
        out = tmp_path / str(number)
        shutil.copytree(nine_steps, out)
        with (out / "metrics.jsonl").open("ab") as file:
            file.write(torn)
        emptied(out / "checkpoints" / "step-00000009.pt")
        run(out, steps=9, checkpoint_steps=3, resume=True)
        assert_same_run(nine_steps, out)


# ----------------------------------------------------------------------------------------------------------- tampered
class Harmful:
    """What somebody who means harm would put into a pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_tampered_checkpoint_runs_nothing(nine_steps: Path, tmp_path: Path):
    state = torch.load(nine_steps / "checkpoints" / "step-00000009.pt", weights_only=True)
    path = tmp_path / "step-00000009.pt"
    torch.save({**state, "more": Harmful(tmp_path / "harm")}, path)
    with pytest.raises(RecipeError, match="cannot be read"):
        maskzoo.checkpoint.read(path)
    path.write_bytes(pickle.dumps(Harmful(tmp_path / "harm")))
    with pytest.raises(RecipeError, match="cannot be read"):
        maskzoo.checkpoint.read(path)
    assert not (tmp_path / "harm").exists()


STEPS = Path(__file__).with_name("distributed_steps.py")
SHARDED = {"strategy": "attmask", "train": {"steps": 6, "batch_size": 8, "parallel": "fsdp2", "device": "cpu"}}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, float]]]:
    """A sharded checkpoint after 3 of 6 steps, and the figures of all 6 by two processes."""
    folder = tmp_path_factory.mktemp("sharded")
    cases = {"three": {**SHARDED, "do": 3, "folder": str(folder)}, "six": {**SHARDED, "do": 6}}
    begun = together(STEPS, json.dumps(cases))
    said, errors = begun.communicate(timeout=200)
    assert begun.returncode == 0, errors
    return folder / "step-00000003", json.loads(said.splitlines()[-1])["six"]


def steps_alone(capsys: pytest.CaptureFixture[str], **plain: Any) -> list[dict[str, float]]:
    """The steps of `distributed_steps.py` in this process."""
    distributed_steps.main(plain)
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_a_single_process_goes_on_from_a_sharded_checkpoint(
    sharded: tuple[Path, list[dict[str, float]]], capsys: pytest.CaptureFixture[str]
):
    path, expected = sharded
    figures = steps_alone(capsys, **SHARDED, do=3, resume=str(path))
    assert [line["step"] for line in figures] == [3, 4, 5]
    for there, here in zip(expected[3:], figures, strict=True):
        assert here == pytest.approx(there, rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_a_sharded_run_refuses_a_checkpoint_that_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    steps_alone(capsys, **SHARDED, do=3, folder=str(tmp_path))
    begun = together(STEPS, json.dumps({**SHARDED, "do": 3, "resume": str(tmp_path / "step-00000003.pt")}))
    _, errors = begun.communicate(timeout=200)
    assert begun.returncode != 0
    assert "is not of a sharded model; go on with recipe.train.parallel ddp" in errors


@pytest.mark.slow
def test_a_tampered_sharded_checkpoint_runs_nothing(sharded: tuple[Path, list[dict[str, float]]], tmp_path: Path):
    good = sharded[0]
    contents = maskzoo.checkpoint._Reader(good / "shards").read_metadata()
    harm = tmp_path / "harm"

    def smuggled() -> Any:
        table, places = dict(contents.state_dict_metadata), dict(contents.storage_data)
        index = next(iter(places))
        table[index.fqn] = BytesStorageMetadata()
        file = pickle.dumps(Harmful(harm))
        (tmp_path / "copy" / "shards" / "more").write_bytes(file)
        places[index] = _StorageInfo("more", 0, len(file))
        return attrs_like(contents, state_dict_metadata=table, storage_data=places)

    def attrs_like(whole: Any, **changes: Any) -> Any:
        made = type(whole)(**{**vars(whole), **changes})
        made.storage_meta = None
        return made

    for made in (
        lambda: Harmful(harm),
        lambda: attrs_like(contents, planner_data=Harmful(harm)),
        smuggled,
        lambda: {"not": "a table"},
    ):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(good, tmp_path / "copy")
        (tmp_path / "copy" / "shards" / ".metadata").write_bytes(pickle.dumps(made()))
        with pytest.raises(RecipeError, match="cannot be read"):
            maskzoo.checkpoint.read(tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy")
    shutil.copytree(good, tmp_path / "copy")
    state = torch.load(good / "rest.pt", weights_only=True)
    torch.save({**state, "more": Harmful(harm)}, tmp_path / "copy" / "rest.pt")
    with pytest.raises(RecipeError, match="cannot be read"):
        maskzoo.checkpoint.read(tmp_path / "copy")
    assert not harm.exists()


@pytest.mark.slow
def test_a_sharded_checkpoint_of_which_a_file_is_damaged_is_refused(
    sharded: tuple[Path, list[dict[str, float]]], tmp_path: Path
):
    for damage in (flipped, halved, emptied, Path.unlink):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(sharded[0], tmp_path / "copy")
        damage(sorted((tmp_path / "copy" / "shards").glob("*.distcp"))[0])
        with pytest.raises(RecipeError, match="cannot be read"):
            maskzoo.checkpoint.read(tmp_path / "copy")


# ---------------------------------------------------------------------------------------------------------- full disk
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("write failed")])
@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_leaves_the_ones_before(
    failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save = torch.save

    def full(state: Any, file: Any) -> None:
        save(state, file)
        if state["step"] == 6:
            file.truncate(1000)
            raise failure

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        MaskZooError, match=r"the checkpoint of step 6 cannot be written: .*step-00000003\.pt', is whole"
    ):
        run(tmp_path / "run", steps=9, checkpoint_steps=3)
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000003.pt"]
    monkeypatch.undo()
    assert "resumed at step 3" in run(tmp_path / "run", steps=9, checkpoint_steps=3, resume=True)
    run(tmp_path / "whole", steps=9, checkpoint_steps=3)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of a given size; only root may."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = []

    def mount(size: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        try:
            done = subprocess.run(command, capture_output=True).returncode == 0
        except OSError:
            done = False
        if not done:
            pytest.skip("no file system can be mounted here")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_said_and_leaves_the_last_checkpoint(
    tmp_path: Path, programs: Starter, small_disk: Callable[[str], Path]
):
    recipe = written(tmp_path, steps=40, checkpoint_steps=10)
    programs.train(recipe, "--out", tmp_path / "whole")
    size = checkpoints(tmp_path / "whole")[0].stat().st_size // 1024
    out = small_disk(f"{size * 5 // 2 + 40}k") / "run"
    done = programs.run("train", recipe, "--out", out)
    assert done.code == 2, done.words
    assert "Traceback" not in done.words
    assert "the checkpoint of step 30 cannot be written: the disk is full; the last one, " in done.words
    assert [path.name for path in checkpoints(out)] == ["step-00000010.pt", "step-00000020.pt"]
    subprocess.run(["mount", "-o", "remount,size=2m", str(out.parent)], check=True)
    assert "resumed at step 20" in programs.train(recipe, "--out", out, "--resume").words
    assert_same_run(tmp_path / "whole", out)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["4k", "8k", "24k"])
def test_a_disk_too_full_for_the_smallest_file_is_said(
    size: str, tmp_path: Path, programs: Starter, small_disk: Callable[[str], Path]
):
    out = small_disk(size) / "run"
    done = programs.run("train", written(tmp_path, steps=100), "--out", out)
    assert done.code == 2, done.words
    assert "Traceback" not in done.words
    assert "No space left on device" in done.words


@pytest.mark.slow
def test_metrics_that_cannot_be_written_are_said_and_the_run_can_be_resumed(tmp_path: Path, programs: Starter):
    recipe, out = written(tmp_path, steps=60, checkpoint_steps=2), tmp_path / "run"
    programs.train(recipe, "--out", tmp_path / "whole")
    programs.train(recipe, "--out", tmp_path / "first", "--set", "train.steps=60")
    limit = (tmp_path / "whole" / "metrics.jsonl").stat().st_size // 2
    few = f"""
import io, errno, maskzoo.folder as f, contextlib
real = f.RunFolder.metrics
@contextlib.contextmanager
def metrics(self):
    import resource
    with real(self) as file:
        yield Limited(file)
class Limited:
    def __init__(self, file): self.file = file
    def __getattr__(self, name): return getattr(self.file, name)
    def write(self, text):
        if self.file.path.exists() and self.file.path.stat().st_size + len(text) > {limit}:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(text)
f.RunFolder.metrics = metrics
"""
    done = programs.run("train", recipe, "--out", out, before=few)
    assert done.code == 2, done.words
    assert "Traceback" not in done.words
    assert f"'{out}' cannot be written to: [Errno 28] No space left on device; the last checkpoint, " in done.words
    programs.train(recipe, "--out", out, "--resume")
    assert_same_run(tmp_path / "whole", out)


@pytest.mark.slow
def test_a_limit_to_the_size_of_files_is_said(tmp_path: Path, programs: Starter):
    recipe, out = written(tmp_path, steps=9, checkpoint_steps=3), tmp_path / "run"
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, resource.RLIM_INFINITY))"
    done = programs.run("train", recipe, "--out", out, before=limited.format(100_000))  # the checkpoints are larger
    assert done.code == 2, done.words
    assert "Traceback" not in done.words
    assert "the checkpoint of step 3 cannot be written: " in done.words
    assert "File too large; there was none before" in done.words
    assert not checkpoints(out)
    long = ["--set", "train.steps=60", "--set", "train.checkpoint_steps=60"]
    done = programs.run("train", recipe, "--out", tmp_path / "other", *long, before=limited.format(6_000))
    assert done.code == 2, done.words
    assert "Traceback" not in done.words
    assert "File too large" in done.words
    programs.train(recipe, "--out", out, "--resume")


@pytest.mark.slow
def test_a_plugin_that_misses_a_file_is_not_taken_for_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def poison(session: Session) -> None:
        def hook(*_: Any) -> None:
            if session.step == 5:
                (tmp_path / "a file of the plugin").read_text()

        session.objective.register_forward_hook(hook)

    poisoned(monkeypatch, poison)
    with pytest.raises(FileNotFoundError):
        run(tmp_path / "run", steps=9, checkpoint_steps=3)
    monkeypatch.undo()
    assert "resumed at step 3" in run(tmp_path / "run", steps=9, checkpoint_steps=3, resume=True)


# --------------------------------------------------------------------------------------------------------- not finite
def poisoned(monkeypatch: pytest.MonkeyPatch, poison: Callable[[Session], None]) -> None:
    """Let every session that a run builds be poisoned."""

    def building(*arguments: Any, **options: Any) -> Session:
        session = build(*arguments, **options)
        poison(session)
        return session

    monkeypatch.setattr(maskzoo.run, "build", building)


def no_numbers(session: Session, when: Callable[[], bool], layer: str = "backbone.model.blocks.0.mlp") -> None:
    """Let a layer of the objective give NaN at times."""
    session.objective.get_submodule(layer).register_forward_hook(
        lambda module, inputs, output: output * NAN if when() else None
    )


def bad_gradient(session: Session, when: Callable[[], bool]) -> None:
    block = session.objective.backbone.model.blocks[0]
    block.mlp.register_full_backward_hook(
        lambda module, given, got: tuple(value * NAN for value in given) if when() else None
    )


def bad_loss(session: Session, when: Callable[[], bool]) -> None:
    """The loss is no number, though its gradient is one."""

    def hook(module: Any, inputs: Any, outcome: Any) -> Any:
        return attrs.evolve(outcome, loss=outcome.loss + torch.tensor(NAN)) if when() else None

    session.objective.register_forward_hook(hook)


@pytest.mark.parametrize("poison", [no_numbers, bad_gradient, bad_loss])
@pytest.mark.parametrize("strategy", ["random", "attmask", CLMAE], ids=["random", "attmask", "clmae"])
@pytest.mark.sampled(4)
def test_a_step_that_is_not_finite_moves_nothing(strategy: Any, poison: Any):
    session = tiny_session(strategy)
    poison(session, lambda: session.step == 2)
    loop = train(session, random_batches(4))
    next(loop), next(loop)
    before, masker = state_of(session.objective), state_of(session.strategy)
    figures = next(loop)
    assert figures["skipped"] == 1
    assert same_state(session.objective, before)
    assert same_state(session.strategy, masker)
    figures = next(loop)
    assert figures["skipped"] == 0
    assert all(math.isfinite(value) for value in figures.values())


def test_the_teacher_does_not_follow_a_step_that_is_not_finite():
    session = tiny_session("attmask")
    no_numbers(session, lambda: session.step == 2)
    loop = train(session, random_batches(4))
    next(loop), next(loop)
    before = state_of(session.teacher.module)
    next(loop)
    assert same_state(session.teacher.module, before)


def test_a_skipped_step_is_counted_and_said_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    poisoned(monkeypatch, lambda session: no_numbers(session, lambda: session.step in (3, 4, 7)))
    said = run(tmp_path / "run", CLMAE, steps=9)
    lines = metrics(tmp_path / "run")
    assert [line["skipped"] for line in lines] == [0, 0, 0, 1, 1, 0, 0, 1, 0]
    assert [line["loss"] is None for line in lines] == [bool(line["skipped"]) for line in lines]
    warnings = (tmp_path / "run" / "warnings.txt").read_text().splitlines()
    assert len(warnings) == 2
    assert warnings[0].startswith("step 3 was skipped: loss is nan, ")
    assert warnings[0].endswith("; nothing has moved")
    assert warnings[0] in said
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_a_run_that_leads_nowhere_goes_back_at_half_the_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = {"steps": 20, "checkpoint_steps": 4, "skip": 2}
    poisoned(monkeypatch, lambda s: no_numbers(s, lambda: s.step >= 10 and s.lr_factor > 0.3))
    said = run(tmp_path / "run", **settings)
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(20))
    assert not any(line["skipped"] for line in lines)
    warnings = (tmp_path / "run" / "warnings.txt").read_text().splitlines()
    backs = [line for line in warnings if "; back to step " in line]
    assert len(backs) == 2
    for line, factor in zip(backs, ("0.5", "0.25"), strict=True):
        assert line.startswith("steps 10 to 12 were not finite (loss is nan, grad_norm is nan")
        assert "the first that went bad is the output of 'objective.backbone.model.blocks.0.mlp' (Mlp)" in line
        assert line.endswith(f"; back to step 8, with {factor} times the learning rate")
        assert line in said
    monkeypatch.undo()
    run(tmp_path / "plain", **settings)
    rates = [line["lr"] for line in metrics(tmp_path / "plain")]
    assert [line["lr"] for line in lines] == rates[:8] + [pytest.approx(rate / 4) for rate in rates[8:]]
    assert last_state(tmp_path / "run")["lr_factor"] == 0.25


@pytest.mark.slow
def test_a_lowered_rate_outlives_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = {"steps": 20, "checkpoint_steps": 4, "skip": 2}

    def poison(session: Session) -> None:
        def when() -> bool:
            session.stop_asked = session.step == 14 and session.lr_factor < 1
            return session.step >= 10 and session.lr_factor == 1

        no_numbers(session, when)

    poisoned(monkeypatch, poison)
    with pytest.raises(StoppedError, match=r"^Stopped after step 15 of 20"):
        run(tmp_path / "run", **settings)
    run(tmp_path / "run", **settings, resume=True)
    assert last_state(tmp_path / "run")["lr_factor"] == 0.5
    assert len(metrics(tmp_path / "run")) == 20


@pytest.mark.parametrize("go_back", [0, 2])
@pytest.mark.slow
def test_a_run_that_leads_nowhere_again_and_again_stops(go_back: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    poisoned(monkeypatch, lambda session: no_numbers(session, lambda: session.step >= 10))
    sentence = (
        r"steps 10 to 12 were not finite \(.*\); the first that went bad is the output of "
        r"'objective\.backbone\.model\.blocks\.0\.mlp' \(Mlp\); the last good checkpoint is '.*step-00000008\.pt'"
    )
    with pytest.raises(MaskZooError, match=sentence):
        run(tmp_path / "run", steps=20, checkpoint_steps=4, skip=2, go_back=go_back)
    assert len([path for path in checkpoints(tmp_path / "run") if path.suffix == ".pt"]) == 2


def test_without_a_checkpoint_there_is_nowhere_to_go_back_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    poisoned(monkeypatch, lambda session: no_numbers(session, lambda: True))
    with pytest.raises(MaskZooError, match=r"steps 0 to 2 were not finite .*there is no checkpoint yet"):
        run(tmp_path / "run", steps=20, skip=2)


@pytest.mark.slow
def test_a_run_goes_back_past_a_damaged_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "run"

    def poison(session: Session) -> None:
        def when() -> bool:
            if session.step == 10 and session.lr_factor == 1:
                flipped(out / "checkpoints" / "step-00000008.pt")
            return session.step >= 10 and session.lr_factor == 1

        no_numbers(session, when)

    poisoned(monkeypatch, poison)
    said = run(out, steps=20, checkpoint_steps=4, skip=1)
    assert "; back to step 4, with 0.5 times the learning rate" in said
    assert [line["step"] for line in metrics(out)] == list(range(20))


BLOCK = "objective.backbone.model.blocks.1"


def poison_output(session: Session) -> None:
    no_numbers(session, lambda: True, "backbone.model.blocks.1.attn.proj")


def poison_weight(session: Session) -> None:
    with torch.no_grad():
        session.objective.backbone.model.blocks[1].attn.proj.weight[0, 0] = math.inf


def poison_gradient(session: Session) -> None:
    weight = session.objective.backbone.model.blocks[1].attn.proj.weight
    weight.register_hook(lambda gradient: gradient * NAN)


def poison_backward(session: Session) -> None:
    session.objective.backbone.model.blocks[1].attn.proj.register_full_backward_hook(
        lambda module, given, got: tuple(value * NAN for value in given)
    )


def poison_images(session: Session) -> None:
    """The batch is poisoned instead."""


def poison_loss(session: Session) -> None:
    bad_loss(session, lambda: True)


def poison_masker(session: Session) -> None:
    session.strategy.blocks[0].mlp.fc1.register_forward_hook(lambda module, inputs, output: output * NAN)


def poison_masker_weight(session: Session) -> None:
    with torch.no_grad():
        session.strategy.blocks[0].mlp.fc1.weight[0, 0] = NAN


@pytest.mark.parametrize(
    ("poison", "culprit"),
    [
        (poison_output, f"the output of '{BLOCK}.attn.proj' (Linear)"),
        (poison_weight, f"the weights '{BLOCK}.attn.proj.weight'"),
        (poison_gradient, f"the gradient of '{BLOCK}.attn.proj.weight'"),
        (poison_backward, f"the gradient of '{BLOCK}.attn.qkv.bias'"),
        (poison_images, "the images at [0, 1, 2, 3, 4, 5] of the data set"),
        (poison_loss, "the loss, though all outputs are finite"),
        (poison_masker, "the output of 'clmae.blocks.0.mlp.fc1' (Linear)"),
        (poison_masker_weight, "the weights 'clmae.blocks.0.mlp.fc1.weight'"),
    ],
)
@pytest.mark.sampled(3)
def test_the_first_thing_that_went_bad_is_named(poison: Callable[[Session], None], culprit: str):
    session = tiny_session(CLMAE)
    poison(session)
    (batch,) = random_batches(1)
    if poison is poison_images:
        batch.images[2, 0, 5, 5] = NAN
    (figures,) = train(session, [batch])
    assert figures["skipped"] == 1
    before = state_of(session.objective)
    said = first_bad(session, [batch])
    assert said.startswith(culprit) if "gradient" in culprit else said == culprit
    assert session.step == 1
    assert same_state(session.objective, before) or poison is poison_weight  # a NaN equals nothing
    assert all(parameter.grad is None for parameter in session.objective.parameters())


@pytest.mark.slow
def test_a_scale_that_overflows_at_first_finds_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("maskzoo.build.FIRST_SCALE", 2.0**30)
    run(tmp_path / "run", CLMAE, steps=30, precision="fp16", skip=25)
    skipped = [line["skipped"] for line in metrics(tmp_path / "run")]
    assert skipped[0] == 1
    assert skipped[-5:] == [0] * 5
    assert last_state(tmp_path / "run")["state"]["optimizer"]["scaler"]["scale"] < 2.0**30
    assert not any("back to step" in line for line in (tmp_path / "run" / "warnings.txt").read_text().splitlines())


# --------------------------------------------------------------------------------------------------------------- lock
@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_two_runs_cannot_write_into_one_folder(workers: int, tmp_path: Path, programs: Starter):
    recipe, out = written(tmp_path, steps=4000, checkpoint_steps=3, workers=workers), tmp_path / "run"
    first = programs.start("train", recipe, "--out", out)
    first.until(lambda: lines_of(out) > 10)
    second = programs.run("train", recipe, "--out", out, "--resume")
    assert second.code == 2
    assert f"is being written to by another run (process {first.process} on " in second.words
    assert "Traceback" not in second.words
    assert not first.ended()
    first.signal(signal.SIGKILL)
    first.wait()
    third = programs.start("train", recipe, "--out", out, "--resume")  # at once
    assert third.until(lambda: "resumed at step" in third.words), third.words
    third.signal(signal.SIGTERM)
    assert third.wait().code == 75, third.words


# ------------------------------------------------------------------------------------------- plugins, workers and data
RAISING = """
import attrs, maskzoo, maskzoo.registry as registry
from importlib.metadata import EntryPoint
@maskzoo.define
class Clumsy(maskzoo.Strategy):
    name = "clumsy"
    def scores(self, context):
        if context.step == {step}:
            raise {error}
        return context.noise()
import sys, types
module = types.ModuleType("clumsy_plugin")
module.maskzoo_strategies = maskzoo.hookimpl(lambda: [Clumsy], specname="maskzoo_strategies")
sys.modules["clumsy_plugin"] = module
points = registry.entry_points
registry.entry_points = lambda group: [*points(group=group), EntryPoint("clumsy", "clumsy_plugin", "maskzoo")]
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "code", "reached"),
    [
        ("ZeroDivisionError('a slip of the plugin')", 1, 8),
        ("OSError(28, 'a slip of the plugin')", 2, 8),
        ("maskzoo.ContractError('a slip of the plugin')", 2, 10),  # kept, since it is known that no step is in hand
    ],
)
def test_a_plugin_that_raises_loses_no_checkpoint(
    error: str, code: int, reached: int, tmp_path: Path, programs: Starter
):
    recipe, out = written(tmp_path, "clumsy", steps=20, checkpoint_steps=4), tmp_path / "run"
    done = programs.run("train", recipe, "--out", out, before=RAISING.format(step=10, error=error))
    assert done.code == code, done.words
    assert "a slip of the plugin" in done.words
    assert ("Traceback" in done.words) == (code == 1)
    assert "cannot be written to" not in done.words
    assert "Clumsy" in done.words or "in scores" in done.words or code == 2
    mended = RAISING.format(step=-1, error=error)
    again = programs.train(recipe, "--out", out, "--resume", before=mended)
    assert f"resumed at step {reached}" in again.words
    programs.train(recipe, "--out", tmp_path / "whole", before=mended)
    assert_same_run(tmp_path / "whole", out)


def children_of(process: int) -> list[int]:
    done = subprocess.run(["ps", "--no-headers", "-o", "pid", "--ppid", str(process)], capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.slow
def test_a_worker_killed_by_the_system_is_said_and_the_run_can_be_resumed(tmp_path: Path, programs: Starter):
    recipe, out = written(tmp_path, CLMAE, steps=60, checkpoint_steps=25, workers=2), tmp_path / "run"
    for resume in range(4):
        process = programs.start("train", recipe, "--out", out, *["--resume"][:resume])
        before = lines_of(out)
        process.until(lambda: lines_of(out) > before + 2 + resume)  # noqa: B023
        os.kill(children_of(process.process)[resume % 2], signal.SIGKILL)
        assert process.wait().code == 2, process.words
        # Before it there may be what the other worker, and torch's objects, cried out while they were ended.
        assert process.words.splitlines()[-1].startswith("Error: a worker process of the data loader has died")
    programs.train(recipe, "--out", out, "--resume")
    programs.train(recipe, "--out", tmp_path / "whole")
    assert_same_run(tmp_path / "whole", out)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_data_that_vanish_in_mid_run_are_said_and_the_run_can_be_resumed(
    workers: int, tmp_path: Path, programs: Starter
):
    images, out = tmp_path / "images", tmp_path / "run"
    write_images(images, classes=2, images=20)
    plain = {
        **small_recipe(steps=200, checkpoint_steps=150, workers=workers),
        "data": {"use": "folder", "root": str(images), "size": 32},
    }
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(tomli_w.dumps(plain))
    process = programs.start("train", recipe, "--out", out)
    process.until(lambda: lines_of(out) > 5)
    images.rename(tmp_path / "elsewhere")
    assert process.wait().code == 2, process.words
    assert "Traceback" not in process.words
    assert str(images) in process.words
    done = len(metrics(out))
    assert [path.name for path in checkpoints(out)] == [f"step-{done:08d}.pt"]  # nothing is lost
    again = programs.run("train", recipe, "--out", out, "--resume")
    assert again.code == 2
    assert "Traceback" not in again.words
    (tmp_path / "elsewhere").rename(images)
    programs.train(recipe, "--out", out, "--resume")
    programs.train(recipe, "--out", tmp_path / "whole")
    assert_same_run(tmp_path / "whole", out)


@pytest.mark.slow
def test_images_that_break_in_mid_run_are_said_and_too_many_end_it(tmp_path: Path, programs: Starter):
    images, out = tmp_path / "images", tmp_path / "run"
    write_images(images, classes=2, images=20)
    plain = {**small_recipe(steps=300, checkpoint_steps=50), "data": {"use": "folder", "root": str(images), "size": 32}}
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(tomli_w.dumps(plain))
    process = programs.start("train", recipe, "--out", out)
    process.until(lambda: lines_of(out) > 5)
    whole = {path: path.read_bytes() for path in images.rglob("*.png")}
    first, *others = whole
    first.write_bytes(b"nothing to see")
    skipped = out / "skipped.txt"
    process.until(lambda: skipped.exists() and skipped.read_text().endswith("\n"))  # written, and not only begun
    assert str(first) in skipped.read_text()
    for path in others:
        path.write_bytes(b"nothing to see")
    assert process.wait().code == 2, process.words
    assert "recipe.train.max_broken" in process.words
    assert "Traceback" not in process.words
    for path, content in whole.items():
        path.write_bytes(content)
    assert "resumed at step" in programs.train(recipe, "--out", out, "--resume").words
    assert len(metrics(out)) == 300


# ------------------------------------------------------------------------------------------------------------- alarms
@pytest.mark.slow
def test_a_masker_that_collapses_is_said_while_it_runs(tmp_path: Path, programs: Starter):
    plain = small_recipe({**CLMAE, "diversity_weight": 0.0}, steps=120, batch_size=16)
    plain["masking"]["optimizer"] = {"lr": 0.003}
    recipe, out = tmp_path / "recipe.toml", tmp_path / "run"
    recipe.write_text(tomli_w.dumps(plain))
    done = programs.train(recipe, "--out", out)
    (warning,) = (out / "warnings.txt").read_text().splitlines()
    assert warning.startswith("mask/spread is 0.0")
    assert "all images get nearly the same mask" in warning
    assert warning in " ".join(done.words.split())


# ------------------------------------------------------------------------------------------------- for ever after
def test_a_checkpoint_of_format_1_is_read_for_ever_after(tmp_path: Path):
    """A run goes on from an old checkpoint with the figures of its time.

    Made by `maskzoo train tests/data/checkpoint-format-1/recipe.toml --out run`, of which the folder holds the
    checkpoint of step 4, the recipe, and the lines from step 4 on of metrics.jsonl without their times.
    """
    kept = Path(__file__).parent / "data" / "checkpoint-format-1"
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    shutil.copy(kept / "recipe.toml", out)
    shutil.copy(kept / "step-00000004.pt", out / "checkpoints")
    state = maskzoo.checkpoint.read(kept / "step-00000004.pt")
    assert state["format"] == 1
    assert set(state["state"]) == {"strategy", "strategy_optimizer", "objective", "optimizer", "teacher"}
    console = Console(file=io.StringIO(), width=10_000)
    recipe = Recipe.from_plain(read(out / "recipe.toml"))
    maskzoo.run.run(recipe, REGISTRY, console, out, resume=True)
    assert "resumed at step 4 of 8" in console.file.getvalue()
    expected = json.loads((kept / "figures.json").read_text())
    for there, here in zip(expected, metrics(out), strict=True):
        # A figure may be added, but none may be lost or changed.
        assert {name: here[name] for name in there} == pytest.approx(there, rel=1e-4, abs=1e-6)


def test_a_checkpoint_of_a_newer_format_is_refused(nine_steps: Path, tmp_path: Path):
    out = tmp_path / "run"
    shutil.copytree(nine_steps, out)
    newest = out / "checkpoints" / "step-00000009.pt"
    state = torch.load(newest, weights_only=True)
    torch.save({**state, "format": state["format"] + 1}, newest)
    with pytest.raises(RecipeError, match="is of a newer MaskZoo"):
        run(out, steps=9, checkpoint_steps=3, resume=True)
