"""The folder of a run: what it leaves behind, what it goes on from, and that nobody else writes there meanwhile."""

from __future__ import annotations

import itertools
import os
import platform
import shutil
import socket
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import attrs
import torch
from filelock import FileLock, Timeout
from rich.console import Console

from maskzoo import checkpoint, processes
from maskzoo.errors import DataError, MaskZooError, RecipeError
from maskzoo.plain import (
    FREE_KEYS,
    LEFTOVER,
    is_number,
    printable,
    read_json,
    read_lines,
    replace,
    shown,
    step_line,
    write_json,
)
from maskzoo.recipe import Recipe, completed, plain_of, read, write
from maskzoo.registry import Registry
from maskzoo.train import Session

SECTIONS = {"before": dict, "after": dict, "settings": dict, "problems": dict, "evaluations": list}  # evaluation.json


@attrs.frozen
class RunFolder:
    """`recipe.toml`, `environment.json`, `metrics.jsonl`, `evaluation.json`, `masks/` and `checkpoints/` of a run.

    Of several processes the first writes; the others only read.
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / "checkpoints"

    def refuse_another(self, recipe: Mapping[str, Any], registry: Registry) -> None:
        """Raise RecipeError if what is in this folder was made by another recipe, naming the keys that differ."""
        if not (self.path / "recipe.toml").exists():
            if self.path.exists() and not unused(self.path):
                raise RecipeError(f"--resume: '{self.path}' holds something, but no run")
            return
        # Through Recipe, so that a key which is newer than that run has its default there; so have plugins' options,
        # save those that are None here and so not written.
        stored, here = plain_of(Recipe.from_plain(read(self.path / "recipe.toml"))), shown(recipe)
        known = shown(stored)
        there = {key: value for key, value in shown(completed(stored, registry)).items() if key in known or key in here}
        differing = [
            f"recipe.{key} is {there.get(key)!r} there and {here.get(key)!r} here"
            for key in sorted(there.keys() | here.keys())
            if key.split("[")[0] not in FREE_KEYS and there.get(key) != here.get(key)
        ]
        if differing:
            raise RecipeError(f"--resume: the run in '{self.path}' is of another recipe: {'; '.join(differing)}")

    @classmethod
    def claim(cls, session: Session) -> RunFolder:
        """A new folder runs/<masker>-<schedule>-<data>-s<seed>, with a number behind it where that is taken."""
        if not processes.first():
            told = processes.told(None)
            if not told:
                raise RecipeError("the first process cannot make a folder for the run; say where with --out")
            return cls(Path(told))
        masking = session.recipe["masking"]
        parts = [masking["strategy"]["use"], masking["curriculum"]["use"], session.recipe["data"]["use"]]
        if session.strategy.default_curriculum is None:
            del parts[1]
        name = "-".join([*parts, f"s{session.seed}"])
        runs = Path("runs")
        try:
            runs.mkdir(exist_ok=True)
            for number in itertools.count(1):
                path = runs / (name if number == 1 else f"{name}-{number}")
                try:
                    path.mkdir()  # two runs that start at once must not get one folder
                except FileExistsError:
                    continue
                break
        except OSError as problem:
            processes.told("")
            raise RecipeError(f"'{runs.absolute()}' cannot be written to: {problem}; say where with --out") from problem
        processes.told(str(path))
        return cls(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep everybody else from writing here; the lock goes with the process, however it ends.

        Raises RecipeError where the folder cannot be made, or is being written to by another run.
        """
        problem, lock = None, None
        if processes.first():
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                lock = FileLock(self.path / "lock", timeout=0)
                lock.acquire()
            except Timeout:
                problem = f"'{self.path}' is being written to by another run{self._writer()}; wait for it, or end it"
            except (OSError, NotImplementedError) as failure:
                problem = f"'{self.path}' cannot be made and locked: {failure}"
        problem = processes.first_heard(problem)
        if problem is not None:
            raise RecipeError(f"--out: {problem}")
        try:
            yield
        finally:
            if lock is not None:
                lock.release()

    def _writer(self) -> str:
        try:
            environment = read_json(self.path / "environment.json")
            return f" (process {environment['process']} on {environment['host']})"
        except (DataError, KeyError):
            return ""

    def open(self, session: Session, console: Console, *, resume: bool) -> bool:
        """Bring the session and the folder to the newest good checkpoint, if asked to; True if there was one."""
        resumed = resume and self.load_newest(session, console)
        if resume:
            self.forget(session)
        return resumed

    def load_newest(self, session: Session, console: Console) -> bool:
        """Load the newest checkpoint that can be read; the damaged ones stay where they are."""
        problems: list[str] = []
        # As the first process sees them: a network's file system may show another an older list.
        names = processes.told("/".join(path.name for path in checkpoint.found(self.checkpoints))) or ""
        for path in [self.checkpoints / name for name in reversed(names.split("/")) if name]:
            state, problem = None, None
            try:
                state = checkpoint.read(path)
            except RecipeError as failure:
                problem = str(failure)
            problem = processes.first_heard(problem)  # what one cannot read, none takes
            if state is None or problem is not None:
                problems.append(problem or "")
                continue
            for known in problems:
                console.print(f"{known}; going back to '{path}'", style="yellow", highlight=False, markup=False)
            checkpoint.load(session, state, path)
            return True
        if problems:
            raise RecipeError(problems[0])
        return False

    def _cut(self, step: int, *, finished: bool) -> None:
        """Forget what came at or after `step`, which is about to be done again."""
        metrics = self.path / "metrics.jsonl"
        if metrics.exists():
            kept = [line for line in read_lines(metrics) if (told := step_line(line)) and told["step"] < step]
            text = "".join(f"{line}\n" for line in kept)
            if text.encode() != metrics.read_bytes():
                replace(metrics, text)
        if step == 0:
            shutil.rmtree(self.path / "masks", ignore_errors=True)
            (self.path / "evaluation.json").unlink(missing_ok=True)
        measured = self.evaluation()
        if not finished and measured.pop("after", None) is not None:
            measured.pop("problems", None)
            write_json(self.path / "evaluation.json", measured)

    def describe(self, session: Session, registry: Registry, facts: Mapping[str, Any]) -> None:
        """Write the resolved recipe and what the run stands on; a resumed run keeps the recipe it began with.

        `facts` are those of `provenance.facts`.

        A finished run stands on what it stood on.
        """
        finished = session.step == session.steps and (self.path / "environment.json").exists()
        if not processes.first() or finished:
            return
        if not (self.path / "recipe.toml").exists():
            replace(self.path / "recipe.toml", write(session.recipe))
        environment = {
            "command": sys.argv,
            "process": os.getpid(),
            "host": socket.gethostname(),
            "processes": processes.world(),
            "device": str(session.device),
            "device_name": torch.cuda.get_device_name(session.device) if session.device.type == "cuda" else "",
            "python": platform.python_version(),
            "platform": platform.platform(),
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in ("maskzoo", "torch", "torchvision", "timm")},
            "plugins": sorted({f"{plugin.distribution} {plugin.version}" for plugin in registry.plugins}),
            **facts,
        }
        write_json(self.path / "environment.json", environment)

    @contextmanager
    def metrics(self) -> Iterator[TextIO]:
        """`metrics.jsonl`, to be appended to; a line a step. Nowhere for all processes but the first."""
        path = self.path / "metrics.jsonl" if processes.first() else Path(os.devnull)
        file = path.open("a", buffering=1)
        try:
            yield file
        finally:
            with suppress(OSError):  # the disk is full: said already, where the line was written
                file.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Say in a sentence that something cannot be written to this folder; other errors pass."""
        try:
            yield
        except OSError as problem:
            there = os.path.abspath(self.path)
            if problem.filename is not None and not os.path.abspath(problem.filename).startswith(there):
                raise
            last = checkpoint.found(self.checkpoints)
            whole = f"the last checkpoint, '{last[-1]}', is whole" if last else "there is no checkpoint yet"
            raise MaskZooError(f"'{self.path}' cannot be written to: {problem}; {whole}") from problem

    def warn(self, sentence: str, console: Console, kind: str = "warnings") -> None:
        """Say a sentence and keep it in `warnings.txt`, or another such file, unless it is there already."""
        line = printable(" ".join(sentence.split()))
        record = self.path / f"{kind}.txt"
        if record.exists() and line in record.read_text(errors="replace").splitlines():
            return
        with self.writing(), record.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        console.print(line, style="yellow", highlight=False, markup=False)

    def forget(self, session: Session) -> None:
        """Forget what came at or after the step to which the session has been brought."""
        if processes.first():
            self._cut(session.step, finished=session.step == session.steps)
        processes.wait()

    def usual_speeds(self) -> dict[str, float]:
        """The median over the steps of the images a second: of all, of the loader alone, of the step alone."""
        steps = list(filter(None, map(step_line, read_lines(self.path / "metrics.jsonl"))))
        names = ("images_per_second", "loader_images_per_second", "step_images_per_second")
        known = {name: [step[name] for step in steps if is_number(step.get(name))] for name in names}
        return {name: statistics.median(speeds) for name, speeds in known.items() if speeds}

    def evaluation(self) -> dict[str, Any]:
        """What has been measured so far; RecipeError where that cannot be read."""
        path = self.path / "evaluation.json"
        try:
            held: dict[str, Any] = read_json(path, missing={})
            for name, kind in SECTIONS.items():
                if not isinstance(held.get(name, kind()), kind):
                    raise DataError(f"'{path}' cannot be read: '{name}' is no {'list' if kind is list else 'table'}")
        except DataError as problem:
            raise RecipeError(f"{problem}; rename it, and what was in it can be measured again") from None
        return held

    def add_evaluation(
        self,
        when: str,
        figures: Mapping[str, float | None],
        evaluators: Sequence[Any],
        names: Sequence[str],
        problems: Mapping[str, str],
    ) -> None:
        """Add figures under "before" or "after", with the settings that they were measured under.

        A figure begins with one of the `names`, that of its evaluator; `problems` says by name why there are none.
        """
        if not processes.first():
            return
        settings = {
            "evaluators": [
                {"use": evaluator.name, **attrs.asdict(evaluator)} if attrs.has(type(evaluator)) else evaluator.name
                for evaluator in evaluators
            ],
            "names": list(names),
            "features": "mean of patch tokens of the whole image, eval mode",
        }
        whole = {**self.evaluation(), "settings": settings, when: dict(figures)}
        if problems:
            whole["problems"] = dict(problems)
        write_json(self.path / "evaluation.json", whole)


def unused(path: Path) -> bool:
    """Whether this is a folder without anything in it; a run that was killed at once may have left a lock."""
    left = ("lock", "recipe.toml.part")  # the latter by an older MaskZoo
    return path.is_dir() and all(one.name in left or LEFTOVER.fullmatch(one.name) for one in path.iterdir())
