"""Whole runs through the program: what they leave behind, and what a killed one comes back to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import measured_by
from PIL import Image

from maskzoo.compare.report import PUBLISHED

TINY = [
    *("--set", "backbone.options.embed_dim=24", "--set", "backbone.options.depth=2"),
    *(
        "--set",
        "backbone.options.num_heads=2",
        "--set",
        "objective.decoder_dim=16",
        "--set",
        "objective.decoder_depth=1",
    ),
    *("--batch-size", "16", "--device", "cpu"),
]
QUICK = [*TINY, "--set", "evaluation=[]", "--set", "train.pictures=0"]


def maskzoo(*arguments: str | Path, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "maskzoo", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, **options)


def train(*arguments: str | Path, **options) -> subprocess.CompletedProcess[str]:
    done = maskzoo("train", *arguments, **options)
    assert done.returncode == 0, done.stderr
    return done


def metrics(out: Path) -> list[dict[str, float]]:
    """The lines of a run without what it took."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    took = ("images_per_second", "memory_bytes")
    return [{key: value for key, value in line.items() if not key.endswith(took)} for line in lines]


def last_state(out: Path) -> dict:
    return torch.load(sorted((out / "checkpoints").glob("*.pt"))[-1], weights_only=True)


def kill_when(out: Path, lines: int, *arguments: str | Path) -> None:
    """Start a run and SIGKILL it as soon as it has written that many steps."""
    command = [sys.executable, "-m", "maskzoo", "train", *map(str, arguments), "--out", str(out)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").read_text().count("\n") >= lines:
            break
        time.sleep(0.005)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("masker", ["clmae", "attmask"])
def test_a_killed_run_comes_back_as_if_it_had_not_been(masker: str, tmp_path: Path):
    steps = ["--set", "train.steps=60", "--set", "train.checkpoint_steps=7"]
    arguments = ["--masker", masker, "--schedule", "partner-neutral-adversary", *steps, *QUICK]
    train(*arguments, "--out", tmp_path / "whole")
    for lines in (10, 30):  # killed twice
        resume = ["--resume"] if lines > 10 else []
        kill_when(tmp_path / "killed", lines, *arguments, *resume)
    done = train(*arguments, "--out", tmp_path / "killed", "--resume")
    assert "resumed at step" in done.stdout
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    assert [line["step"] for line in metrics(tmp_path / "whole")] == list(range(60))
    whole, killed = last_state(tmp_path / "whole"), last_state(tmp_path / "killed")
    assert whole["step"] == killed["step"] == 60
    for part in ("objective", "strategy"):
        for name, value in whole["state"][part].items():
            assert torch.equal(value, killed["state"][part][name]), name


@pytest.mark.slow
def test_resuming_a_run_that_has_no_checkpoint_yet_begins_it_anew(tmp_path: Path):
    arguments = ["--set", "train.steps=30", "--set", "train.checkpoint_steps=30", *QUICK]
    kill_when(tmp_path / "killed", 5, *arguments)
    assert not list((tmp_path / "killed").glob("checkpoints/*"))
    train(*arguments, "--out", tmp_path / "killed", "--resume")
    train(*arguments, "--out", tmp_path / "whole", "--resume")  # and where there is not even a folder
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_leaves_everything_that_explains_it(tmp_path: Path):
    out = tmp_path / "run"
    arguments = ["--masker", "clmae", "--set", "train.steps=9", "--set", "train.pictures=3", *TINY]
    done = train(*arguments, "--out", out)
    assert "before" in done.stdout
    assert "factor -1.00" in done.stdout
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    pictures = {f"masks/step-{step:08d}.{kind}" for step in (0, 4, 8) for kind in ("png", "npz")}
    assert names == pictures | {
        "recipe.toml",
        "environment.json",
        "metrics.jsonl",
        "evaluation.json",
        "masks/curriculum.png",
        "lock",
        "checkpoints/step-00000009.pt",
    }
    figures = metrics(out)
    assert [line["factor"] for line in figures][:: len(figures) - 1] == [1.0, -1.0]
    assert {"loss", "epoch", "lr", "ratio", "clmae/kl", "clmae/reconstruction"} <= figures[0].keys()
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["measured"] == ["before", "after"]
    assert 0 <= measured_by(out, "after")["knn/top1"] <= 1
    environment = json.loads((out / "environment.json").read_text())
    assert environment["versions"]["torch"]
    assert any(plugin.startswith("maskzoo ") for plugin in environment["plugins"])
    assert environment["images"] == {"train": 1437, "test": 360}
    own = {"command", "process", "host", "checkpointed", "class_names", "remarks"}  # a report keeps these to itself
    assert environment.keys() <= PUBLISHED | own
    assert (environment["steps"], environment["classes"], environment["curriculum"]) == (9, 10, True)
    assert {"clmae", "reconstruct", "digits", "knn"} <= {entry["name"] for entry in environment["used"]}
    with Image.open(out / "masks" / "curriculum.png") as picture:
        assert picture.width > 500
    with np.load(out / "masks" / "step-00000004.npz") as kept:
        assert kept["seen"].shape == (8, 3, 32, 32)
        assert float(kept["factor"]) == 0.0

    # The resolved recipe alone makes the same run again.
    train(out / "recipe.toml", "--out", tmp_path / "again")
    assert metrics(tmp_path / "again") == figures

    # A finished run resumes to nothing; another recipe, or no --resume, is refused and changes nothing.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")} | {out: (out / "metrics.jsonl").read_text()}
    train("--resume", "--out", out)
    for refused, sentence in (
        ([*arguments, "--out", out], "holds something already"),
        ([*arguments, "--out", out, "--resume", "--seed", "7"], "recipe.train.seed is 0 there and 7 here"),
    ):
        done = maskzoo("train", *refused)
        assert done.returncode == 2
        assert sentence in done.stderr
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")} | {out: (out / "metrics.jsonl").read_text()}
    assert after == before


def write_images(folder: Path, classes: int = 2, images: int = 15) -> None:
    generator = np.random.default_rng(0)
    for number in range(classes):
        (folder / f"class-{number}").mkdir(parents=True)
        for image in range(images):
            pixels = generator.integers(0, 256, (36, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class-{number}" / f"{image}.png")


@pytest.mark.slow
def test_a_broken_image_is_skipped_named_and_counted(tmp_path: Path):
    write_images(tmp_path / "images")
    for number in range(2):
        (tmp_path / "images" / "class-1" / f"broken-{number}.jpg").write_bytes(b"\xff\xd8 no more of it")
    arguments = ["--data", tmp_path / "images", "--set", "train.steps=6", "--set", "data.size=32", *QUICK]
    done = train(*arguments, "--batch-size", "8", "--out", tmp_path / "run")
    assert "broken-0.jpg" in done.stdout
    assert len((tmp_path / "run" / "skipped.txt").read_text().splitlines()) == 2
    refused = [*arguments, "--batch-size", "8", "--set", "train.max_broken=0.01", "--out", tmp_path / "other"]
    done = maskzoo("train", *refused)
    assert done.returncode == 2
    assert "recipe.train.max_broken" in done.stderr
    assert "broken-" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path: Path):
    arguments = ["--set", "train.steps=9", "--set", "train.checkpoint_steps=3", *QUICK]
    train(*arguments, "--out", tmp_path / "whole")
    train(*arguments, "--out", tmp_path / "run")
    newest = sorted((tmp_path / "run" / "checkpoints").glob("*.pt"))[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    done = train(*arguments, "--out", tmp_path / "run", "--resume")
    assert "cannot be read" in done.stdout
    assert "resumed at step 6 of 9" in done.stdout
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


@pytest.mark.slow
def test_data_that_have_changed_since_are_refused(tmp_path: Path):
    write_images(tmp_path / "images")
    arguments = ["--data", tmp_path / "images", "--set", "train.steps=4", "--set", "data.size=32", *QUICK]
    arguments += ["--batch-size", "8", "--out", tmp_path / "run"]
    train(*arguments)
    (tmp_path / "images" / "class-0" / "0.png").unlink()
    done = maskzoo("train", *arguments, "--resume")
    assert done.returncode == 2
    assert "the data have changed" in done.stderr


@pytest.mark.slow
def test_a_flat_folder_without_labels_trains_and_says_that_it_cannot_be_evaluated(tmp_path: Path):
    write_images(tmp_path / "images", classes=1, images=20)
    done = train(
        "--data", tmp_path / "images" / "class-0", "--set", "data.size=32", *TINY, "--epochs", "1", cwd=tmp_path
    )
    assert "not evaluated: there are no labels" in done.stdout
    assert (tmp_path / "runs" / "random-folder-s0" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_a_checkpoint_that_is_damaged_or_tampered_with_is_refused(tmp_path: Path):
    arguments = ["--set", "train.steps=2", *QUICK, "--out", tmp_path / "run"]
    train(*arguments)
    (newest,) = (tmp_path / "run" / "checkpoints").glob("*.pt")
    good = newest.read_bytes()
    for bad in (good[: len(good) // 2], b"", b"cos\nsystem\n(S'true'\ntR."):
        newest.write_bytes(bad)
        done = maskzoo("train", *arguments, "--resume")
        assert done.returncode == 2, done.stdout
        assert "cannot be read" in done.stderr
        assert "Traceback" not in done.stderr
        assert newest.read_bytes() == bad
