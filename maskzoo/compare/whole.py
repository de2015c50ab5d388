"""A comparison from its plan to its report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from maskzoo.compare.keeping import refuse_foreign, refuse_others
from maskzoo.compare.launch import locked, speed_of, train_missing
from maskzoo.compare.plan import Plan, plan, planned, table
from maskzoo.compare.report import report, tell
from maskzoo.errors import MaskZooError, RecipeError, StoppedError
from maskzoo.recipe import parse
from maskzoo.registry import Registry
from maskzoo.signals import as_typed


def compare_all(
    base: Mapping[str, Any] | None,
    registry: Registry,
    console: Console,
    *,
    maskers: str | None,
    vary: Sequence[str],
    seeds: str,
    baseline: str | None,
    equal: str,
    jobs: int,
    devices: str,
    launcher: str,
    launch: Sequence[str],
    out: Path,
    dry_run: bool,
    scores: str = "",
    with_command: bool = False,
    replace: bool = False,
) -> None:
    """Plan, train what is missing, and report; without a recipe, go on with the plan that is in `out`.

    A run that fails does not keep the others from being trained and reported: MaskZooError tells of it at the end.
    Raises RecipeError for a plan that cannot be, and StoppedError when a signal ended it.
    """
    settings = _settings(launch, launcher)
    if launcher == "submitit" and (jobs > 1 or devices):
        raise RecipeError(
            "--launcher submitit: how many run at once, and where, is SLURM's; leave --jobs and --devices"
        )
    if equal == "time" and launcher == "submitit":
        raise RecipeError("--equal time: speeds are measured on this machine, not where submitit sends the runs")
    refuse_foreign(out)

    def planned_now() -> Plan:
        if base is None:
            return planned(out)
        return plan(
            out,
            base,
            registry,
            maskers=maskers,
            vary=vary,
            seeds=seeds,
            baseline=baseline,
            equal=equal,
            speed_of=None if dry_run else lambda name, plain: speed_of(out, registry, console, name, plain),
            keep=not dry_run,
            another=replace,
        )

    if dry_run:
        made = planned_now()
        console.print(table(made))
        _tell_clashes(made, registry, console)
        if any(row.steps is None for row in made.rows) and equal == "time":
            console.print("the steps of the others are known when their speed has been measured")
        return
    names = [name.strip() for name in devices.split(",") if name.strip()]
    resume = _resume(out, jobs, devices, launcher, launch)
    with locked(out):  # from the plan on: two plans in one folder would make cells of two recipes
        try:
            made = planned_now()
            refuse_others(out, made.paths, another=replace)  # before hours are spent
            console.print(table(made))
            _tell_clashes(made, registry, console)
            failures = train_missing(
                made,
                registry,
                console,
                jobs=jobs,
                devices=names,
                launcher=launcher,
                settings=settings,
                resume=resume,
            )
        except StoppedError as problem:
            raise StoppedError(problem.moment, resume if (out / "plan.json").exists() else None) from None
        if not any(job.done for job in made.jobs):
            raise MaskZooError("\n".join(failures) or f"none of the runs in '{out}' has finished")
        comparison = report(
            out, made.paths, made.baseline,
            equal=made.equal, flops=made.flops, remarks=failures, asked=made.asked, with_command=with_command,
            scores=scores, another=replace,
        )  # fmt: skip
    tell(comparison, out, console, scores)
    if failures:
        raise MaskZooError(f"{len(failures)} of {len(made.jobs)} runs failed; '{out}' reports on the others")


def _resume(out: Path, jobs: int, devices: str, launcher: str, launch: Sequence[str]) -> str:
    """The command that resumes a comparison whose plan is in `out`."""
    options = ["--jobs", str(jobs)] * (jobs > 1) + ["--devices", devices] * bool(devices)
    options += ["--launcher", launcher] * (launcher != "local")
    return as_typed(["compare", "--out", str(out), *options, *(text for one in launch for text in ("--launch", one))])


def _tell_clashes(made: Plan, registry: Registry, console: Console) -> None:
    """Say which maskers of the cells are offered by other plugins too, and whose are trained."""
    starts = tuple(f"strategy '{re.split('[+@: ]', row.name)[0]}' is offered by " for row in made.rows)
    for sentence in registry.clashes():
        if sentence.startswith(starts):
            console.print(sentence, style="yellow", highlight=False, markup=False)


def _settings(launch: Sequence[str], launcher: str) -> dict[str, Any]:
    """--launch KEY=VALUE as what submitit is told."""
    if launch and launcher != "submitit":
        raise RecipeError("--launch: goes with --launcher submitit")
    settings = {}
    for text in launch:
        key, equals, value = text.partition("=")
        if not equals:
            raise RecipeError(f"--launch: expected KEY=VALUE, got '{text}'")
        settings[key.strip()] = parse(value.strip())
    return settings
