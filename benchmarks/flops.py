"""What one image costs in a training step, for each masker and size of backbone: FLOPs from torch's counter.

    python benchmarks/flops.py [--backbone NAME ...] [--masker NAME ...]

A step is counted whole, as `maskzoo cost` does: forward and backward, the strategy's own step and the teacher's look
included. Nothing is timed.
"""

from __future__ import annotations

import argparse
import itertools

from rich.console import Console
from rich.table import Table

from maskzoo import Recipe, Registry
from maskzoo.cost import Shape, flops_per_image

BACKBONES = ("vit_small_patch16_224", "vit_base_patch16_224", "vit_large_patch16_224")
MASKERS = ("random", "block", "attmask", "clmae")
IMAGENET = Shape((224, 224), images=1_281_167)  # labels make no difference to these


def gflop_per_image(backbone: str, masker: str, registry: Registry) -> float:
    """GFLOP for one image in one whole step, with MAE's decoder of 8 blocks of 512 channels."""
    recipe = Recipe.from_plain(
        {
            "backbone": {"timm": backbone, "position": "sin-cos"},
            "objective": {"use": "reconstruct"},
            "masking": {"strategy": masker},
        }
    )
    return flops_per_image(recipe, registry, IMAGENET).total / 1e9


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
        table.add_row(backbone, masker, f"{cost:.1f}", f"{ratio:.2f}", f"{cost * len(IMAGENET) / 1e9:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
