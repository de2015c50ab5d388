"""Every key of a recipe and every option of every plugin with values that make no sense: refused by name, or made.

Nothing but a MaskZooError may come out, within seconds; its message names the key.
"""

from __future__ import annotations

import copy
import os
import random
import signal
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
from helpers import REGISTRY, TINY_BACKBONE, TINY_OBJECTIVE, noise_images
from test_timm_data import write_folder, write_shards

from maskzoo import MaskZooError, Recipe, RecipeError
from maskzoo.build import build
from maskzoo.plain import quoted, shortened
from maskzoo.recipe import OptimizerRecipe, make, parse, put

pytestmark = pytest.mark.filterwarnings("ignore")  # what libraries say of such values is not ours
SECONDS = 20  # for one try, on a machine that does other things too
NAN, INF = float("nan"), float("inf")
DEEP: Any = 0
for _ in range(3000):
    DEEP = [DEEP]
NASTY: tuple[Any, ...] = (
    *(NAN, INF, -INF, -0.0, 1e-320, 1e308, -1e308, 0.5, 0, -1, 3, 2**31, 2**53, 2**63 - 1, -(2**63), 2**63, 10**30),
    *(10**5000, 99_999_999, True, "", "x", "linear:0:9", "a" * 5000, "\0", os.fsdecode(b"\xe9"), "../x", "\x1b[31m"),
    *([], [1, 2, 3], [NAN], [[]], [2**70], {}, {"use": "x"}, {"use": 3}, {"x": {"y": NAN}}, DEEP),
)
DATA = noise_images(count=16, labelled=True)
KINDS = {
    "strategy": "masking.strategy",
    "objective": "objective",
    "backbone": "backbone",
    "evaluator": "evaluation[0]",
    "logger": "train.loggers[0]",
    "schedule": "masking.ratio",
    "dataset": "data",
}
NEEDED: dict[str, dict[str, Any]] = {  # options without which a plugin cannot be made
    "mix": {"parts": ["random", "block"]},
    "union": {"parts": ["random", "block"]},
    "switch": {"parts": ["random", "block"], "at": [0.5]},
    "constant": {"value": 0.5},
    **{key: {"start": 0.5, "end": 0.6} for key in ("linear", "cosine", "step", "cyclic")},
    "vit": {"options": TINY_BACKBONE["options"]},
    "cnn": {"timm": "test_resnet", "image_size": 32},
    "swin": {
        "timm": "swin_tiny_patch4_window7_224",
        "options": {"depths": [1, 1], "embed_dim": 8, "num_heads": [1, 1]},
    },
    "hiera": {"timm": "hiera_tiny_224", "options": {"embed_dim": 8, "stages": [1, 1, 1, 1]}},
    "beit": {"timm": "beit_base_patch16_224", "options": {"embed_dim": 24, "depth": 1, "num_heads": 2}},
}
FETCHING = ("cifar10", "fashion-mnist")  # whose root is downloaded into
SCHEDULED = ("linear", "cosine", "step", "cyclic", "constant")  # that a ratio can follow
BACKBONE_OPTIONS = (
    *("depth", "embed_dim", "num_heads", "mlp_ratio", "act_layer", "norm_layer", "drop_rate", "qkv_bias"),
    *("class_token", "reg_tokens", "init_values", "img_size", "checkpoint_path", "pretrained_cfg", "block_fn", "zzz"),
)
OPTIMIZER_OPTIONS = ("eps", "foreach", "fused", "amsgrad", "momentum", "betas", "lr", "weight_decay", "opt", "zzz")


def tiny(**sections: Any) -> dict[str, Any]:
    """The plain values of a run that is built in no time."""
    base = copy.deepcopy({"backbone": TINY_BACKBONE, "objective": TINY_OBJECTIVE, "evaluation": ["knn"]})
    return {**base, "train": {"device": "cpu", "batch_size": 4, "epochs": 1, "precision": "fp32"}, **sections}


def core_keys() -> Iterator[str]:
    for field in attrs.fields(Recipe):
        kind = getattr(field.default, "factory", None)
        yield field.name
        if isinstance(kind, type) and attrs.has(kind):
            yield from (f"{field.name}.{inner.name}" for inner in attrs.fields(kind))
    yield from (f"masking.optimizer.{field.name}" for field in attrs.fields(OptimizerRecipe))
    yield from (f"backbone.options.{name}" for name in BACKBONE_OPTIONS)
    yield from (f"{path}.options.{name}" for path in ("optimizer", "masking.optimizer") for name in OPTIMIZER_OPTIONS)


def option_keys() -> Iterator[tuple[str, str, str]]:
    """(kind, name, option) of every option of every plugin that comes with MaskZoo."""
    for kind in KINDS:
        for name, cls in REGISTRY.classes(kind).items():  # type: ignore[arg-type]
            if name in FETCHING or (kind == "schedule" and name not in SCHEDULED):
                continue
            yield from ((kind, name, field.name) for field in attrs.fields(cls) if field.init)


