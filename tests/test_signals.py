"""A signal ends any command at any moment by code 75 and a message, and leaves no process."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import tomli_w
from helpers import noise_images, tiny_objective
from PIL import Image
from programs import ENVIRONMENT, Program, Starter, small_recipe, starter
from test_recovery import process_of

from maskzoo.errors import StoppedError
from maskzoo.evaluation.features import WholeImages
from maskzoo.signals import ending

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
STEPS = 6
PATIENCE = 40.0  # seconds that a program may take to end, on a machine that does much else
ACKNOWLEDGED = "; once more to abort"
CHILDREN = """
import sys, maskzoo.compare.launch as launch
real = launch.command
def command(*arguments):
    _, _, _, *rest = real(*arguments)
    start = "import sys; sys.path.insert(0, {tests!r}); {pause}; from maskzoo.__main__ import main; main()"
    return [sys.executable, "-c", start, *rest]
launch.command = command
"""


# ------------------------------------------------------------------------------------------------- commands and moments
@attrs.frozen
class Moment:
    """A point of a command at which it is signalled."""

    name: str
    point: str
    listens: bool = True  # whether there is something to finish first
    evaluators: tuple[Any, ...] = ("knn",)
    options: dict[str, Any] = attrs.field(factory=dict)  # of the pause
    more: dict[str, Any] = attrs.field(factory=dict)  # of the recipe
    workers: tuple[int, ...] = (0, 2)


READING = "maskzoo.evaluation.features:evaluating"
LINEAR = {"use": "linear", "epochs": 2}
ATTENTIVE = {"use": "attentive", "epochs": 1, "heads": 2}
FINETUNE = {"use": "finetune", "epochs": 1}
SECOND = {"nth": 2}
OF_EVALUATORS = (
    Moment("knn", READING, evaluators=("knn",), options=SECOND),
    Moment("linear reads", READING, evaluators=(LINEAR,), options=SECOND),
    Moment("linear learns", "maskzoo.evaluation.linear:cosine", evaluators=(LINEAR,), options=SECOND),
    Moment("attentive reads", READING, evaluators=(ATTENTIVE,), options=SECOND),
    Moment("attentive learns", "maskzoo.evaluation.attentive:cosine", evaluators=(ATTENTIVE,), options=SECOND),
    Moment("fewshot", READING, evaluators=("fewshot",), options=SECOND),
    Moment("finetune learns", "maskzoo.evaluation.finetune:cosine", evaluators=(FINETUNE,), options=SECOND),
    Moment("reconstruction", "maskzoo.evaluation.reconstruction:evaluating", evaluators=("reconstruction",)),
    Moment(
        "classifier",
        READING,
        evaluators=("classifier",),
        more={"objective": {"use": "classify"}, "masking": {"strategy": "random", "ratio": 0.0}},
    ),
)
AFTER = {"once": f"out/checkpoints/step-{STEPS:08d}.pt"}
TRAIN = (
    Moment("data are opened", "maskzoo.run:make", listens=False),
    Moment("the model is built", "maskzoo.run:build", listens=False),
    *OF_EVALUATORS,
    Moment("a picture is drawn", "maskzoo.gallery:draw_moment", options=SECOND),
    Moment("a step", "maskzoo.train:move_model", options={"nth": 3}),
    Moment("between two steps", "maskzoo.run:Source.speeds", options={"nth": 3}),
    Moment("a checkpoint is written", "maskzoo.checkpoint:_finish"),
    Moment("knn after training", READING, options={**AFTER, **SECOND}),
    Moment("linear learns after training", "maskzoo.evaluation.linear:cosine", evaluators=(LINEAR,), options=AFTER),
)
EVALUATE = (
    Moment("the run is opened", "maskzoo.evaluate:open_run", listens=False),
    *OF_EVALUATORS,
)
COMPARE = (
    Moment("it is planned", "maskzoo.compare.whole:plan", listens=False),
    Moment("a model is built", "maskzoo.run:build"),
    Moment("knn before training", READING, options=SECOND),
    Moment("a step", "maskzoo.train:move_model", options={"nth": 3}),
    Moment("a checkpoint is written", "maskzoo.checkpoint:_finish"),
    Moment("knn after training", READING, options={"once": f"out/runs/*/checkpoints/step-{STEPS:08d}.pt"}),
    Moment("the report is written", "maskzoo.compare.whole:report", listens=False),
)
AT_ONCE = (
    Moment("knn before training", READING, options=SECOND),
    Moment("a step", "maskzoo.train:move_model", options={"nth": 3}),
)
ALONE = (0,)
TABLE = {
    "train": TRAIN,
    "evaluate": EVALUATE,
    "compare": COMPARE,
    "compare --jobs 2": AT_ONCE,
    "export": (
        Moment("the run is opened", "maskzoo.trained:open_run", listens=False, workers=ALONE),
        Moment("it is written", "maskzoo.export:arrive", listens=False, workers=ALONE),
    ),
    "preview": (Moment("it is drawn", "maskzoo.preview:draw", listens=False, workers=ALONE),),
    "cost": (Moment("it is counted", "maskzoo.cost:cost_table", listens=False, workers=ALONE),),
}
ALL = [
    (command, moment, workers, number)
    for command, moments in TABLE.items()
    for moment in moments
    for workers in moment.workers
    for number in SIGNALS
]


def marked() -> Iterator[Any]:
    """Every case; each moment with each number of workers is slow, with the signals in turns, and the rest long."""
    for place, (case, numbered) in enumerate(itertools.groupby(ALL, lambda one: one[:3])):
        command, moment, workers = case
        for turn, (*_, number) in enumerate(numbered):
            mark = pytest.mark.slow if turn == place % len(SIGNALS) else pytest.mark.long
            name = f"{command}, {moment.name}, {workers} workers, {signal.Signals(number).name}"
            yield pytest.param(command, moment, workers, number, marks=mark, id=name)


# -------------------------------------------------------------------------------------------------------------- helpers
@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    with starter(tmp_path_factory.mktemp("programs")) as made:
        yield made


@pytest.fixture(scope="module")
def trained(programs: Starter, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run for each objective that is needed."""
    folder = tmp_path_factory.mktemp("trained")
    runs = {}
    for name, more in (("reconstruct", {}), ("classify", OF_EVALUATORS[-1].more)):
        recipe = folder / f"{name}.toml"
        recipe.write_text(tomli_w.dumps(small_recipe(steps=1) | more))
        programs.train(recipe, "--out", folder / name)
        runs[name] = folder / name
    return runs


