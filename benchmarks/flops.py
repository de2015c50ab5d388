"""What one image costs in a training step, for each masker and size of backbone: FLOPs from torch's counter.

    python benchmarks/flops.py [--backbone NAME ...] [--masker NAME ...]

A step is counted whole: forward and backward, the strategy's own step and the teacher's look included. Two FLOPs are a
multiplication and an addition; only matrix products, convolutions and attention are counted. Nothing is timed.
"""

from __future__ import annotations

import argparse
import itertools

import torch
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from maskzoo import Recipe, Registry, Sample
from maskzoo.build import build
from maskzoo.protocols import Batch
from maskzoo.train import train

BACKBONES = ("vit_small_patch16_224", "vit_base_patch16_224", "vit_large_patch16_224")
MASKERS = ("random", "block", "attmask", "clmae")
IMAGENET = 1_281_167  # training images
BATCH = 2


class NoImages:
    """A data set of nothing but its sizes."""

    name = "none"
    channels = 3
    size = (224, 224)
    classes = None
    flip = True
    mean = (0.5,) * 3
    std = (0.25,) * 3

    @property
    def train(self) -> NoImages:
        """Itself, as a split."""
        return self

    test = train

    def __len__(self) -> int:
        return BATCH

    def __getitem__(self, index: int) -> Sample:
        return Sample(torch.zeros(3, *self.size, dtype=torch.uint8))


def gflop_per_image(backbone: str, masker: str, registry: Registry) -> float:
    """GFLOP for one image in one whole step, with MAE's decoder of 8 blocks of 512 channels."""
    recipe = Recipe.from_plain(
        {
            "backbone": {"timm": backbone, "position": "sin-cos"},
            "objective": {"use": "reconstruct"},
            "masking": {"strategy": masker},
            "train": {"batch_size": BATCH, "steps": 1, "device": "cpu", "precision": "fp32"},
        }
    )
    session = build(recipe, NoImages(), registry, steps_in_epoch=1)  # type: ignore[arg-type]
    images = torch.randn(BATCH, 3, 224, 224)
    # As plain matrix products, since the counter does not know the CPU's fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        next(train(session, [Batch(images, None, torch.arange(BATCH))]))
    return counter.get_total_flops() / BATCH / 1e9


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--backbone", nargs="+", default=BACKBONES)
    parser.add_argument("--masker", nargs="+", default=MASKERS)
    chosen = parser.parse_args()
    registry = Registry()
    table = Table("backbone", "masker", "GFLOP an image", "of random's", "EFLOP an epoch", box=None)
    cheapest: dict[str, float] = {}
    for backbone, masker in itertools.product(chosen.backbone, chosen.masker):
        cost = gflop_per_image(backbone, masker, registry)
        ratio = cost / cheapest.setdefault(backbone, cost)
        table.add_row(backbone, masker, f"{cost:.1f}", f"{ratio:.2f}", f"{cost * IMAGENET / 1e9:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
