"""What was trained, and how: what all cells share, under which settings it was measured, by which command."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from maskzoo.compare.cells import Comparison, plain_value
from maskzoo.compare.readings import Reading
from maskzoo.compare.scores import data_name
from maskzoo.plain import named

UNKNOWN = "not recorded"
SEVERAL = 4  # different values that a table has room for


def shared(comparison: Comparison) -> list[tuple[str, str]]:
    """(what, value) of everything that a paper's "implementation details" need; values that differ are all given."""
    runs = [run for cell in comparison.trained for run in cell.runs.values()]
    if not runs:
        return []
    rows: list[tuple[str, Callable[[Reading], str]]] = [
        ("data", lambda run: data_name(run.recipe.get("data", "?"))),
        ("images", _images),
        ("image size", _size),
        ("crop", _crop),
        ("flip", lambda run: _yes(run.keys.get("augment.flip"), "where the data allow it")),
        ("backbone", _backbone),
        ("weights to start from", _weights),
        ("objective", lambda run: _use(run.recipe.get("objective"), skip=("decoder",))),
        ("decoder", _decoder),
        ("masking ratio", lambda run: _use(run.recipe.get("masking", {}).get("ratio"))),
        ("optimizer", _optimizer),
        ("learning rate", lambda run: _use(run.recipe.get("optimizer", {}).get("lr"))),
        ("batch size", _batch),
        ("epochs", _epochs),
        ("optimizer steps", lambda run: f"{run.steps:,}"),
        ("precision", lambda run: str(run.environment.get("precision") or run.keys.get("train.precision") or UNKNOWN)),
        ("device", _device),
        ("processes", lambda run: str(run.environment.get("processes") or UNKNOWN)),
        ("threads", lambda run: str(run.environment.get("threads") or UNKNOWN)),
        ("software", _software),
        ("date", lambda run: str(run.environment.get("date") or "")[:10] or UNKNOWN),
    ]
    told = [(what, _all_of(runs, words)) for what, words in rows]
    seeds = ", ".join(map(str, comparison.seeds))
    return [(what, value) for what, value in [*told[:-5], ("seeds", seeds), *told[-5:]] if value]


def _weights(run: Reading) -> str:
    held = run.recipe.get("weights")
    if not isinstance(held, Mapping):
        return plain_value(held) or "none: random initialisation"
    said = [f"{key} {plain_value(value)}" for key, value in held.items() if key != "file"]
    return ", ".join([plain_value(held.get("file")), *said])


def evaluators(comparison: Comparison) -> list[tuple[str, str]]:
    """(evaluator, its options, data and pooling) of everything that was measured after training, each setting once."""
    found: dict[str, tuple[str, str]] = {}
    for cell in comparison.cells:
        for run in cell.runs.values():
            for measured in (one for one in run.measured if one.metrics):
                options = {key: value for key, value in measured.evaluator.items() if key != "use"}
                words = [f"{key} {plain_value(value)}" for key, value in options.items() if value is not None]
                words += [f"pooling {measured.pooling}"]
                words += [f"on {data_name(measured.data)}"] if measured.data is not None else []
                row = str(measured.evaluator.get("use", "?")), ", ".join(words)
                found.setdefault(repr(row), row)
    return list(found.values())


def command(asked: Mapping[str, Any]) -> str:
    """The options of a comparison as a command, as far as its plan knows them; never what somebody has typed.

    What was typed may hold a password; the recipe, which comes in its place, is what all cells share.
    """
    words = ["maskzoo", "compare"]
    for name in ("maskers", "seeds", "baseline", "equal"):
        if isinstance(asked.get(name), str) and asked[name]:
            words += [f"--{name}", asked[name]]
    for text in asked.get("vary") or ():
        words += ["--vary", str(text)]
    return shlex.join(words)


def without_home(text: str) -> str:
    """A text in which no path says whose home it is in."""
    return re.sub(r"(?<![\w.])(?:/(?:home|Users)/[^/\s\"':,]+|/root(?=/)|[A-Za-z]:\\Users\\[^\\\s\"']+)", "~", text)


