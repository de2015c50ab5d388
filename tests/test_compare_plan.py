"""The plan of a comparison, and the training of what is missing."""

from __future__ import annotations

import os
import re
import signal
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from click.testing import CliRunner
from filelock import FileLock
from helpers import measured_by
from programs import Starter, small_recipe, starter
from rich.console import Console

import maskzoo.run
from maskzoo.checkpoint import found
from maskzoo.cli import main
from maskzoo.compare import launch
from maskzoo.compare.plan import Plan, cells, plan, planned, table
from maskzoo.compare.readings import read_run
from maskzoo.errors import RecipeError, StoppedError
from maskzoo.recipe import put
from maskzoo.registry import Registry

REGISTRY = Registry()


def base(**train: Any) -> dict[str, Any]:
    """The recipe that the cells of these tests share."""
    return small_recipe(**{"steps": 4, **train})


def made(out: Path, maskers: str | None = "random,clmae", **options: Any) -> Plan:
    return plan(out, options.pop("recipe", base()), REGISTRY, maskers=maskers, **options)


def recipe_of(made: Plan, cell: str, seed: int = 0) -> dict[str, Any]:
    (job,) = [job for job in made.jobs if (job.cell, job.seed) == (cell, seed)]
    return tomllib.loads(job.recipe.read_text())


