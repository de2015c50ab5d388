"""Training the runs of a plan that are missing: one after the other, several at once, or on a cluster."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import attrs
import torch
from filelock import FileLock, Timeout
from rich.console import Console

from maskzoo.compare.plan import Job, Plan
from maskzoo.compare.readings import read_run
from maskzoo.errors import MaskZooError, RecipeError, StoppedError
from maskzoo.evaluation.options import words_of
from maskzoo.plain import read_json, write_json
from maskzoo.recipe import Recipe, put, read
from maskzoo.registry import Registry
from maskzoo.run import run
from maskzoo.signals import STOPPED, Work, ended_with_us, listening

IN_QUEUE = frozenset({"RUNNING", "PENDING", "CONFIGURING", "COMPLETING", "REQUEUED", "SUSPENDED", "READY"})  # at SLURM
PROBE_STEPS = 25
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
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
    resume: str | None = None,
) -> list[str]:
    """Train what is missing, or half done; a sentence for each run that failed, while all others went on.

    Whoever calls has the folder to itself (`locked`). With one job at a time it is done in this process. A run that
    somebody else is still writing to, such as what a killed comparison has left, is waited for. Raises StoppedError
    when a signal ended it between two steps.
    """
    missing = [job for job in plan.jobs if not job.done]
    if not missing:
        return []
    (plan.out / "logs").mkdir(exist_ok=True)
    with _listening(console, resume) as asked:
        if launcher == "submitit":
            return _submit(missing, plan.out, settings or {}, asked, console)
        if jobs == 1 and len(devices) <= 1:
            return _one_by_one(missing, plan.out, registry, console, devices[0] if devices else None, asked)
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
            raise StoppedError("before all runs were done")


@contextmanager
def _listening(console: Console, resume: str | None) -> Iterator[_Asked]:
    """Take the signals that stop a run for the comparison as a whole; a run in this process listens by itself."""
    asked = _Asked()

    def hear() -> None:
        asked.stop = True

    def say(words: str) -> None:
        console.print(words, highlight=False, markup=False)

    with listening(Work(hear, waits="the steps in hand", say=say, resume=lambda: resume)):
        yield asked


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep a second comparison out of the folder; the lock goes with the process, however it ends.

    A folder that was made for it and got nothing else is removed. Raises RecipeError where somebody else is at work.
    """
    new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / "lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise RecipeError(f"--out: another comparison is at work in '{out}'; wait for it, or end it") from None
    except OSError as problem:
        raise RecipeError(f"--out: '{out}' cannot be written to: {problem}") from problem
    try:
        yield
    finally:
        lock.release()
        if new and {path.name for path in out.iterdir()} <= {"lock"}:
            with suppress(OSError):  # somebody has put something there meanwhile
                (out / "lock").unlink(missing_ok=True)
                out.rmdir()


def held(job: Job) -> bool:
    """Whether a process is writing to the folder of a run at this moment."""
    path = job.folder / "lock"
    if not path.exists():
        return False
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    lock.release()
    return False


def _wait_for(job: Job, asked: _Asked, console: Console) -> None:
    """Wait until nobody else writes to the folder of a run."""
    told = False
    while held(job):
        asked.refuse()
        if not told:
            console.print(f"waiting for whoever writes to '{job.folder}'", highlight=False, markup=False)
            told = True
        time.sleep(PAUSE * 10)


def _one_by_one(
    missing: Sequence[Job], out: Path, registry: Registry, console: Console, device: str | None, asked: _Asked
) -> list[str]:
    failures = []
    for number, job in enumerate(missing, start=1):
        asked.refuse()
        _wait_for(job, asked, console)
        console.print(f"run {number} of {len(missing)}: {job.cell}, seed {job.seed}", highlight=False, markup=False)
        try:
            plain = read(job.recipe)
            if device is not None:
                put(plain, "train.device", device)
            run(Recipe.from_plain(plain), registry, console, job.folder, resume=True, stop_asked=lambda: asked.stop)
        except StoppedError as problem:
            raise StoppedError(f"in '{job.folder}' {problem.moment}") from None
        except MaskZooError as problem:
            failures.append(_failed(job, str(problem)))
        except Exception as problem:  # of a plugin, or a device without memory: it must not end the others
            _log(out, job).write_text(traceback.format_exc(), encoding="utf-8")
            failures.append(_failed(job, f"{words_of(problem)} (see '{_log(out, job)}')"))
        else:
            continue
        _forget_what_failed()  # behind the error, whose frames hold the model
        console.print(failures[-1], style="yellow", highlight=False, markup=False)
    return failures


