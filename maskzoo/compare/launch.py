"""Training the runs of a plan that are missing: one after the other, several at once, or on a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import attrs
from filelock import FileLock, Timeout
from rich.console import Console

from maskzoo.compare.plan import Job, Plan
from maskzoo.compare.readings import read_run
from maskzoo.errors import MaskZooError, RecipeError, StoppedError
from maskzoo.recipe import Recipe, put, read
from maskzoo.registry import Registry
from maskzoo.run import run
from maskzoo.signals import STOP_SIGNALS

STOPPED = 75  # exit code of a run that a signal has ended
PROBE_STEPS = 25
THREADS = "OMP_NUM_THREADS"  # the environment's name for how many threads torch computes with
PAUSE = 0.1  # seconds between two looks at what runs


def train_missing(
    plan: Plan,
    registry: Registry,
    console: Console,
    *,
    jobs: int = 1,
    devices: Sequence[str] = (),
    launcher: str = "local",
    settings: Mapping[str, Any] | None = None,
) -> list[str]:
    """Train what is missing, or half done; a sentence for each run that failed, while all others went on.

    With one job at a time it is done in this process. Raises StoppedError when a signal ended it between two steps,
    and RecipeError where somebody else is at work in the folder.
    """
    missing = [job for job in plan.jobs if not job.done]
    if not missing:
        return []
    with _locked(plan.out), _listening() as asked:
        if launcher == "submitit":
            return _submit(missing, plan.out, settings or {}, asked, console)
        if jobs == 1 and len(devices) <= 1:
            return _one_by_one(missing, registry, console, devices[0] if devices else None, asked)
        slots: list[str | None] = [*devices] * jobs or [None] * jobs
        return _at_once(missing, plan.out, slots, asked, console)


def speed_of(out: Path, registry: Registry, console: Console, name: str, plain: Mapping[str, Any]) -> float:
    """Images a second of a cell in training, by a short run that is kept, so that it is measured once."""
    folder = out / "probes" / name
    probe = deepcopy(dict(plain))
    for key, value in (("train.steps", PROBE_STEPS), ("train.pictures", 0), ("train.loggers", []), ("evaluation", [])):
        put(probe, key, value)
    run(Recipe.from_plain(probe), registry, console, folder, resume=True)
    speed = read_run(folder).speed
    if not speed:
        raise RecipeError(f"--equal time: the probe '{folder}' shows no speed; remove it and try again")
    return speed


@attrs.define
class _Asked:
    """Whether a signal has asked for an end."""

    stop: bool = False

    def refuse(self) -> None:
        """Raise StoppedError if so."""
        if self.stop:
            raise StoppedError("stopped by a signal; the same command goes on")


@contextmanager
def _listening() -> Iterator[_Asked]:
    """Take the signals that stop a run for the comparison as a whole; a run in this process listens by itself."""
    asked = _Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread may listen
        return

    def hear(number: int, frame: Any) -> None:
        if asked.stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.stop = True

    before = {getattr(signal, name): signal.signal(getattr(signal, name), hear) for name in STOP_SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep a second comparison out of the folder; the lock goes with the process, however it ends."""
    lock = FileLock(out / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RecipeError(f"--out: another comparison is at work in '{out}'; wait for it, or end it") from None
    try:
        yield
    finally:
        lock.release()


def _one_by_one(
    missing: Sequence[Job], registry: Registry, console: Console, device: str | None, asked: _Asked
) -> list[str]:
    failures = []
    for number, job in enumerate(missing, start=1):
        asked.refuse()
        console.print(f"run {number} of {len(missing)}: {job.cell}, seed {job.seed}", highlight=False, markup=False)
        try:
            plain = read(job.recipe)
            if device is not None:
                put(plain, "train.device", device)
            run(Recipe.from_plain(plain), registry, console, job.folder, resume=True)
        except StoppedError as problem:
            raise StoppedError(f"'{job.folder}' was {problem}; the same command goes on") from problem
        except MaskZooError as problem:
            failures.append(_failed(job, str(problem)))
            console.print(failures[-1], style="yellow", highlight=False, markup=False)
    return failures


def _failed(job: Job, why: str) -> str:
    return f"the run of '{job.cell}' with seed {job.seed} failed: {' '.join(why.split())}"


def command(job: Job, device: str | None = None) -> list[str]:
    """What trains a run in a process of its own."""
    arguments = ["train", str(job.recipe.absolute()), "--out", str(job.folder.absolute()), "--resume"]
    return [sys.executable, "-m", "maskzoo", *arguments, *(["--device", device] if device else [])]


def _at_once(
    missing: Sequence[Job], out: Path, slots: Sequence[str | None], asked: _Asked, console: Console
) -> list[str]:
    """A process for each run, as many at once as there are slots; what each prints goes to logs/."""
    waiting, free, failures, stopped = list(missing), list(slots), [], False
    surroundings = sharing_cores(len(slots))
    running: list[tuple[Job, str | None, subprocess.Popen[bytes]]] = []
    (out / "logs").mkdir(exist_ok=True)
    told = False
    try:
        while waiting or running:
            if asked.stop and not told:
                waiting, told = [], True
                for _, _, process in running:
                    process.terminate()
            while waiting and free:
                job, device = waiting.pop(0), free.pop(0)
                console.print(
                    f"{job.cell}, seed {job.seed}: begins{f' on {device}' if device else ''}", highlight=False
                )
                with _log(out, job).open("wb") as log:
                    process = subprocess.Popen(
                        command(job, device),
                        stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=surroundings,
                        start_new_session=True,  # a terminal's signals come to us, who pass them on once
                    )  # fmt: skip
                running.append((job, device, process))
            for one in [one for one in running if one[2].poll() is not None]:
                running.remove(one)
                job, device, process = one
                free.append(device)
                if process.returncode == STOPPED:
                    stopped = True
                elif process.returncode != 0:
                    failures.append(_failed(job, f"{_last_words(_log(out, job))} (see '{_log(out, job)}')"))
                word = {0: "done", STOPPED: "stopped"}.get(process.returncode, "failed")
                console.print(f"{job.cell}, seed {job.seed}: {word}", highlight=False, markup=False)
            time.sleep(PAUSE)
    finally:
        for _, _, process in running:
            process.kill()
    asked.refuse()
    if stopped:
        raise StoppedError("a signal stopped some of the runs; the same command goes on")
    return failures


def sharing_cores(runs: int) -> dict[str, str]:
    """The environment of each of several runs at once: its share of the cores, unless somebody has said otherwise.

    Each would use all of them, and they would wait for one another.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {THREADS: str(max(1, cores // runs)), **os.environ}


def _log(out: Path, job: Job) -> Path:
    return out / "logs" / f"{job.folder.name}.txt"


def _last_words(log: Path) -> str:
    """The last line that a program has printed."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("Error: ") if lines else "it said nothing"


@attrs.frozen
class Errand:
    """A run as submitit carries it to a node; put back into the queue when its time is up, it goes on."""

    arguments: list[str]

    def __call__(self) -> str:
        """Train; MaskZooError with the program's last line where that failed."""
        done = subprocess.run(self.arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
        if done.returncode:
            said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            raise MaskZooError(said[-1].removeprefix("Error: ") if said else f"it ended with code {done.returncode}")
        return "done"

    def checkpoint(self) -> Any:
        """What submitit is to submit again when the time is up; the run goes on from its newest checkpoint."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def _submit(
    missing: Sequence[Job], out: Path, settings: Mapping[str, Any], asked: _Asked, console: Console
) -> list[str]:
    """Send every run to SLURM, or to processes of this machine where there is no SLURM, and wait for them."""
    try:
        import submitit
    except ImportError:
        raise RecipeError("--launcher submitit: it is not installed; pip install 'maskzoo[submitit]'") from None
    executor = submitit.AutoExecutor(folder=os.fspath(out / "logs"))
    try:
        executor.update_parameters(**{"name": "maskzoo", "timeout_min": 24 * 60, **settings})
        with executor.batch():
            sent = [executor.submit(Errand(command(job))) for job in missing]
    except (TypeError, NameError, ValueError, RuntimeError) as problem:
        raise RecipeError(f"--launcher submitit: {problem}") from problem
    console.print(
        f"{len(sent)} runs were sent to {executor.cluster}; their words are in '{out / 'logs'}'", highlight=False
    )
    while not all(job.done() for job in sent):
        if asked.stop:
            raise StoppedError("no longer waiting for the runs that were sent; the same command goes on")
        time.sleep(PAUSE * 10)
    problems = [(job, one.exception()) for job, one in zip(missing, sent, strict=True)]
    return [_failed(job, str(problem).strip().splitlines()[-1]) for job, problem in problems if problem is not None]
