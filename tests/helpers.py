"""Tiny real models and made-up data for the tests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from scipy.stats import chi2
from torch import Tensor

from maskzoo import Metric, Recipe, Registry, Sample, Session
from maskzoo.build import build
from maskzoo.measured import entries, names_of
from maskzoo.measured import read as read_evaluation
from maskzoo.protocols import Batch
from maskzoo.recipe import make

REGISTRY = Registry()
TINY_BACKBONE = {
    "timm": "vit_tiny_patch16_224",
    "patch_size": 4,
    "position": "sin-cos",
    "options": {"embed_dim": 24, "depth": 2, "num_heads": 2},
}
TINY_OBJECTIVE = {"use": "reconstruct", "decoder_dim": 16, "decoder_depth": 1}
TINY_LR = {"use": "cosine", "start": 1.5e-3, "end": 5e-4, "warmup": 0.05}


@attrs.define(eq=False)
class Images:
    """A data set of images [M, C, H, W] uint8 in memory; it matches the protocols of a data set and of its splits."""

    name = "images"
    images: Tensor
    labels: list[int] | None = None
    flip: bool = False
    valid: Tensor | None = None  # [M, C, H, W] bool, which pixels were measured

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        extras = {} if self.valid is None else {"valid": self.valid[index]}
        return Sample(self.images[index], None if self.labels is None else self.labels[index], extras)

    @property
    def train(self) -> Images:
        return self

    @property
    def test(self) -> Images:
        return self

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        return tuple(self.images.shape[2:])

    @property
    def classes(self) -> list[str] | None:
        return None if self.labels is None else [str(label) for label in sorted(set(self.labels))]

    @property
    def mean(self) -> tuple[float, ...]:
        return (0.5,) * self.channels

    @property
    def std(self) -> tuple[float, ...]:
        return (0.25,) * self.channels


def noise_images(
    count: int = 32, channels: int = 3, height: int = 32, width: int = 32, labelled: bool = False
) -> Images:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)
    return Images(images, [index % 3 for index in range(count)] if labelled else None)


def with_holes(images: Images, stored: float = math.nan) -> Images:
    """The same images as float32, of which pixels here and there, whole patches too, were not measured."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(len(images), 1, 4, 4, generator=generator) > 0.4
    fine = torch.rand(images.images.shape, generator=generator) > 0.03
    valid = coarse.repeat_interleave(images.size[0] // 4, 2).repeat_interleave(images.size[1] // 4, 3) & fine
    levels = torch.where(valid, images.images.float() / 255, stored)
    return attrs.evolve(images, images=levels, valid=valid)


def tiny_recipe(strategy: Any = "random", **sections: Any) -> Recipe:
    """A recipe of a tiny model; keyword arguments replace sections, `masking` is merged with the strategy.

    In fp32 unless said otherwise, so that figures can be compared closely where the processor has bf16 too.
    """
    masking = {"strategy": strategy, **sections.pop("masking", {})}
    training = {"precision": "fp32", "epochs": 8, "batch_size": 16, **sections.pop("train", {"steps": 4})}
    plain = {
        "backbone": TINY_BACKBONE,
        "objective": TINY_OBJECTIVE,
        "masking": masking,
        "optimizer": {"lr": TINY_LR, **sections.pop("optimizer", {})},
        "train": training,
    }
    return Recipe.from_plain({**plain, **sections})


def tiny_session(strategy: Any = "random", dataset: Images | None = None, **sections: Any) -> Session:
    dataset = noise_images() if dataset is None else dataset
    return build(tiny_recipe(strategy, **sections), dataset, REGISTRY, steps_in_epoch=4)


def strategy_of(use: Any, objective: Any = None) -> Any:
    """A live strategy, set up on an objective if one is given."""
    strategy = make(REGISTRY, "strategy", use, "strategy")
    if objective is not None:
        strategy.setup(objective)
    return strategy


def tiny_objective(channels: int = 3, size: tuple[int, int] = (32, 32), **options: Any) -> Any:
    backbone = make(
        REGISTRY, "backbone", {"use": "vit", **TINY_BACKBONE}, "backbone", channels=channels, data_size=list(size)
    )
    objective = make(REGISTRY, "objective", {**TINY_OBJECTIVE, **options}, "objective")
    objective.setup(backbone)
    return objective


def random_images(count: int = 6, channels: int = 3, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


def random_batches(steps: int, count: int = 6, seed: int = 0, **shape: int) -> Iterator[Batch]:
    for step in range(steps):
        yield Batch(random_images(count, seed=seed + step, **shape), None, torch.arange(count))


def state_of(module: Any) -> Mapping[str, Tensor]:
    """A copy of a module's state, to compare with later."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def same_state(module: Any, before: Mapping[str, Tensor]) -> bool:
    """Whether nothing has changed, to the bit."""
    after = module.state_dict()
    return before.keys() == after.keys() and all(torch.equal(after[name], value) for name, value in before.items())


def chance_of_uniform(hidden: Tensor) -> float:
    """How likely such uneven counts by position are, if each image of [B, N] hides as many, drawn uniformly."""
    images, patches = hidden.shape
    share = float(hidden.double().mean())
    expected = images * share
    # Drawn without replacement, the counts of an image are correlated by -1 / (N - 1).
    statistic = float(((hidden.sum(dim=0) - expected) ** 2).sum()) / (expected * (1 - share)) * (patches - 1) / patches
    return float(chi2.sf(statistic, patches - 1))


def values(metrics: Iterable[Metric]) -> dict[str, float]:
    """{name: value} of what an evaluator yields."""
    return {metric.name: metric.value for metric in metrics}


def measured_by(folder: Path, moment: str) -> dict[str, float | None]:
    """{EVALUATOR/METRIC: value} of what a run has measured of itself "before" or "after" training."""
    found = [one for one in entries(read_evaluation(folder / "evaluation.json")) if one.when == moment]
    return {
        f"{name}/{metric['name']}": metric["value"]
        for name, one in zip(names_of(found), found, strict=True)
        for metric in one.plain["metrics"]
    }