@pytest.fixture
def uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting FLOPs takes seconds, and what cannot be counted may be trained all the same."""

    def flops_per_image(*_: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr("maskzoo.compare.plan.flops_per_image", flops_per_image)


# --------------------------------------------------------------------------------------------------------------- cells
def test_a_cell_is_a_masker_with_a_schedule_and_a_ratio():
    planned = cells(base(), "random@0.6,attmask+linear:0:-0.5,clmae+adversary@linear:0.5:0.75", ())
    assert [cell["masking"] for cell in planned.values()] == [
        {"strategy": "random", "ratio": 0.6},
        {"strategy": "attmask", "curriculum": "linear:0:-0.5"},
        {"strategy": "clmae", "curriculum": "adversary", "ratio": "linear:0.5:0.75"},
    ]


def test_the_recipes_own_masker_keeps_its_options_and_another_brings_its_own():
    recipe = base() | {"masking": {"strategy": {"use": "clmae", "depth": 1}, "curriculum": "partner", "ratio": 0.5}}
    planned = cells(recipe, "clmae,random", ())
    assert planned["clmae"]["masking"] == recipe["masking"]
    assert planned["random"]["masking"] == {"strategy": "random", "ratio": 0.5}


def test_what_varies_goes_with_every_masker():
    planned = cells(base(), "random,clmae", ("augment.scale=[0.2, 1.0],[0.5, 1.0]",))
    assert [cell["augment"]["scale"] for cell in planned.values()] == [[0.2, 1.0], [0.5, 1.0]] * 2
    planned = cells(base(), None, ("masking.ratio=0.6,0.75", "optimizer.use=adamw,lamb"))
    assert list(planned)[1] == "random masking.ratio=0.6 optimizer.use=lamb"
    assert [cell["masking"]["ratio"] for cell in planned.values()] == [0.6, 0.6, 0.75, 0.75]
    assert [cell["optimizer"]["use"] for cell in planned.values()] == ["adamw", "lamb"] * 2


@pytest.mark.parametrize(
    ("maskers", "options", "sentence"),
    [
        ("blok", {}, "cell 'blok': recipe.masking.strategy.use: no strategy named 'blok'; did you mean 'block'?"),
        ("random,random", {}, "'random' is named twice"),
        ("+adversary", {}, "'+adversary' is no cell"),
        ("", {}, "name at least one"),
        ("random+adversary", {}, "cell 'random+adversary': recipe.masking.curriculum: strategy 'random' knows no hard"),
        ("random@1.5", {}, "cell 'random@1.5': recipe.masking.ratio"),
        ("random", {"vary": ("masking.ratio",)}, "--vary: expected KEY=VALUE,VALUE,..., got 'masking.ratio'"),
        ("random", {"vary": ("masking.ratoi=1,2",)}, "recipe.masking.ratoi: no such key; did you mean 'ratio'?"),
        ("random", {"baseline": "randm"}, "--baseline: no cell is called 'randm'; did you mean 'random'?"),
        ("random", {"seeds": "many"}, "--seeds: expected a number of seeds"),
        ("random", {"seeds": "0"}, "--seeds: expected at least one seed"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, maskers: str, options: dict[str, Any], sentence: str
):
    with pytest.raises(RecipeError, match=re.escape(sentence)):
        made(tmp_path / "out", maskers, **options)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------------------- plan
@pytest.mark.parametrize(("text", "seeds"), [("2", [0, 1]), ("0,7", [0, 7]), ("5,", None)])
@pytest.mark.usefixtures("uncounted")
def test_every_seed_goes_with_every_cell_a_whole_set_at_a_time(tmp_path: Path, text: str, seeds: list[int] | None):
    if seeds is None:
        with pytest.raises(RecipeError, match="--seeds"):
            made(tmp_path, seeds=text)
        return
    plan = made(tmp_path, seeds=text)
    assert [(job.cell, job.seed) for job in plan.jobs] == [
        (cell, seed) for seed in seeds for cell in ("random", "clmae")
    ]
    assert recipe_of(plan, "clmae", seeds[1])["train"]["seed"] == seeds[1]
    assert len({job.folder for job in plan.jobs}) == 4


@pytest.mark.usefixtures("uncounted")
def test_a_plan_is_read_back_as_it_was_written(tmp_path: Path):
    plan = made(tmp_path, seeds="2")
    assert planned(tmp_path) == plan
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(RecipeError, match="cannot be read"):
        planned(tmp_path)


@pytest.mark.usefixtures("uncounted")
def test_cells_whose_names_come_to_one_folder_get_one_each(tmp_path: Path):
    plan = made(tmp_path, "random", seeds="1", vary=("train.device=cpu,CPU",), keep=False)
    assert len({job.folder.name.lower() for job in plan.jobs}) == 2


@pytest.mark.usefixtures("uncounted")
def test_a_run_of_another_recipe_is_not_taken_for_one_of_the_plan(tmp_path: Path):
    (job,) = made(tmp_path, "random", seeds="1").jobs
    job.folder.mkdir(parents=True)
    (job.folder / "recipe.toml").write_text("")
    made(tmp_path, "random,clmae", seeds="2", recipe=base(device="auto"))  # more of the same goes on
    with pytest.raises(
        RecipeError, match=r"random-s0' was begun with another recipe: train\.steps is 4 there and 5 here"
    ):
        made(tmp_path, "random", seeds="1", recipe=base(steps=5))


@pytest.mark.slow
def test_equal_flops_give_a_dear_masker_fewer_steps(tmp_path: Path):
    plan = made(tmp_path, equal="flops", recipe=base(steps=1000), seeds="1")
    random, clmae = plan.rows
    assert random.steps == 1000
    assert "epochs" not in recipe_of(plan, "random")["train"]
    assert clmae.steps == recipe_of(plan, "clmae")["train"]["steps"]
    assert clmae.flops * clmae.images == pytest.approx(random.flops * random.images, rel=0.01)
    assert clmae.steps < 700


@pytest.mark.usefixtures("uncounted")
def test_equal_time_gives_a_slow_masker_fewer_steps(tmp_path: Path):
    speeds = {"random": 100.0, "clmae": 25.0}
    plan = made(tmp_path, equal="time", recipe=base(steps=1000), seeds="1", speed_of=lambda name, plain: speeds[name])
    assert [row.steps for row in plan.rows] == [1000, 250]


@pytest.mark.slow
def test_a_dry_run_writes_nothing_and_says_what_it_costs(tmp_path: Path):
    plan = made(tmp_path / "out", keep=False, equal="time")
    console = Console(record=True, width=150)
    console.print(table(plan))
    assert not (tmp_path / "out").exists()
    first, second = console.export_text().splitlines()[1:3]
    assert first.split()[:4] == ["random", "(baseline)", "4", "32"]
    assert second.split()[:3] == ["clmae", "?", "?"]
    assert second.endswith("3 of 3")


# -------------------------------------------------------------------------------------------------------------- launch
def go(plan: Plan, **options: Any) -> list[str]:
    return launch.train_missing(plan, REGISTRY, Console(quiet=True), **options)


@pytest.mark.usefixtures("uncounted")
@pytest.mark.slow
def test_a_run_that_fails_is_said_and_the_others_go_on(tmp_path: Path):
    plan = made(tmp_path, "random,block", seeds="1")
    put(recipe := recipe_of(plan, "random"), "train.batch_size", 100_000)
    plan.jobs[0].recipe.write_text(tomli_w.dumps(recipe))
    (failure,) = go(plan)
    assert "the run of 'random' with seed 0 failed: recipe.train.batch_size: 100000 is more than" in failure
    assert [job.done for job in plan.jobs] == [False, True]


@pytest.mark.usefixtures("uncounted")
def test_what_is_done_is_not_done_again(tmp_path: Path):
    plan = made(tmp_path, "random", seeds="1")
    assert go(plan) == []
    before = (plan.jobs[0].folder / "environment.json").stat().st_mtime_ns
    assert go(plan) == []
    assert (plan.jobs[0].folder / "environment.json").stat().st_mtime_ns == before


@pytest.mark.usefixtures("uncounted")
def test_a_comparison_that_is_at_work_keeps_others_out(tmp_path: Path):
    words = ("compare", "--maskers", "random", "--seeds", "1", "--out", str(tmp_path / "out"))
    with launch.locked(tmp_path / "out"):
        answer = CliRunner().invoke(main, words)
        assert answer.exit_code == 2
        assert "another comparison is at work" in answer.output
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["lock"]  # not even its plan
    assert not (tmp_path / "out").exists()  # nothing came of it


@pytest.mark.usefixtures("uncounted")
def test_a_plan_that_cannot_be_leaves_no_folder(tmp_path: Path):
    answer = CliRunner().invoke(main, ("compare", "--maskers", "random,blok", "--out", str(tmp_path / "out")))
    assert (answer.exit_code, (tmp_path / "out").exists()) == (2, False)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--maskers", "random", "--masker", "clmae"), "--masker: the maskers of a comparison are those of --maskers"),
        (("--maskers", "attmask", "--schedule", "partner"), "write it behind a +, e.g. attmask+partner"),
        (("--seeds", "5"), "--seeds: the plan in --out says that already"),
        (("--equal", "flops"), "--equal: the plan in --out says that already"),
        (("a-run", "--seeds", "5"), "with runs that are there go --out and --baseline alone"),
        (("a-run", "--jobs", "2"), "with runs that are there go --out and --baseline alone"),
        (("--maskers", "random", "--seed", "1"), "--seed: a comparison has several"),
        (("--maskers", "random", "--launcher", "submitit", "--jobs", "2"), "--launcher submitit: how many run at once"),
        (("--maskers", "random", "--vary", "train.seed=1,2"), "say which with --seeds"),
        (("--maskers", "random", "--vary", "masking.ratio=0.6,0.60"), "is named twice"),
        (("--maskers", "random,random@0.75", "--set", "masking.ratio=0.75"), "is the same recipe as 'random'"),
    ],
)
@pytest.mark.usefixtures("uncounted")
def test_what_would_be_dropped_without_a_word_is_refused(tmp_path: Path, words: tuple[str, ...], sentence: str):
    answer = CliRunner().invoke(main, ("compare", *words, "--out", str(tmp_path / "out")))
    assert answer.exit_code == 2
    assert sentence in answer.output
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("uncounted")
def test_a_dry_run_refuses_a_folder_of_other_runs_as_the_run_itself_would(tmp_path: Path):
    (job,) = made(tmp_path, "random", seeds="1").jobs
    job.folder.mkdir(parents=True)
    (job.folder / "recipe.toml").write_text("")
    with pytest.raises(RecipeError, match=r"was begun with another recipe: train\.steps"):
        made(tmp_path, "random", seeds="1", recipe=base(steps=5), keep=False)


@pytest.mark.usefixtures("uncounted")
def test_a_run_that_somebody_else_writes_to_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (job,) = (plan := made(tmp_path, "random", seeds="1")).jobs
    job.folder.mkdir(parents=True)
    other = FileLock(job.folder / "lock")
    other.acquire()
    assert launch.held(job)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            other.release()

    monkeypatch.setattr("maskzoo.compare.launch.time.sleep", sleep)
    assert go(plan) == []
    assert len(waits) == 3
    assert job.done
    assert not launch.held(job)


@pytest.mark.usefixtures("uncounted")
@pytest.mark.slow
def test_whatever_one_run_throws_the_others_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan = made(tmp_path, "random,block", seeds="1")
    run = launch.run

    def throwing(recipe: Any, *rest: Any, **options: Any) -> Any:
        if recipe.masking.strategy == "random":
            raise torch.OutOfMemoryError("out of memory\nand much more")
        return run(recipe, *rest, **options)

    monkeypatch.setattr(launch, "run", throwing)
    (failure,) = go(plan)
    log = tmp_path / "logs" / "random-s0.txt"
    assert failure.endswith(f"seed 0 failed: OutOfMemoryError: out of memory (see '{log}')")
    assert "in throwing" in log.read_text()
    assert [job.done for job in plan.jobs] == [False, True]


@pytest.mark.usefixtures("uncounted")
def test_a_signal_that_comes_while_a_run_is_being_built_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan = made(tmp_path, "random", seeds="1", recipe=base(steps=5000))
    build = maskzoo.run.build

    def signalled(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return build(*arguments, **options)

    monkeypatch.setattr("maskzoo.run.build", signalled)
    with pytest.raises(StoppedError, match=r"^Stopped (in|before) "):
        go(plan)


@pytest.mark.usefixtures("uncounted")
@pytest.mark.slow
def test_a_signal_in_the_last_step_of_a_run_lets_no_other_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan = made(tmp_path, "random,block", seeds="1", recipe={**base(steps=2), "evaluation": []})
    save = maskzoo.run.checkpoint.save

    def signalled(session: Any, folder: Path) -> None:
        save(session, folder)
        if session.step == session.steps:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("maskzoo.run.checkpoint.save", signalled)
    with pytest.raises(StoppedError, match=r"^Stopped (in|before) "):
        go(plan)
    assert [job.done for job in plan.jobs] == [True, False]


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        (
            "trace:\n  File x\nmaskzoo.errors.MaskZooError: the disk is full\n---\n  - /a/b/1_log.out",
            "the disk is full",
        ),
        ("Traceback:\nValueError: odd\nYou can check\n - /x.out", "ValueError: odd"),
        ("no word of an error", "no word of an error"),
        ("", "it ended without a word"),
    ],
)
def test_of_what_submitit_tells_the_sentence_is_kept(told: str, sentence: str):
    assert launch._reason(told) == sentence


def test_runs_at_once_share_the_cores_unless_somebody_said_otherwise(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(12)), raising=False)
    assert [launch.sharing_cores(runs)["OMP_NUM_THREADS"] for runs in (2, 5, 24)] == ["6", "2", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert launch.sharing_cores(2)["OMP_NUM_THREADS"] == "3"


@pytest.mark.slow
def test_a_speed_is_measured_once(tmp_path: Path):
    speed = launch.speed_of(tmp_path, REGISTRY, Console(quiet=True), "random", base())
    assert speed > 0
    assert launch.speed_of(tmp_path, REGISTRY, Console(quiet=True), "random", base()) == speed


@pytest.mark.usefixtures("uncounted")
def test_submitit_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(RecipeError, match=r"pip install 'maskzoo\[submitit\]'"):
        go(made(tmp_path, "random", seeds="1"), launcher="submitit")


# ----------------------------------------------------------------------------------------------------- whole programs
@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    with starter(tmp_path_factory.mktemp("programs")) as made:
        yield made


def recipe_file(folder: Path, **train: Any) -> Path:
    plain = base(**{"pictures": 2, "checkpoint_steps": 5, **train}) | {"evaluation": ["knn"]}
    del plain["masking"]
    (folder / "shared.toml").write_text(tomli_w.dumps(plain))
    return folder / "shared.toml"


WORDS = ("compare", "--maskers", "random,clmae", "--seeds", "2", "--recipe")


@pytest.fixture(scope="module")
def whole(programs: Starter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    done = programs.run(*WORDS, recipe_file(folder, steps=20), "--out", folder / "out")
    assert done.code == 0, done.words
    return folder / "out"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_comparison_that_was_cut_short_goes_on_where_it_was(
    programs: Starter, whole: Path, tmp_path: Path, number: int
):
    recipe, out = recipe_file(tmp_path, steps=20), tmp_path / "out"
    first = programs.start(*WORDS, recipe, "--out", out)
    second = out / "runs" / "clmae-s0" / "checkpoints"
    assert first.until(lambda: bool(found(second))), first.words
    first.signal(number)
    first.wait()
    assert first.code == (75 if number == signal.SIGTERM else -number), first.words
    assert not (out / "report.html").exists()
    kept = (out / "runs" / "random-s0" / "environment.json").stat().st_mtime_ns

    done = programs.run("compare", "--out", out)  # what is to be done is in the folder
    assert done.code == 0, done.words
    assert "resumed at step" in done.words
    assert (out / "runs" / "random-s0" / "environment.json").stat().st_mtime_ns == kept
    for name in ("random-s0", "random-s1", "clmae-s0", "clmae-s1"):
        cut, other = (read_run(folder / "runs" / name) for folder in (out, whole))
        assert cut.scores == other.scores
        assert cut.curves == other.curves
    assert (out / "table.md").read_text().startswith("| cell | seeds | k-NN top-1, knn/top1 (%) \u2191 |")


@pytest.mark.slow
def test_seeds_are_paired(whole: Path):
    def before(run: str) -> Any:
        return measured_by(whole / "runs" / run, "before")

    assert before("random-s0") == before("clmae-s0")
    assert before("random-s1") == before("clmae-s1")


@pytest.mark.long
def test_runs_at_once_are_those_one_after_the_other(programs: Starter, whole: Path, tmp_path: Path):
    recipe = recipe_file(tmp_path, steps=20)
    done = programs.run(*WORDS, recipe, "--seeds", "1", "--out", tmp_path / "out", "--jobs", "2")
    assert done.code == 0, done.words
    for name in ("random-s0", "clmae-s0"):
        assert read_run(tmp_path / "out" / "runs" / name).scores == read_run(whole / "runs" / name).scores
        assert "after training" in (tmp_path / "out" / "logs" / f"{name}.txt").read_text()


@pytest.mark.slow
def test_what_runs_at_once_ends_with_the_comparison_and_goes_on_with_it(programs: Starter, tmp_path: Path):
    recipe, out = recipe_file(tmp_path, steps=400), tmp_path / "out"
    words = ("compare", "--maskers", "random,block", "--seeds", "1", "--recipe", recipe, "--out", out, "--jobs", "2")
    first = programs.start(*words)
    folders = [out / "runs" / name for name in ("random-s0", "block-s0")]
    assert first.until(lambda: all(found(folder / "checkpoints") for folder in folders)), first.words
    first.signal(signal.SIGKILL)
    first.wait()
    done = programs.run(*words)  # at once, while those are perhaps still ending
    assert done.code == 0, done.words
    for folder in folders:
        assert read_run(folder).steps == 400
        assert "resumed at step" in (out / "logs" / f"{folder.name}.txt").read_text()


@pytest.mark.long
def test_runs_on_several_devices_are_those_on_one(programs: Starter, whole: Path, tmp_path: Path):
    recipe = recipe_file(tmp_path, steps=20, device="auto")
    done = programs.run(*WORDS, recipe, "--seeds", "1", "--out", tmp_path / "out", "--devices", "cpu,cpu:0")
    assert done.code == 0, done.words
    assert "random, seed 0: begins on cpu clmae, seed 0: begins on cpu:0" in " ".join(done.words.split())
    for name, device in (("random-s0", "cpu"), ("clmae-s0", "cpu:0")):
        run = read_run(tmp_path / "out" / "runs" / name)
        assert run.scores == read_run(whole / "runs" / name).scores
        assert run.environment["device"] == device


@pytest.mark.long
def test_equal_time_is_measured_by_a_probe_that_is_made_once(programs: Starter, tmp_path: Path):
    recipe, out = recipe_file(tmp_path, steps=60), tmp_path / "out"
    words = (*WORDS, recipe, "--seeds", "1", "--out", out, "--equal", "time")
    done = programs.run(*words)
    assert done.code == 0, done.words
    random, clmae = (read_run(out / "runs" / name) for name in ("random-s0", "clmae-s0"))
    assert random.steps == 60
    assert 0 < clmae.steps < 60  # a step of clmae takes several times as long
    probes = [read_run(out / "probes" / name) for name in ("random", "clmae")]
    assert clmae.steps == max(1, round(60 * probes[1].speed / probes[0].speed))
    assert "about the time of 'random'" in (out / "table.md").read_text()
    kept = (out / "probes" / "random" / "metrics.jsonl").stat().st_mtime_ns
    again = programs.run(*words)
    assert again.code == 0, again.words
    assert (out / "probes" / "random" / "metrics.jsonl").stat().st_mtime_ns == kept


@pytest.mark.slow
def test_runs_are_sent_off_by_submitit(programs: Starter, tmp_path: Path):
    pytest.importorskip("submitit")
    recipe, out = recipe_file(tmp_path), tmp_path / "out"
    done = programs.run(
        "compare", "--maskers", "random", "--seeds", "1", "--recipe", recipe, "--out", out, "--launcher", "submitit"
    )
    assert done.code == 0, done.words
    assert "1 runs were sent to local" in done.words
    assert read_run(out / "runs" / "random-s0").finished


@pytest.mark.slow
def test_a_signal_stops_all_that_run_at_once(programs: Starter, tmp_path: Path):
    recipe, out = recipe_file(tmp_path, steps=5000), tmp_path / "out"
    first = programs.start(
        *("compare", "--maskers", "random,block", "--seeds", "1", "--recipe", recipe, "--out", out, "--jobs", "2")
    )
    folders = [out / "runs" / name / "checkpoints" for name in ("random-s0", "block-s0")]
    assert first.until(lambda: all(found(folder) for folder in folders)), first.words
    first.signal(signal.SIGTERM)
    assert first.wait().code == 75, first.words
    for name in ("random-s0", "block-s0"):
        assert "\nStopped after step" in (out / "logs" / f"{name}.txt").read_text()
