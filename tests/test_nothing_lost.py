"""No documented command destroys what somebody else has made, and no run loses what it has itself made."""

from __future__ import annotations

import io
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import tomli_w
import torch
from helpers import REGISTRY
from PIL import Image
from programs import small_recipe
from rich.console import Console
from test_export import VIT, trained
from test_run import last_state, metrics

import maskzoo.export
import maskzoo.run
from maskzoo import Recipe, checkpoint
from maskzoo.errors import MaskZooError, RecipeError
from maskzoo.evaluate import Wishes, evaluate_backbone
from maskzoo.folder import RunFolder
from maskzoo.recipe import read
from maskzoo.records import gaps

pytestmark = pytest.mark.slow


def run(out: Path, plain: dict[str, Any] | None = None, *, resume: bool = False, **train: Any) -> str:
    """A run in this process, by the smallest recipe unless another is given; what it printed."""
    console = Console(file=io.StringIO(), width=10_000)
    recipe = Recipe.from_plain(small_recipe(**train) if plain is None else plain)
    maskzoo.run.run(recipe, REGISTRY, console, out, resume=resume)
    return console.file.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but the lock, which is empty."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def warnings(out: Path) -> list[str]:
    path = out / "warnings.txt"
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture(scope="module")
def six_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of six steps with a checkpoint every second and two pictures."""
    out = tmp_path_factory.mktemp("six") / "run"
    run(out, steps=6, checkpoint_steps=2, pictures=2)
    return out


@pytest.fixture
def finished(six_steps: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(six_steps, tmp_path / "run"))


def resumed(out: Path) -> str:
    """Resume a run by the recipe in its folder, as `maskzoo train --out OUT --resume` does."""
    return run(out, read(out / "recipe.toml"), resume=True)


# ------------------------------------------------------------------------------------------------------- whose folder
@pytest.mark.slow
def test_beside_a_copy_of_a_recipe_nothing_of_the_user_is_touched(six_steps: Path, tmp_path: Path):
    project = tmp_path / "project"
    (project / "masks").mkdir(parents=True)
    shutil.copy(six_steps / "recipe.toml", project)
    for name in ("masks/step-00000000.png", "masks/annotations.json", "metrics.jsonl", "evaluation.json"):
        (project / name).write_text("mine")
    before = contents(project)
    with pytest.raises(RecipeError, match="no run") as caught:
        resumed(project)
    assert "--out" in str(caught.value)
    with pytest.raises(RecipeError) as caught:
        run(project, steps=6)
    assert "--resume" not in str(caught.value)
    assert contents(project) == before


@pytest.mark.parametrize("content", ["[]", "{}", "{", '{"versions": {"node": "20"}, "command": "npm", "host": 1}'])
@pytest.mark.sampled(1)
def test_an_environment_of_somebody_else_makes_no_run(content: str, six_steps: Path, tmp_path: Path):
    shutil.copy(six_steps / "recipe.toml", tmp_path)
    (tmp_path / "environment.json").write_text(content)
    (tmp_path / "metrics.jsonl").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(RecipeError, match="no run"):
        resumed(tmp_path)
    assert contents(tmp_path) == before


def test_a_finished_run_without_checkpoints_is_not_wiped(finished: Path):
    shutil.rmtree(finished / "checkpoints")
    before = contents(finished)
    with pytest.raises(RecipeError, match="finished and its checkpoints are gone"):
        resumed(finished)
    assert contents(finished) == before


def test_half_a_run_whose_checkpoints_are_gone_is_not_begun_anew(finished: Path):
    shutil.rmtree(finished / "checkpoints")
    (finished / "evaluation.json").unlink()
    before = contents(finished)
    with pytest.raises(RecipeError, match="had checkpoints, and they are gone"):
        resumed(finished)
    assert contents(finished) == before


def without_checkpoint(out: Path) -> None:
    """Make a run one that was killed before its first checkpoint."""
    shutil.rmtree(out / "checkpoints")
    environment = json.loads((out / "environment.json").read_text())
    del environment["checkpointed"]
    (out / "environment.json").write_text(json.dumps(environment))


@pytest.mark.slow
def test_a_run_that_begins_anew_removes_what_it_had_drawn_and_nothing_else(finished: Path):
    without_checkpoint(finished)
    left = {"measured": ["before"], "evaluations": [{"step": 6}]}
    (finished / "evaluation.json").write_text(json.dumps(left))
    (finished / "masks" / "step-00000099.png").write_text("of an earlier moment")
    (finished / "masks" / "mine.png").write_text("mine")
    (finished / "notes.txt").write_text("mine")
    resumed(finished)
    assert not (finished / "masks" / "step-00000099.png").exists()
    assert (finished / "masks" / "mine.png").read_text() == (finished / "notes.txt").read_text() == "mine"
    assert json.loads((finished / "evaluation.json").read_text())["evaluations"][0] == {"step": 6}
    assert [step["step"] for step in metrics(finished)] == list(range(6))


@pytest.mark.slow
def test_a_run_of_before_the_mark_is_still_a_run(finished: Path):
    environment = json.loads((finished / "environment.json").read_text())
    del environment["generator"], environment["checkpointed"]
    (finished / "environment.json").write_text(json.dumps(environment))
    shutil.rmtree(finished / "checkpoints")
    (finished / "evaluation.json").unlink()
    resumed(finished)
    assert checkpoint.found(finished / "checkpoints")


@pytest.mark.slow
def test_a_run_that_lost_its_recipe_is_resumed_by_what_its_checkpoint_holds(finished: Path, tmp_path: Path):
    plain = read(finished / "recipe.toml")
    (finished / "recipe.toml").unlink()
    with pytest.raises(RecipeError, match="seed is 0 there and 5 here"):
        run(finished, {**plain, "train": {**plain["train"], "seed": 5}}, resume=True)
    run(finished, plain, resume=True)
    assert read(finished / "recipe.toml") == plain


@pytest.mark.slow
def test_the_second_of_two_runs_on_one_new_folder_touches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out, ready, go = tmp_path / "run", threading.Event(), threading.Event()
    build = maskzoo.run.build

    def slowly(recipe: Recipe, *arguments: Any, **options: Any) -> Any:
        if recipe.train.seed == 1:  # it has found the folder new, and opens its data for long
            ready.set()
            assert go.wait(60)
        return build(recipe, *arguments, **options)

    monkeypatch.setattr(maskzoo.run, "build", slowly)
    problems: list[BaseException] = []

    def second() -> None:
        try:
            run(out, steps=2, seed=1)
        except MaskZooError as problem:
            problems.append(problem)

    slow = threading.Thread(target=second)
    slow.start()
    assert ready.wait(60)
    run(out, steps=2, seed=0)
    before = contents(out)
    go.set()
    slow.join(60)
    assert "holds something already" in str(problems[0])
    assert contents(out) == before


# -------------------------------------------------------------------------------------------------------- checkpoints
@pytest.mark.slow
def test_damaged_checkpoints_of_later_steps_do_not_make_new_ones_vanish(tmp_path: Path):
    out = tmp_path / "run"
    run(out, steps=8, checkpoint_steps=2)
    for path in checkpoint.found(out / "checkpoints"):
        path.rename(path.with_name("step-00000002.pt") if "6" in path.name else path)
    state = torch.load(out / "checkpoints" / "step-00000002.pt", weights_only=True)
    for later in ("step-00000007.pt", "step-00000008.pt"):
        (out / "checkpoints" / later).write_bytes(b"garbage")
    torch.save({**state, "step": 2}, out / "checkpoints" / "step-00000002.pt")
    saved: list[list[str]] = []
    save = checkpoint.save

    def watched(*arguments: Any) -> Path:
        path = save(*arguments)
        assert path.exists()
        saved.append([one.name for one in checkpoint.found(out / "checkpoints")])
        return path

    checkpoint.save = watched
    try:
        run(out, steps=8, checkpoint_steps=2, resume=True)
    finally:
        checkpoint.save = save
    assert saved[0] == ["step-00000002.pt", "step-00000004.pt", "step-00000007.pt", "step-00000008.pt"]
    assert saved[-1] == ["step-00000006.pt", "step-00000008.pt"]
    assert last_state(out)["step"] == 8


def test_what_a_kill_between_two_file_operations_left_is_removed_later(finished: Path):
    four, six = checkpoint.found(finished / "checkpoints")
    shutil.copy(four, four.with_name("step-00000002.pt"))
    before = six.read_bytes()
    resumed(finished)
    assert checkpoint.found(finished / "checkpoints") == [four, six]
    assert six.read_bytes() == before


@pytest.mark.slow
def test_a_checkpoint_is_not_written_through_a_link(tmp_path: Path):
    run(tmp_path / "run", steps=2, checkpoint_steps=1)
    for path in checkpoint.found(tmp_path / "run" / "checkpoints")[1:]:
        path.unlink()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "run" / "checkpoints" / "step-00000002.pt.part").symlink_to(victim)
    resumed(tmp_path / "run")
    assert victim.read_text() == "mine"


# ----------------------------------------------------------------------------------------------------- edited recipes
EDITS: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("train.seed", lambda plain: plain["train"].update(seed=1)),
    ("optimizer.lr", lambda plain: plain["optimizer"].update(lr=0.125)),
    ("masking.ratio", lambda plain: plain["masking"].update(ratio={"use": "constant", "value": 0.5})),
    ("augment.flip", lambda plain: plain["augment"].update(flip=not plain["augment"].get("flip", True))),
    ("evaluation", lambda plain: plain.update(evaluation=[{"use": "knn"}])),
]


@pytest.mark.parametrize(("key", "edit"), EDITS, ids=[key for key, _ in EDITS])
def test_an_edited_recipe_of_a_run_is_refused_with_its_key(
    key: str, edit: Callable[[dict[str, Any]], Any], finished: Path
):
    plain = read(finished / "recipe.toml")
    edit(plain)
    (finished / "recipe.toml").write_text(tomli_w.dumps(plain))
    before = contents(finished)
    with pytest.raises(RecipeError, match=rf"recipe\.{key}\S* is .+ there and .+ here") as caught:
        resumed(finished)
    assert "another --out" in str(caught.value)
    assert contents(finished) == before


def test_a_free_key_may_be_edited_and_an_older_checkpoint_has_no_recipe(finished: Path):
    plain = read(finished / "recipe.toml")
    plain["train"]["checkpoint_steps"] = 3
    (finished / "recipe.toml").write_text(tomli_w.dumps(plain))
    for path in checkpoint.found(finished / "checkpoints"):
        state = torch.load(path, weights_only=True)
        del state["recipe"]
        torch.save(state, path)
    resumed(finished)


# ------------------------------------------------------------------------------------------------------------ metrics
@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([0, 1, 2, 3], ""),
        ([0, 3], "lacks steps 1 to 2"),
        ([0, 1, 2], "lacks step 3"),
        ([0, 1, 1, 2, 2, 3], "has steps 1 to 2 more than once"),
        ([3, 2, 1, 0], "has steps 0 to 2 behind later ones"),
        ([], "lacks steps 0 to 3"),
        ([0, 2, 2], "lacks steps 1 and 3, has step 2 more than once"),
    ],
)
def test_gaps_in_metrics_are_named(steps: list[int], said: str):
    assert gaps(steps, 4) == said


@pytest.mark.slow
def test_gaps_in_metrics_are_told_once(finished: Path):
    path = finished / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2] + lines[3:5] + lines[4:]))
    assert "lacks step 2, has step 4 more than once" in resumed(finished)
    assert "lacks step 2" not in resumed(finished)
    assert len(warnings(finished)) == 1


def test_metrics_that_vanish_in_mid_run_are_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out, save = tmp_path / "run", checkpoint.save

    def then_removed(*arguments: Any) -> Path:
        path = save(*arguments)
        if arguments[0].step == 2:
            (out / "metrics.jsonl").unlink()
        return path

    monkeypatch.setattr(checkpoint, "save", then_removed)
    run(out, steps=6, checkpoint_steps=2)
    assert [step["step"] for step in metrics(out)] == list(range(6))
    assert warnings(out) == ["metrics.jsonl had been removed, and was written again"]


def test_metrics_that_are_emptied_in_mid_run_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out, save = tmp_path / "run", checkpoint.save

    def then_emptied(*arguments: Any) -> Path:
        path = save(*arguments)
        if arguments[0].step == 2:
            (out / "metrics.jsonl").write_text("")
        return path

    monkeypatch.setattr(checkpoint, "save", then_emptied)
    assert "lacks steps 0 to 1" in run(out, steps=4, checkpoint_steps=2)


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"step": 1e999}', '{"step": 3, "images_per_second": "fast"}', '{"step": 9e99}', "\x00\xff"]
)
@pytest.mark.sampled(2)
def test_a_line_of_metrics_that_is_anything_at_all_stops_no_run(line: str, finished: Path):
    with (finished / "metrics.jsonl").open("a") as file:
        file.write(f"{line}\n")
    resumed(finished)


# ----------------------------------------------------------------------------------------------------------- pictures
@pytest.mark.parametrize("damage", [b"", b"\x00" * 500, b"PK\x03\x04cut", None])
@pytest.mark.sampled(1)
def test_a_moment_that_cannot_be_read_is_left_out_of_the_picture(damage: bytes | None, finished: Path):
    for path in checkpoint.found(finished / "checkpoints")[1:]:
        path.unlink()
    moment = finished / "masks" / "step-00000000.npz"
    if damage is None:
        np.savez(
            moment, images=np.zeros((1, 3, 2, 2), np.uint8), seen=np.zeros((1, 3, 2, 2), np.uint8), factor=0, ratio=0
        )
    else:
        moment.write_bytes(damage)
    assert "the picture of the run leaves it out" in resumed(finished)
    assert "after" in json.loads((finished / "evaluation.json").read_text())["measured"]
    assert (finished / "masks" / "curriculum.png").stat().st_size > 1000


# ---------------------------------------------------------------------------------------------------------- warnings
@pytest.mark.slow
def test_a_warning_is_kept_once_and_read_back_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "warnings.txt").write_text("known\n")
    folder, console = RunFolder(tmp_path), Console(file=io.StringIO(), width=200)
    for sentence in ("known", "new  one", "new one", "known"):
        folder.warn(sentence, console)
    assert warnings(tmp_path) == ["known", "new one"]
    read_text = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda *arguments, **options: pytest.fail("it was read again"))
    for number in range(3000):
        folder.warn(f"image {number} is broken", console)
    monkeypatch.setattr(Path, "read_text", read_text)
    assert len(warnings(tmp_path)) == 3002


def test_a_run_folder_is_still_a_plain_value(tmp_path: Path):
    assert RunFolder(tmp_path) == RunFolder(tmp_path)
    assert attrs.evolve(RunFolder(tmp_path)).path == tmp_path


# -------------------------------------------------------------------------------------------------------------- export
@pytest.mark.slow
def test_an_export_removes_and_replaces_nothing_that_appears_while_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = trained(VIT, {"use": "reconstruct"})

    def meanwhile(made: Path) -> None:
        def statistics(_: Any) -> dict[str, list[float]]:
            made.parent.mkdir(parents=True, exist_ok=True)
            made.write_text("mine")
            return {}

        monkeypatch.setattr(maskzoo.export, "statistics_of", statistics)

    meanwhile(tmp_path / "one.part" / "mine.txt")
    with pytest.raises(MaskZooError, match="cannot be written"):
        maskzoo.export.export(model, "safetensors", tmp_path / "one")
    assert contents(tmp_path) == {"one.part/mine.txt": b"mine"}
    meanwhile(tmp_path / "two" / "config.json")
    with pytest.raises(MaskZooError, match="cannot be written"):
        maskzoo.export.export(model, "safetensors", tmp_path / "two")
    assert contents(tmp_path) == {"one.part/mine.txt": b"mine", "two/config.json": b"mine"}


# ---------------------------------------------------------------------------------------------------------- evaluation
@pytest.mark.parametrize(
    "theirs", ['{"mine": 1}', "[]", "{}", '{"evaluations": ["mine"]}', '{"evaluations": [], "a": 1}']
)
def test_an_evaluation_of_somebody_else_is_refused_before_anything_is_measured(theirs: str, tmp_path: Path):
    (tmp_path / "evaluation.json").write_text(theirs)
    with pytest.raises(RecipeError, match=r"--out: .*evaluation\.json'.*choose another folder"):
        evaluate_backbone("vit_tiny_patch16_224", None, False, tmp_path, Wishes(), REGISTRY, Console(quiet=True))
    assert (tmp_path / "evaluation.json").read_text() == theirs


# --------------------------------------------------------------------------------------------------------- moved data
@pytest.fixture
def of_photos(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """Photos, and a recipe that learns from them for two steps."""
    (tmp_path / "photos").mkdir()
    for number in range(24):
        pixels = np.random.default_rng(number).integers(256, size=(32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    plain = small_recipe(steps=2, checkpoint_steps=1)
    return tmp_path / "photos", {**plain, "data": {"use": "folder", "root": str(tmp_path / "photos")}, "evaluation": []}


@pytest.mark.slow
def test_a_run_is_resumed_where_its_data_are_now(of_photos: tuple[Path, dict[str, Any]], tmp_path: Path):
    photos, plain = of_photos
    out = tmp_path / "run"
    run(out, plain)
    (out / "checkpoints" / "step-00000002.pt").unlink()
    elsewhere = photos.rename(tmp_path / "elsewhere")
    with pytest.raises(MaskZooError, match="say where they are with --data"):
        resumed(out)
    there = {**read(out / "recipe.toml"), "data": {**read(out / "recipe.toml")["data"], "root": str(elsewhere)}}
    assert "resumed at step 1" in run(out, there, resume=True)
    assert read(out / "recipe.toml")["data"]["root"] == str(elsewhere)
    assert "already finished" in resumed(out)  # without saying it again


@pytest.mark.slow
def test_other_images_are_not_taken_for_moved_ones(of_photos: tuple[Path, dict[str, Any]], tmp_path: Path):
    photos, plain = of_photos
    out = tmp_path / "run"
    run(out, plain)
    others = Path(shutil.copytree(photos, tmp_path / "others"))
    (others / "3.png").rename(others / "other.png")
    before = contents(out)
    there = {**read(out / "recipe.toml"), "data": {**read(out / "recipe.toml")["data"], "root": str(others)}}
    with pytest.raises(RecipeError, match="data have changed"):
        run(out, there, resume=True)
    assert contents(out) == before