def recipe_of(folder: Path, moment: Moment, workers: int) -> Path:
    plain = small_recipe(steps=STEPS, checkpoint_steps=2, pictures=2, workers=workers)
    plain |= {"evaluation": list(moment.evaluators)} | moment.more
    path = folder / "recipe.toml"
    path.write_text(tomli_w.dumps(plain))
    return path


def arguments_of(command: str, moment: Moment, workers: int, folder: Path, trained: dict[str, Path]) -> list[Any]:
    run = trained["classify" if "objective" in moment.more else "reconstruct"]
    if command in ("evaluate", "export"):
        shutil.copytree(run, folder / "run")
    uses = ",".join(one if isinstance(one, str) else one["use"] for one in moment.evaluators)
    settings = [f"{one['use']}.{key}={value}" for one in moment.evaluators if isinstance(one, dict)
                for key, value in one.items() if key != "use"]  # fmt: skip
    match command.split()[0]:
        case "train":
            return ["train", recipe_of(folder, moment, workers), "--out", folder / "out"]
        case "compare":
            plan = ["--maskers", "random,block", "--seeds", "1", "--recipe", recipe_of(folder, moment, workers)]
            return [*command.split(), *plan, "--out", folder / "out"]
        case "evaluate":
            chosen = ["--with", uses, *(text for setting in settings for text in ("--set", setting))]
            return ["evaluate", folder / "run", "--workers", str(workers), "--device", "cpu", *chosen]
        case "export":
            return ["export", folder / "run", folder / "exported"]
        case "preview":
            Image.new("RGB", (32, 32), "teal").save(folder / "image.png")
            return ["preview", folder / "image.png", "--no-terminal", "--out", folder / "seen.png"]
    return ["cost"]