def _forget_what_failed() -> None:
    """Give the memory of a run that failed back to the next one."""
    gc.collect()
    if torch.cuda.is_available():
        with suppress(RuntimeError):  # a device that has failed fails here too
            torch.cuda.empty_cache()


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
    told = False
    occupied: set[str] = set()  # runs that somebody else writes to, once it has been said
    with _none_left(running):
        while waiting or running:
            if asked.stop and not told:
                waiting, told = [], True
                for _, _, process in running:
                    process.terminate()
            elsewhere = {job.folder.name for job in waiting if held(job)} if free else set()
            for job in waiting:
                if job.folder.name in elsewhere - occupied:
                    console.print(f"waiting for whoever writes to '{job.folder}'", highlight=False, markup=False)
            occupied |= elsewhere
            ready = [job for job in waiting if job.folder.name not in elsewhere]
            for job in ready[: len(free)]:
                waiting.remove(job)
                device = free.pop(0)
                console.print(
                    f"{job.cell}, seed {job.seed}: begins{f' on {device}' if device else ''}", highlight=False
                )
                with _log(out, job).open("wb") as log:
                    process = subprocess.Popen(
                        command(job, device),
                        stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=surroundings,
                        start_new_session=True,  # a terminal's signals come to us, who pass them on once
                        preexec_fn=_end_with_parent,
                    )  # fmt: skip
                running.append((job, device, process))
            for one in [one for one in running if one[2].poll() is not None]:
                running.remove(one)
                job, device, process = one
                free.append(device)
                by_us = told and process.returncode == -signal.SIGTERM  # before it could listen
                if process.returncode == STOPPED or by_us:
                    stopped = True
                elif process.returncode != 0:
                    failures.append(_failed(job, f"{_last_words(_log(out, job))} (see '{_log(out, job)}')"))
                word = {0: "done", STOPPED: "stopped"}.get(process.returncode, "stopped" if by_us else "failed")
                console.print(f"{job.cell}, seed {job.seed}: {word}", highlight=False, markup=False)
            time.sleep(PAUSE)
    asked.refuse()
    if stopped:
        raise StoppedError("by a signal to some of the runs")
    return failures


@contextmanager
def _none_left(running: Sequence[tuple[Job, str | None, subprocess.Popen[bytes]]]) -> Iterator[None]:
    """Kill what runs still when this is left, and the loaders' workers of it."""

    def leaders() -> list[int]:
        return [process.pid for _, _, process in running]

    with ended_with_us(leaders):
        try:
            yield
        finally:
            for leader in leaders():
                with suppress(ProcessLookupError):
                    os.killpg(leader, signal.SIGKILL)


def _end_with_parent() -> None:
    """Ask Linux to stop this process as a signal would, when the one that started it is gone, however it ended."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


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
    """Send every run to SLURM, or to processes of this machine where there is no SLURM, and wait for them.

    Which were sent is kept in logs/submitted.json, so that a command that is given again waits for them too.
    """
    try:
        import submitit
    except ImportError:
        raise RecipeError("--launcher submitit: it is not installed; pip install 'maskzoo[submitit]'") from None
    record = out / "logs" / "submitted.json"
    executor = submitit.AutoExecutor(folder=os.fspath(out / "logs"))
    known: dict[str, str] = {name: str(job) for name, job in read_json(record, missing={}).items()}
    sent: dict[Job, Any] = {}
    for job in missing:
        if job.folder.name in known:
            before = executor._executor.job_class(executor.folder, known[job.folder.name])
            if before.state in IN_QUEUE:
                sent[job] = before
    occupied = [job for job in missing if job not in sent and held(job)]
    if sent or occupied:
        console.print(f"{len(sent) + len(occupied)} runs that were sent before are waited for", highlight=False)
    try:
        executor.update_parameters(**{"name": "maskzoo", "timeout_min": 24 * 60, **settings})
        new = [job for job in missing if job not in sent and job not in occupied]
        while new or occupied or not all(job.done() for job in sent.values()):
            if new:
                with executor.batch():
                    batch = [executor.submit(Errand(command(job))) for job in new]
                sent |= dict(zip(new, batch, strict=True))
                known |= {job.folder.name: one.job_id for job, one in zip(new, batch, strict=True)}
                write_json(record, known)
                words = f"{len(new)} runs were sent to {executor.cluster}; their words are in '{out / 'logs'}'"
                console.print(words, highlight=False)
            if asked.stop:
                raise StoppedError("waiting for the runs that were sent, which continue")
            time.sleep(PAUSE * 10)
            new = [job for job in occupied if not held(job) and not job.done]
            occupied = [job for job in occupied if held(job)]
    except (TypeError, NameError, ValueError, RuntimeError) as problem:
        raise RecipeError(f"--launcher submitit: {problem}") from problem
    # What a run left says whether it is done, and its log why not: submitit's own results are pickles in that folder.
    return [_failed(job, _reason(_log_of(one))) for job, one in sent.items() if not job.done]


def _log_of(sent: Any) -> str:
    """What a run that was sent has written to its log of errors."""
    try:
        return Path(sent.paths.stderr).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _reason(log: str) -> str:
    """The error in the log of a failed run, before paths and frames."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (errors or lines or ["it ended without a word"])[-1].removeprefix("maskzoo.errors.MaskZooError: ")