CASES = [
    *((key, None, value) for key in core_keys() for value in range(len(NASTY))),
    *((option, (kind, name), value) for kind, name, option in option_keys() for value in range(len(NASTY))),
]


@contextmanager
def within(seconds: int) -> Iterator[None]:
    def late(number: int, frame: types.FrameType | None) -> None:
        raise TimeoutError(f"not done after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def tried(key: str, plugin: tuple[str, str] | None, value: Any, data: Path) -> None:
    """Do all that a run does before it trains."""
    plain, dataset = tiny(), DATA
    if plugin is None:
        if key.startswith("masking.optimizer"):
            plain["masking"] = {"strategy": {"use": "clmae", "depth": 1, "heads": 2}, "optimizer": {}}
        put(plain, key, value)
    else:
        kind, name = plugin
        use = {"use": name, **copy.deepcopy(NEEDED.get(name, {})), **roots(name, data), key: value}
        if "options" in NEEDED.get(name, {}) and key == "options" and isinstance(value, dict):
            use["options"] = {**NEEDED[name]["options"], **value}
        plain["train"]["loggers"] = []
        if kind not in ("evaluator", "logger"):
            put(plain, KINDS[kind], use)
        if kind == "evaluator":
            plain["evaluation"] = [use]
        if kind == "logger":
            plain["train"]["loggers"] = [use]
    recipe = Recipe.from_plain(plain)
    if "data" in plain:
        dataset = make(REGISTRY, "dataset", recipe.data, "recipe.data")
    if dataset.size[0] > 64 and dataset is not DATA:
        return  # a large image is a good one
    build(recipe, dataset, REGISTRY, steps_in_epoch=4)
    for number, use in enumerate(recipe.evaluation):
        make(REGISTRY, "evaluator", use, f"recipe.evaluation[{number}]")
    for number, use in enumerate(recipe.train.loggers):
        make(REGISTRY, "logger", use, f"recipe.train.loggers[{number}]")


def roots(name: str, data: Path) -> dict[str, Any]:
    return {
        "folder": {"root": str(data / "folder")},
        "shards": {"root": str(data / "shards"), "train_split": "train-*.tar"},
        "timm": {"root": str(data / "folder")},
    }.get(name, {})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("data")
    write_folder(root / "folder")
    write_shards(root / "shards", shards=1)
    before, here = os.environ.get("XDG_CACHE_HOME"), os.getcwd()
    os.environ["XDG_CACHE_HOME"], os.environ["HF_HUB_OFFLINE"] = str(root / "cache"), "1"
    os.chdir(root)
    yield root
    os.chdir(here)
    os.environ.pop("HF_HUB_OFFLINE")
    os.environ.pop("XDG_CACHE_HOME") if before is None else os.environ.update(XDG_CACHE_HOME=before)


def wrong(case: tuple[str, tuple[str, str] | None, int], data: Path) -> str | None:
    """What is wrong with the answer to a case; None for a refusal that names the key, and for what can be made."""
    key, plugin, number = case
    value, last = NASTY[number], key.split(".")[-1]
    what = f"{':'.join(plugin) if plugin else 'recipe'}.{key} = {quoted(value)}"
    try:
        with within(SECONDS):
            tried(key, plugin, value, data)
    except MaskZooError as problem:
        said = shortened(str(problem))  # as the command line shows it
        if not said.startswith("recipe"):
            return f"{what}: no path in {said[:200]}"
        # What a library finds wrong with an option is told at the option's table.
        if plugin is None and last not in said and ".options" not in said and value != {"use": "x"}:
            return f"{what}: not named in {said[:200]}"
        return f"{what}: {len(said)} letters" if len(said) > 3000 else None
    except BaseException as problem:
        return f"{what}: {type(problem).__name__}: {str(problem)[:200]}"
    return None


def test_a_sample_of_nasty_values_is_refused_by_name_or_made(data: Path):
    sample = random.Random(0).sample(CASES, 40)
    assert [told for case in sample if (told := wrong(case, data))] == []


@pytest.mark.long
@pytest.mark.parametrize("share", range(4))
def test_a_larger_sample_of_nasty_values_is_refused_by_name_or_made(share: int, data: Path):
    cases = random.Random(1).sample(CASES, 480)[share::4]
    assert [told for case in cases if (told := wrong(case, data))] == []


@pytest.mark.long
@pytest.mark.parametrize("share", range(8))
def test_every_key_with_every_nasty_value_is_refused_by_name_or_made(share: int, data: Path):
    assert [told for case in CASES[share::8] if (told := wrong(case, data))] == []


@pytest.mark.parametrize("text", ["9" * 5000, "-" + "9" * 5000, "0x" + "f" * 5000, "[" * 3000, "{a=" * 3000, "1e999"])
def test_what_is_typed_is_read_or_refused_whatever_it_is(text: str):
    try:
        read = parse(text)
    except MaskZooError as problem:
        said = str(problem)
    else:
        with pytest.raises(RecipeError, match=r"^recipe\.train\.seed") as caught:
            Recipe.from_plain(tiny(train={"seed": read}))
        said = str(caught.value)
    assert len(said) < 500