def started(programs: Starter, command: str, arguments: list[Any], moment: Moment, folder: Path) -> Program:
    """The command, when it has reached the moment."""
    pause = f"import pausing; pausing.pause_at({moment.point!r}, {str(folder)!r}, **{moment.options!r})"
    before = CHILDREN.format(tests=str(Path(__file__).parent), pause=pause) if "--jobs" in command else pause
    program = programs.start(*arguments, before=before, folder=folder)
    assert program.until((folder / "here").exists), program.words
    return program


def left(process: int, folder: Path) -> list[str]:
    """What is still there of a program's process group, or was started with its folder among the arguments."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            state, _, group = (place / "stat").read_text().rpartition(")")[2].split()[:3]
            words = (place / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if state != "Z" and int(place.name) != os.getpid() and (int(group) == process or str(folder) in words):
            found.append(f"{place.name}: {words or state}")
    return found


def assert_nothing_left(process: int, folder: Path) -> None:
    """Killed processes take a moment to vanish; a worker that notices by itself that its parent is gone takes 5 s."""
    deadline = time.monotonic() + 2.5
    while (still := left(process, folder)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert still == []


@contextmanager
def real_program(
    arguments: list[Any], moment: Moment, folder: Path, *, processes: int = 1
) -> Iterator[subprocess.Popen[str]]:
    """A command in an interpreter of its own, or under torchrun, when it has reached the moment."""
    start = folder / "start.py"
    start.write_text(
        f"import pausing\npausing.pause_at({moment.point!r}, {str(folder)!r}, **{moment.options!r})\n"
        "from maskzoo.__main__ import main\nmain()\n"
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    process = subprocess.Popen(
        [sys.executable, *(launcher if processes > 1 else []), start, *map(str, arguments)],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )  # fmt: skip
    try:
        while not (folder / "here").exists():
            assert process.poll() is None
            time.sleep(0.01)
        yield process
    finally:
        for still in left(process.pid, folder):
            with suppress(ProcessLookupError):
                os.kill(int(still.partition(":")[0]), signal.SIGKILL)
        process.wait()


def assert_ended(program: Program, folder: Path) -> str:
    """Code 75, one message at the end, and no process left; the message."""
    assert program.wait(PATIENCE).code == 75, program.words
    assert_nothing_left(program.process, folder)
    lines = program.words.splitlines()
    assert lines[-1].startswith("Stopped"), program.words
    for unwanted in ("Traceback", "Exception ignored", "Aborted!", "Error"):
        assert unwanted not in program.words
    assert sum(line.startswith("Stopped") for line in lines) == 1, program.words
    return lines[-1]


# ---------------------------------------------------------------------------------------------------------------- tests
@pytest.mark.parametrize(("command", "moment", "workers", "number"), list(marked()))
def test_a_signal_ends_a_command_at_any_moment(
    command: str,
    moment: Moment,
    workers: int,
    number: int,
    tmp_path: Path,
    programs: Starter,
    trained: dict[str, Path],
):
    arguments = arguments_of(command, moment, workers, tmp_path, trained)
    program = started(programs, command, arguments, moment, tmp_path)
    program.signal(number, group=workers > 0)
    if moment.listens:  # and is told so before the moment is over
        assert program.until(lambda: ACKNOWLEDGED in program.words, PATIENCE), program.words
        assert not program.ended()
        (tmp_path / "on").touch()
    last = assert_ended(program, tmp_path)
    assert ("Resume with: maskzoo " in last) or ("Start again with: maskzoo " in last)
    assert not list(tmp_path.glob("**/*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("command", "moment"),
    [("train", moment) for moment in TRAIN if moment.name in ("knn", "a step", "a checkpoint is written")]
    + [("evaluate", OF_EVALUATORS[0]), ("compare", AT_ONCE[1]), ("compare --jobs 2", AT_ONCE[1])],
    ids=lambda one: one if isinstance(one, str) else one.name,
)
def test_a_second_signal_ends_a_command_at_once(
    command: str, moment: Moment, workers: int, tmp_path: Path, programs: Starter, trained: dict[str, Path]
):
    arguments = arguments_of(command, moment, workers, tmp_path, trained)
    program = started(programs, command, arguments, moment, tmp_path)
    program.signal(signal.SIGINT)
    assert program.until(lambda: ACKNOWLEDGED in program.words, PATIENCE), program.words
    time.sleep(0.5)  # or the two would count as one
    assert not program.ended()
    program.signal(signal.SIGTERM)
    assert assert_ended(program, tmp_path).startswith("Stopped at once")


@pytest.mark.slow
def test_a_program_that_is_deep_in_a_library_answers_at_once_too(tmp_path: Path, programs: Starter):
    moment = attrs.evolve(AT_ONCE[1], options={"nth": 3, "deaf": True})
    arguments = arguments_of("train", moment, 2, tmp_path, {"reconstruct": tmp_path})
    program = started(programs, "train", arguments, moment, tmp_path)
    program.signal(signal.SIGTERM)
    assert program.until(lambda: ACKNOWLEDGED in program.words, PATIENCE), program.words
    time.sleep(0.5)
    program.signal(signal.SIGTERM)
    last = assert_ended(program, tmp_path)
    assert "the checkpoint after step 2 of 6 is safe" in last


@pytest.mark.slow
def test_two_signals_of_one_moment_are_one(tmp_path: Path, programs: Starter):
    """`timeout` sends to its process and then to the group."""
    arguments = arguments_of("train", AT_ONCE[1], 0, tmp_path, {"reconstruct": tmp_path})
    program = started(programs, "train", arguments, AT_ONCE[1], tmp_path)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        program.signal(number)
    assert program.until(lambda: ACKNOWLEDGED in program.words, PATIENCE), program.words
    (tmp_path / "on").touch()
    assert assert_ended(program, tmp_path).startswith("Stopped after step 3 of 6. Resume with: ")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "compare"])
def test_the_command_that_is_told_resumes(command: str, tmp_path: Path, programs: Starter):
    arguments = arguments_of(command, AT_ONCE[1], 0, tmp_path, {"reconstruct": tmp_path})
    program = started(programs, command, arguments, AT_ONCE[1], tmp_path)
    program.signal(signal.SIGTERM)
    assert program.until(lambda: ACKNOWLEDGED in program.words, PATIENCE), program.words
    (tmp_path / "on").touch()
    words = assert_ended(program, tmp_path).partition("Resume with: maskzoo ")[2].split()
    done = programs.run(*words, folder=tmp_path)
    assert done.code == 0, done.words
    assert "resumed at step 3 of 6" in done.words


@pytest.mark.slow
def test_what_was_measured_before_a_stop_is_kept(tmp_path: Path, programs: Starter, trained: dict[str, Path]):
    moment = Moment("linear", "maskzoo.evaluation.linear:cosine", evaluators=("knn", LINEAR), options=SECOND)
    arguments = arguments_of("evaluate", moment, 0, tmp_path, trained)
    program = started(programs, "evaluate", arguments, moment, tmp_path)
    program.signal(signal.SIGTERM)
    assert program.until(lambda: ACKNOWLEDGED in program.words, PATIENCE), program.words
    (tmp_path / "on").touch()
    assert "; what was measured before is kept. Start again with: " in assert_ended(program, tmp_path)
    kept = json.loads((tmp_path / "run" / "evaluation.json").read_text())["evaluations"]
    assert [one["evaluator"]["use"] for one in kept] == ["knn"]


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_program_that_imports_its_libraries_listens(number: int, tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-m", "maskzoo", "train", "--out", "out"],
        cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    maps = Path(f"/proc/{process.pid}/maps")
    while "libtorch_cpu" not in maps.read_text():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE)
    assert errors == "Stopped. Start again with: maskzoo train --out out\n"
    assert process.returncode == 75
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("command", "workers"), [("train", 0), ("train", 2), ("evaluate", 2)])
def test_the_interpreter_ends_in_silence_too(command: str, workers: int, tmp_path: Path, trained: dict[str, Path]):
    """A generator that outlives the handlers of signals, or a worker that nobody ends, shows only when Python ends."""
    moment = OF_EVALUATORS[0]
    arguments = arguments_of(command, moment, workers, tmp_path, trained)
    with real_program(arguments, moment, tmp_path) as process:
        process.send_signal(signal.SIGTERM)
        (tmp_path / "on").touch()
        _, errors = process.communicate(timeout=PATIENCE)
    assert [line for line in errors.splitlines() if ACKNOWLEDGED not in line] == [errors.splitlines()[-1]]
    assert errors.splitlines()[-1].startswith("Stopped while" if command == "evaluate" else "Stopped before")
    assert process.returncode == 75
    assert_nothing_left(process.pid, tmp_path)


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(OF_EVALUATORS[0], marks=pytest.mark.slow),
        pytest.param(OF_EVALUATORS[2], marks=pytest.mark.long),
        pytest.param(OF_EVALUATORS[6], marks=pytest.mark.long),
    ],
    ids=lambda one: one.name,
)
def test_two_processes_leave_an_evaluation_together(moment: Moment, tmp_path: Path):
    arguments = arguments_of("train", moment, 0, tmp_path, {"reconstruct": tmp_path})
    with real_program(arguments, moment, tmp_path, processes=2) as launcher:
        os.kill(process_of(1, launcher.pid), signal.SIGTERM)
        (tmp_path / "on").touch()
        _, errors = launcher.communicate(timeout=PATIENCE)
        assert_nothing_left(launcher.pid, tmp_path)
    (last,) = [line for line in errors.splitlines() if line.startswith("Stopped")]
    assert last.startswith("Stopped before the first step, while it was evaluated. Resume with: torchrun ")


def test_a_batch_of_an_evaluation_is_not_waited_for():
    """It may take minutes, and is of no use."""
    data, asked = noise_images(count=8, labelled=True), []
    encoder = WholeImages(tiny_objective().backbone, data, (32, 32), stopping=lambda: len(asked) > 2)
    blocks = encoder.backbone.model.blocks
    for block in blocks:
        block.register_forward_hook(lambda *_: asked.append(1))
    blocks[0].register_forward_hook(lambda *_: asked.extend([1, 1]))
    with pytest.raises(StoppedError):
        encoder.features(data.train)
    assert len(asked) == 3  # the second block was not begun
    assert not any(block._forward_pre_hooks for block in blocks)


def test_what_an_evaluator_leaves_half_read_is_closed():
    data = noise_images(count=8, labelled=True)
    encoder = WholeImages(tiny_objective().backbone, data, (32, 32), batch_size=2, workers=2)

    def half_read() -> None:
        source = encoder.batches(data.train, range(8))
        next(source)
        raise ValueError("of a plugin")

    with pytest.raises(ValueError, match="of a plugin") as caught, encoder.reading():
        half_read()
    assert caught.tb.tb_next is not None  # the error still holds the frame
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_workers_that_an_error_keeps_alive_do_not_outlive_the_program(tmp_path: Path):
    (tmp_path / "leak.py").write_text(
        "from helpers import noise_images\n"
        "from maskzoo.data.batches import batches\n"
        "kept = batches(noise_images(count=8), size=(32, 32), batch_size=2, seed=0, start=0, steps=9, workers=2)\n"
        "next(kept)\n"
        "raise SystemExit(3)\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, tmp_path / "leak.py"],
        env=ENVIRONMENT | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (3, "")
    assert_nothing_left(-1, tmp_path)


def test_handlers_are_put_back_when_a_command_ends():
    before = [signal.getsignal(number) for number in SIGNALS]
    with ending(["list"]):
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_python_takes_itself_down_does_not_change_the_code(number: int):
    code = (
        "import os, sys\n"
        "from maskzoo.signals import end_by_signals\n"
        "class Late:\n"
        "    def __del__(self, kill=os.kill, process=os.getpid()):\n"
        f"        kill(process, {int(number)})\n"
        "late = Late()\n"
        "end_by_signals(['train'])\n"
        "sys.exit(75)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (75, "")
