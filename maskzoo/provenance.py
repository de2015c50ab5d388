"""What a run was made of, beside its recipe: the plugins that it used, what they cite, data, precision, hardware."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from maskzoo.data.remarks import remarks_of
from maskzoo.errors import MaskZooError
from maskzoo.protocols import Dataset
from maskzoo.recipe import KIND_OF_KEY
from maskzoo.registry import Kind, Registry
from maskzoo.sources import source_of
from maskzoo.train import Session


def facts(session: Session, dataset: Dataset, registry: Registry) -> dict[str, Any]:
    """What a reader of the results has to know and the recipe does not say, as plain values for environment.json."""
    backbone: Any = session.objective.backbone
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _processor(),
        "precision": session.engine.precision,
        "images": {"train": len(dataset.train), "test": len(dataset.test)},
        "classes": None if dataset.classes is None else len(dataset.classes),
        "class_names": None if dataset.classes is None else [str(name) for name in dataset.classes],
        "remarks": remarks_of(dataset, backbone),
        "image_size": list(session.image_size),
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "steps": session.steps,
        "curriculum": session.strategy.default_curriculum is not None,
        "used": used(session.recipe, registry),
    }


def used(recipe: Mapping[str, Any], registry: Registry) -> list[dict[str, str]]:
    """The plugins that a resolved recipe names: kind, name, distribution, version, and the paper that each cites."""
    found: list[dict[str, str]] = []
    for kind, name in dict.fromkeys(_named(recipe)):
        try:
            cls, plugin = registry.find(kind, name), registry.owner(kind, name)
        except MaskZooError:
            continue  # the name of something else, such as an optimizer
        entry = {"kind": kind, "name": name}
        if plugin is not None:
            entry |= {"distribution": plugin.distribution, "version": plugin.version}
            if not plugin.ours:  # so that other code of the same version is noticed
                entry |= {"module": cls.__module__, "source": source_of(cls.__module__, plugin.distribution)}
        paper = getattr(cls, "paper", "")
        found.append({**entry, "paper": paper} if isinstance(paper, str) and paper else entry)
    return found


def clashes(recipe: Mapping[str, Any], registry: Registry) -> list[str]:
    """A sentence for each name of a resolved recipe that another plugin offers too, saying which is used."""
    names = {(one["kind"], one["name"]) for one in used(recipe, registry)}
    starts = tuple(f"{kind} '{name}' is offered by " for kind, name in names)
    return [sentence for sentence in registry.clashes() if sentence.startswith(starts)]


def _named(plain: Any, kind: Kind = "schedule") -> Iterator[tuple[Kind, str]]:
    """(kind, name) of every use in a recipe, at any depth."""
    if isinstance(plain, list | tuple):
        for item in plain:
            yield from _named(item, kind)
    elif isinstance(plain, Mapping):
        if isinstance(plain.get("use"), str):
            yield kind, plain["use"]
        for key, item in plain.items():
            yield from _named(item, kind if key == "parts" else KIND_OF_KEY.get(key, "schedule"))


def _processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