def _all_of(runs: Sequence[Reading], words: Callable[[Reading], str]) -> str:
    values: list[str] = []
    for run in runs:
        try:
            value = words(run)
        except (AttributeError, TypeError, ValueError, KeyError, IndexError):  # of another form than ours
            value = UNKNOWN
        if value not in values:
            values.append(value)
    if values == [UNKNOWN]:
        return ""
    more = f" and {len(values) - SEVERAL} other values" if len(values) > SEVERAL else ""
    return ("differs: " if len(values) > 1 else "") + "; ".join(values[:SEVERAL]) + more


def _images(run: Reading) -> str:
    images, classes = run.environment.get("images"), run.environment.get("classes")
    if not isinstance(images, dict):
        return UNKNOWN
    held = f"{int(images['train']):,} for training, {int(images['test']):,} for testing"
    return held + (f", {int(classes):,} classes" if classes else ", no labels")


def _size(run: Reading) -> str:
    size = run.environment.get("image_size")
    return " x ".join(str(int(side)) for side in size) + " pixels" if isinstance(size, list) else UNKNOWN


def _crop(run: Reading) -> str:
    scale = run.keys.get("augment.scale")
    return f"resized, {scale[0]:g} to {scale[1]:g} of the area" if isinstance(scale, list) else UNKNOWN


def _backbone(run: Reading) -> str:
    count = run.environment.get("parameters")
    size = f"; {int(count) / 1e6:.3g} M parameters" if count else ""
    held = run.recipe.get("backbone")
    if isinstance(held, Mapping):  # without what other rows say, and without what is switched off
        aside = ("channels", "data_size", "image_size")
        held = {key: value for key, value in held.items() if key not in aside and value is not False}
    return _use(held) + size


def _decoder(run: Reading) -> str:
    objective = run.recipe.get("objective")
    if not isinstance(objective, Mapping):
        return ""
    words = [
        f"{key.removeprefix('decoder_')} {plain_value(value)}"
        for key, value in objective.items()
        if key.startswith("decoder_")
    ]
    kind = plain_value(objective["decoder"]) if "decoder" in objective else ""
    return ", ".join([kind, *words] if kind else words)


def _optimizer(run: Reading) -> str:
    held = {
        key: value for key, value in run.recipe.get("optimizer", {}).items() if key != "lr" and value not in (None, {})
    }
    return _use(held)


def _batch(run: Reading) -> str:
    pieces = int(run.keys.get("train.accumulate", 1))
    return f"{run.keys.get('train.batch_size')} images" + (f", in {pieces} pieces" if pieces > 1 else "")


def _epochs(run: Reading) -> str:
    images = run.environment.get("images")
    if isinstance(images, dict) and images.get("train"):
        done = run.images / int(images["train"])
        return f"{done:.3g} ({run.images:,} images seen)"
    return UNKNOWN if run.keys.get("train.steps") else str(run.keys.get("train.epochs", UNKNOWN))


def _device(run: Reading) -> str:
    name = run.environment.get("device_name") or run.environment.get("cpu")
    device = str(run.environment.get("device") or UNKNOWN)
    return f"{device} ({name})" if name else device


def _software(run: Reading) -> str:
    versions = run.environment.get("versions", {})
    held = [f"{name} {version}" for name, version in versions.items()]
    python = run.environment.get("python")
    return ", ".join([*held, f"Python {python}"] if python else held) or UNKNOWN


def _use(use: Any, skip: tuple[str, ...] = ()) -> str:
    """A use as a reader would write it: its name, and its options; nested ones in brackets."""
    if not isinstance(use, Mapping):
        return UNKNOWN if use is None else plain_value(named(use))
    options = []
    for key, value in use.items():
        if key in ("use", "timm") or (skip and key.startswith(skip)) or value is None:
            continue
        options.append(f"{key} ({_use(value)})" if isinstance(value, Mapping) else f"{key} {plain_value(value)}")
    name = str(use.get("timm") or use.get("use") or "")
    if name == "constant" and set(use) == {"use", "value"}:
        return plain_value(use["value"])
    return f"{name}: {', '.join(options)}" if name and options else name or ", ".join(options)


def _yes(value: Any, otherwise: str) -> str:
    return otherwise if value is None else "yes" if value else "no"
