"""Every strategy on every family of backbones under every objective: it trains, or is refused as its needs foretell.

Every two choices are tried together; in `make long` every three.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import REGISTRY, noise_images, random_images, tiny_session

from maskzoo import RecipeError
from maskzoo.matrix import as_markdown, matrices, unmet
from maskzoo.protocols import Batch
from maskzoo.train import train

VIT = {"embed_dim": 24, "depth": 2, "num_heads": 2}
SWIN = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "window_size": 4}
CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
RESNET = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}
BACKBONES: dict[str, dict[str, Any]] = {
    "vit": {"timm": "vit_tiny_patch16_224", "patch_size": 8, "options": VIT},
    "vit, mask token": {"timm": "vit_tiny_patch16_224", "patch_size": 8, "mask_token": True, "options": VIT},
    "eva": {"timm": "eva02_tiny_patch14_224", "patch_size": 8, "options": VIT},
    "beit": {"timm": "beit_base_patch16_224", "options": VIT},
    "swin": {"timm": "swin_tiny_patch4_window7_224", "options": {n: v for n, v in SWIN.items() if n != "window_size"}},
    "swin v2": {"timm": "swinv2_tiny_window8_256", "options": {n: v for n, v in SWIN.items() if n != "window_size"}},
    "hiera": {"timm": "hiera_tiny_224", "options": {"embed_dim": 16, "num_heads": 1, "stages": (1, 1, 1, 1)}},
    "convnext": {"timm": "convnext_atto", "options": CONVNEXT},
    "convnext v2, masked": {"timm": "convnextv2_atto", "hidden": "masked-convolution", "options": CONVNEXT},
    "resnet": {"timm": "resnet18", "options": RESNET},
    "resnet, masked": {"timm": "resnet18", "hidden": "masked-convolution", "options": RESNET},
}
SMALL_DECODER = {"decoder_dim": 16, "decoder_depth": 1}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "mae": {"use": "reconstruct", **SMALL_DECODER},
    "simmim": {"use": "reconstruct", "decoder": "linear", "loss": "l1", "target": "pixels"},
    "hog": {"use": "reconstruct", "target": "hog", **SMALL_DECODER},
    "distill": {"use": "distill", **SMALL_DECODER},
    "classify": {"use": "classify"},
    "masksub": {"use": "masksub"},
}
CLMAE = {"use": "clmae", "depth": 1, "heads": 2}
PARTS: dict[str, dict[str, Any]] = {  # for strategies that are made of others
    "mix": {"parts": ["random", CLMAE], "weights": [1, 1]},
    "union": {"parts": ["random", "block"]},
    "switch": {"parts": ["random", "pooled-query"], "at": [0.5]},
}
STRATEGIES = [name for name in REGISTRY.classes("strategy") if REGISTRY.owner("strategy", name).ours]  # type: ignore[union-attr]
ALL = list(itertools.product(STRATEGIES, BACKBONES, OBJECTIVES))


def pairwise(choices: list[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Some of the choices, in which each two values that go together in any of them do so at least once."""

    def pairs(choice: tuple[str, ...]) -> set[tuple[Any, ...]]:
        return set(itertools.combinations(enumerate(choice), 2))

    open_pairs = set().union(*(pairs(choice) for choice in choices))
    while open_pairs:
        best = max(choices, key=lambda choice: len(pairs(choice) & open_pairs))
        open_pairs -= pairs(best)
        yield best


def foretold(strategy: Any, backbone: Any, objective: dict[str, Any]) -> str | None:
    """The sentence with which a combination is refused, or None; from declarations alone."""
    if objective.get("decoder") == "linear" and not backbone.dense:
        return r"recipe\.objective\.decoder: "
    provided = REGISTRY.find("objective", objective["use"]).provides  # type: ignore[attr-defined]
    missing = unmet(strategy.needs, backbone.provides, provided, ["labels"])
    return rf"'{strategy.name}' needs {missing[0]}, which .* does not provide" if missing else None


def try_out(strategy: str, backbone: str, objective: str) -> None:
    """Train three steps, or be refused with the sentence that was foretold."""
    from maskzoo.build import make_backbone
    from maskzoo.recipe import make

    dataset = noise_images(count=4, labelled=True)
    use = CLMAE if strategy == "clmae" else {"use": strategy, **PARTS.get(strategy, {})}
    options = BACKBONES[backbone]
    live = make_backbone(options, dataset, REGISTRY)
    refusal = foretold(make(REGISTRY, "strategy", use, "strategy"), live, OBJECTIVES[objective])

    def session() -> Any:
        return tiny_session(
            use,
            dataset,
            backbone=options,
            objective=OBJECTIVES[objective],
            masking={"ratio": 0.5},
            optimizer={"lr": 1e-3},
            train={"steps": 3},
        )

    if refusal is not None:
        with pytest.raises(RecipeError, match=refusal):
            session()
        return
    made = session()
    size = made.image_size
    before = {name: value.clone() for name, value in made.objective.named_parameters() if value.requires_grad}
    batches = [
        Batch(random_images(4, height=size[0], width=size[1], seed=step), torch.arange(4) % 3, torch.arange(4))
        for step in range(3)
    ]
    figures = list(train(made, batches))
    assert len(figures) == 3
    assert all(math.isfinite(figure["loss"]) and not figure["skipped"] for figure in figures)
    units = math.prod(made.objective.backbone.grid)
    assert figures[0]["hidden"] == units // 2
    still = [name for name, value in made.objective.named_parameters() if name in before and value.equal(before[name])]
    assert still == []  # all of it learns; what begins behind a weight of zero does so in the second step


PAIRS = list(pairwise(ALL))
TRIED = [pytest.param(*one, marks=pytest.mark.slow if one in PAIRS else pytest.mark.long) for one in ALL]


@pytest.mark.parametrize(("strategy", "backbone", "objective"), TRIED, ids=lambda value: value)
def test_it_trains_or_is_refused_as_foretold(strategy: str, backbone: str, objective: str):
    try_out(strategy, backbone, objective)


def test_the_pairs_are_all_covered():
    for first, second in itertools.combinations(range(3), 2):
        assert {(one[first], one[second]) for one in PAIRS} == {(one[first], one[second]) for one in ALL}
    assert len(PAIRS) < len(ALL) / 3


def test_the_page_of_backbones_holds_the_table():
    page = (Path(__file__).parents[1] / "docs" / "backbones.md").read_text()
    assert as_markdown(matrices(REGISTRY)) in page, "generate it anew: make matrix-table"


def test_what_is_missing_is_named_and_composites_are_left_to_their_parts():
    tables = {name: matrix for matrix in matrices(REGISTRY) for name in matrix.objectives}
    column = tables["masksub"].backbones.index("swin")
    assert tables["masksub"].rows["attmask"][column] == "needs attention"
    assert tables["masksub"].rows["clmae"][column] == "needs patch_loss"
    assert tables["reconstruct"].rows["clmae"][column] == "yes"
    assert tables["reconstruct"].rows["mix"][column] == "as parts"
