"""AttMask: the published masks, and the curriculum factor on real attention."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import random_images, strategy_of, tiny_objective
from safetensors.torch import load_file
from scipy.stats import chisquare
from torch import Tensor

from maskzoo import MaskingContext

GOLDEN = load_file(Path(__file__).parent / "data" / "golden" / "attmask_a.safetensors")


def looking_at(attention: Tensor) -> SimpleNamespace:
    """An objective whose backbone's attention [B, N] is given."""
    return SimpleNamespace(backbone=SimpleNamespace(grid=(8, 8), attention=lambda images: attention))


def context_of(attention: Tensor, ratio: float, factor: float, seed: int = 0) -> MaskingContext:
    images = torch.zeros(len(attention), 3, 32, 32)
    return MaskingContext.of(looking_at(attention), images, ratio, factor=factor, seed=seed, step=0)


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.75])
@pytest.mark.parametrize(("name", "factor"), [("high", -1.0), ("low", 1.0)])
def test_masks_are_the_published_ones(name: str, factor: float, ratio: float):
    mask = strategy_of("attmask").mask(context_of(GOLDEN["attention"], ratio, factor))
    assert torch.equal(mask.hidden, GOLDEN[f"attmask_{name}[{ratio}]"])
    assert mask.count == int(64 * ratio)


def ranks_of_hidden(factor: float, images: int = 400) -> Tensor:
    """How often the patch of each rank (0 = most attended) is hidden, [N], at a count of 32 of 64."""
    attention = torch.rand(images, 64, generator=torch.Generator().manual_seed(1))
    mask = strategy_of("attmask").mask(context_of(attention, 0.5, factor))
    order = attention.argsort(dim=1, descending=True)
    return mask.hidden.gather(1, order).float().mean(dim=0)


def test_an_adversary_hides_the_most_attended_and_a_partner_the_least():
    expected = (torch.arange(64) < 32).float()
    assert torch.equal(ranks_of_hidden(-1.0), expected)
    assert torch.equal(ranks_of_hidden(1.0), expected.flip(0))


def test_a_neutral_hides_uniformly():
    counts = ranks_of_hidden(0.0, images=4000) * 4000
    assert chisquare(counts.numpy()).pvalue > 1e-3


def test_at_half_strength_half_of_the_count_goes_by_rank_and_the_rest_is_uniform():
    often = ranks_of_hidden(-0.5, images=4000)
    assert torch.equal(often[:16], torch.ones(16))
    assert often[16:].mean().item() == pytest.approx(16 / 48, abs=1e-6)
    assert chisquare((often[16:] * 4000).numpy()).pvalue > 1e-3


def test_hints_show_some_of_the_most_attended_and_keep_the_count():
    attention = torch.rand(500, 64, generator=torch.Generator().manual_seed(1))
    mask = strategy_of({"use": "attmask", "hints": 0.25}).mask(context_of(attention, 0.5, -1.0))
    assert mask.hidden.sum(dim=1).tolist() == [32] * 500
    order = attention.argsort(dim=1, descending=True)
    hidden = mask.hidden.gather(1, order)
    revealed = int(0.25 * 0.5 * 64)  # 8, among the 16 most attended
    assert (~hidden[:, :16]).sum(dim=1).tolist() == [revealed] * 500
    assert hidden[:, 16 : 32 + revealed].all()  # others are hidden in their place
    often = (~hidden[:, :16]).float().mean(dim=0)
    assert (often - revealed / 16).abs().max() < 0.12


def test_a_neutral_with_hints_stays_uniform():
    attention = torch.rand(4000, 64, generator=torch.Generator().manual_seed(1))
    mask = strategy_of({"use": "attmask", "hints": 0.5}).mask(context_of(attention, 0.5, 0.0))
    counts = mask.hidden.gather(1, attention.argsort(dim=1, descending=True)).sum(dim=0)
    assert chisquare(counts.numpy()).pvalue > 1e-3


def test_the_papers_own_hint_numbers():
    attention = torch.rand(20, 196, generator=torch.Generator().manual_seed(1))
    student = SimpleNamespace(backbone=SimpleNamespace(grid=(14, 14), attention=lambda images: attention))
    context = MaskingContext.of(student, torch.zeros(20, 3, 1, 1), 0.3, step=0)
    mask = strategy_of({"use": "attmask", "hints": 0.1}).mask(context)
    top = attention.argsort(dim=1, descending=True)[:, :58]
    assert mask.count == 58
    assert (~mask.hidden.gather(1, top)).sum(dim=1).tolist() == [5] * 20


def test_it_ranks_by_the_teachers_attention_to_real_images():
    objective, images = tiny_objective().eval(), random_images()
    mask = strategy_of("attmask", objective).mask(MaskingContext.of(objective, images, 0.75, step=0))
    attention = objective.backbone.attention(images)
    hidden = attention.masked_fill(~mask.hidden, float("inf")).amin(dim=1)
    shown = attention.masked_fill(mask.hidden, float("-inf")).amax(dim=1)
    assert (hidden >= shown).all()
