"""What a step costs: against counts by hand, on every family of backbones, and with nothing but shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from click.testing import CliRunner
from helpers import REGISTRY, TINY_OBJECTIVE, tiny_recipe
from test_matrix import BACKBONES, CLMAE
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from maskzoo import DataError, MaskingContext, RecipeError, Strategy, define
from maskzoo.cli import main
from maskzoo.cost import Costs, Shape, flop_counter, flops_per_image, shape_of, steps_of

SHAPE = Shape((32, 32), 3, class_count=3, images=64)
DISTILL = {"use": "distill", "decoder_dim": 16, "decoder_depth": 1}


def costs_of(strategy: Any = "random", ratio: Any = 0.75, shape: Shape = SHAPE, **sections: Any) -> Costs:
    masking = {"ratio": ratio, **sections.pop("masking", {})}
    return flops_per_image(tiny_recipe(strategy, masking=masking, **sections), REGISTRY, shape)


# --------------------------------------------------------------------------------------------------------- by hand
PIXELS, PATCHES, WIDTH, DEPTH, DECODER = 3 * 4 * 4, 64, 24, 2, 16  # of `tiny_recipe` on 32 x 32 pixels


def forward(tokens: int, width: int) -> int:
    """FLOPs of a transformer block: four linear maps, and two products of queries, keys and values."""
    return 2 * tokens * 12 * width**2 + 2 * 2 * tokens**2 * width


def linear(tokens: int, wide: int, narrow: int) -> int:
    return 2 * tokens * wide * narrow


def encoder_and_decoder(seen: int, decoded: int) -> int:
    """Forward and backward; the images need no gradient."""
    blocks = DEPTH * forward(seen, WIDTH) + linear(seen, WIDTH, DECODER) + forward(decoded, DECODER)
    return 2 * linear(PATCHES, PIXELS, WIDTH) + 3 * (blocks + linear(decoded, DECODER, PIXELS))


def whole_image() -> int:
    return linear(PATCHES, PIXELS, WIDTH) + DEPTH * forward(1 + PATCHES, WIDTH)


@pytest.mark.parametrize(("ratio", "hidden"), [(0.75, 48), (0.5, 32)])
def test_a_step_of_mae_costs_what_a_count_by_hand_says(ratio: float, hidden: int):
    costs = costs_of(ratio=ratio)
    assert costs.model == pytest.approx(encoder_and_decoder(1 + PATCHES - hidden, 1 + PATCHES), rel=1e-9)
    assert (costs.teacher, costs.strategy, costs.strategy_parameters) == (0, 0, 0)


@pytest.mark.slow
def test_a_teacher_costs_a_forward_pass_on_the_whole_image():
    costs = costs_of("attmask")
    assert costs.model == costs_of().model
    assert costs.teacher == pytest.approx(whole_image(), rel=1e-9)
    assert costs.strategy == 0  # ranking is no matrix product


@pytest.mark.slow
def test_a_teacher_is_not_asked_by_a_strategy_that_is_neutral(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("maskzoo.cost.MOMENTS", 2)
    assert costs_of("attmask", masking={"curriculum": 0.0}).teacher == 0
    half = costs_of({"use": "switch", "at": [0.5], "parts": ["random", "attmask"]}).teacher
    assert half == pytest.approx(whole_image() / 2, rel=1e-9)


@pytest.mark.slow
def test_a_learners_step_costs_a_pass_through_the_whole_model_and_its_own():
    """Through the model to the mask, whose gradient needs no weights' gradients and stops at the tokens."""
    costs = costs_of(CLMAE, masking={"curriculum": "adversary"})
    tokens = 1 + PATCHES
    embedding = linear(PATCHES, PIXELS, WIDTH)
    masker = forward(tokens, WIDTH) + linear(1, WIDTH, PATCHES)
    hard_mask = embedding + masker
    blocks = DEPTH * forward(tokens, WIDTH) + linear(tokens, WIDTH, DECODER) + forward(tokens, DECODER)
    products = DEPTH * 2 * 2 * tokens**2 * WIDTH + 2 * 2 * tokens**2 * DECODER  # whose backward pass is two of these
    through = 2 * (blocks + linear(tokens, DECODER, PIXELS)) + products
    learning = embedding + 3 * masker + embedding + through
    assert costs.model == costs_of().model
    assert costs.strategy == pytest.approx(hard_mask + learning, rel=0.01)
    assert costs.strategy_parameters > 0


@pytest.mark.slow
def test_every_second_step_of_a_learner_costs_half():
    every, second = (costs_of(CLMAE, masking={"curriculum": -1.0, "strategy_every": number}) for number in (1, 2))
    look = linear(PATCHES, PIXELS, WIDTH) + forward(1 + PATCHES, WIDTH) + linear(1, WIDTH, PATCHES)
    assert second.strategy - look == pytest.approx((every.strategy - look) / 2, rel=1e-9)


@pytest.mark.slow
def test_a_moving_ratio_costs_its_mean_over_the_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("maskzoo.cost.MOMENTS", 4)
    moving = costs_of(ratio={"use": "linear", "start": 0.25, "end": 0.75}).model
    assert costs_of(ratio=0.75).model < costs_of(ratio=0.5).model < costs_of(ratio=0.25).model
    assert moving == pytest.approx(costs_of(ratio=0.5).model, rel=0.05)


@pytest.mark.slow
def test_a_step_accumulated_or_of_another_batch_size_costs_an_image_the_same():
    assert costs_of(train={"batch_size": 8, "accumulate": 2}).total == costs_of().total


# --------------------------------------------------------------------------------------------------- every combination
@pytest.mark.parametrize(
    ("backbone", "objective", "strategy"),
    [
        *(("vit", objective, "block") for objective in (TINY_OBJECTIVE, DISTILL, {"use": "masksub"})),
        *(("vit", objective, "attmask") for objective in (DISTILL, {"use": "masksub"})),
        *(("vit", objective, CLMAE) for objective in (DISTILL, {"use": "masksub"})),
        *(("swin", TINY_OBJECTIVE, strategy) for strategy in ("attmask", CLMAE)),
    ],
    ids=lambda value: value if isinstance(value, str) else value["use"],
)
@pytest.mark.sampled(1)
def test_every_strategy_can_be_counted_or_is_refused(backbone: str, objective: Any, strategy: Any):
    masking = {"curriculum": -1.0} if strategy != "block" else {}
    sections = {"backbone": BACKBONES[backbone], "objective": objective, "masking": masking}
    name = strategy if isinstance(strategy, str) else strategy["use"]
    lacking = REFUSED.get((backbone, objective["use"], name))
    if lacking is not None:
        with pytest.raises(RecipeError, match=rf"recipe\.masking\.strategy: strategy '{name}' needs {lacking}"):
            costs_of(strategy, 0.5, **sections)
        return
    costs = costs_of(strategy, 0.5, **sections)
    assert costs.model > 0
    assert (costs.teacher > 0) is (objective["use"] == "distill" or strategy == "attmask")
    assert (costs.strategy > 0) is (strategy == CLMAE)


REFUSED = {
    ("vit", "masksub", "clmae"): "patch_loss, which objective",
    ("swin", "reconstruct", "attmask"): "attention, which backbone",
}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.sampled(1)
def test_every_family_of_backbones_can_be_counted_without_values(backbone: str):
    costs = costs_of("random", 0.5, backbone=BACKBONES[backbone])
    assert costs.device == "meta"
    assert costs.model > 6 * costs.parameters / 10  # each weight is used at least once, or is a table of positions


# ------------------------------------------------------------------------------------------------ where it is counted
@define
class Peeking(Strategy):
    name: ClassVar[str] = "peeking"
    seen: ClassVar[list[str]] = []

    def scores(self, context: MaskingContext) -> Tensor:
        self.seen.append(context.images.device.type)
        return context.noise() + float(context.images.sum())


class WithPeeking:
    """A registry with one strategy more."""

    def __getattr__(self, name: str) -> Any:
        return getattr(REGISTRY, name)

    def find(self, kind: Any, name: str) -> type:
        return Peeking if name == "peeking" else REGISTRY.find(kind, name)


@pytest.mark.slow
def test_who_looks_at_values_is_counted_on_images_of_zeros():
    Peeking.seen.clear()
    registry: Any = WithPeeking()
    costs = flops_per_image(tiny_recipe("peeking"), registry, SHAPE)
    assert costs.device == "cpu"
    assert Peeking.seen[0] == "meta"
    assert costs.total == pytest.approx(costs_of("random").total, rel=1e-6)


def test_attention_is_counted_alike_by_every_kernel():
    counts = {}
    for device in ("cpu", "meta"):
        query = torch.zeros(2, 2, 17, 8, device=device, requires_grad=True)
        with flop_counter() as counter:
            scaled_dot_product_attention(query, query * 1, query * 2).sum().backward()
        counts[device] = counter.get_total_flops()
    assert counts == dict.fromkeys(counts, 6 * 2 * 2 * 2 * 17 * 17 * 8)


@pytest.mark.slow
def test_nothing_large_is_held_and_nothing_is_downloaded():
    wide = {"embed_dim": 8192, "num_heads": 64, "depth": 2}
    huge = {"timm": "vit_giant_patch14_224", "pretrained": True, "options": wide}
    recipe = tiny_recipe(backbone=huge, weights="nowhere.pt")
    costs = flops_per_image(recipe, REGISTRY, Shape())
    assert costs.device == "meta"
    assert costs.parameters > 1e9


@pytest.mark.slow
def test_a_recipe_that_could_not_be_trained_is_refused():
    with pytest.raises(RecipeError, match=r"recipe\.masking\.ratio: .* hides everything"):
        costs_of(ratio=0.999)
    with pytest.raises(RecipeError, match=r"recipe\.objective\.classes: it needs labels"):
        costs_of(shape=Shape((32, 32)), objective={"use": "masksub"})


# ------------------------------------------------------------------------------------------------------------- the data
def test_a_data_set_that_would_be_fetched_is_known_by_its_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    shape = shape_of(tiny_recipe(data="cifar10"), REGISTRY)
    assert (shape.size, shape.channels, len(shape.train)) == ((32, 32), 3, 50_000)
    gone = shape_of(tiny_recipe(data={"use": "folder", "root": "nowhere", "size": 48, "channels": 1}), REGISTRY)
    assert (gone.size, gone.channels, len(gone.train)) == ((48, 48), 1, 0)
    assert list(tmp_path.iterdir()) == []


GONE = {"use": "folder", "root": "nowhere"}


def test_the_classes_of_data_that_are_not_here_are_told_by_the_objective(tmp_path: Path):
    told = tiny_recipe(data=GONE, objective={"use": "masksub", "classes": 7})
    assert len(shape_of(told, REGISTRY).classes) == 7
    assert shape_of(tiny_recipe(data=GONE), REGISTRY).classes is None
    with pytest.raises(RecipeError, match=r"give objective\.classes, since the data are not here"):
        shape_of(tiny_recipe(data=GONE, objective={"use": "masksub"}), REGISTRY)
    named = {"use": "timm", "source": "hfids/nobody/nothing", "class_count": 5}
    assert len(shape_of(tiny_recipe(data=named, objective={"use": "masksub"}), REGISTRY).classes) == 5


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"use": "cifar10", "bogus": 3}, r"recipe\.data\.bogus: no such key"),
        ("fashion-mnist:a:b", "gives 2 values, but 'fashion-mnist' has 1 options"),
        ({**GONE, "size": 0}, r"recipe\.data\.size: must be between 1 and 32768 pixels a side, got 0"),
        ({**GONE, "size": [32]}, r"recipe\.data\.size: expected a whole number or 2 values, got \[32\]"),
        ({**GONE, "size": "big"}, r"recipe\.data\.size: expected a whole number or 2 values, got 'big'"),
        ({"use": "timm", "channels": 0}, r"recipe\.data\.channels: must be >= 1"),
    ],
    ids=str,
)
def test_options_that_the_data_do_not_take_are_refused_without_the_data(data: Any, sentence: str):
    with pytest.raises(RecipeError, match=sentence):
        shape_of(tiny_recipe(data=data), REGISTRY)


@pytest.mark.parametrize(("data", "images"), [("cifar10", 50_000), ("digits", 1437)])
def test_a_batch_of_more_images_than_there_are_is_refused(data: str, images: int):
    sentence = f"batch_size: 60000 is more than the {images} training images of data set '{data}'"
    with pytest.raises(DataError, match=sentence):
        shape_of(tiny_recipe(data=data, train={"batch_size": 60_000}), REGISTRY)


def test_the_length_of_a_run_is_told_by_the_recipe_or_by_the_data():
    epochs = tiny_recipe(train={"epochs": 3, "batch_size": 10})
    assert steps_of(epochs, SHAPE) == 3 * 6
    assert steps_of(epochs, Shape()) is None
    assert steps_of(tiny_recipe(train={"steps": 7}), Shape()) == 7


SMALL = ["--set", "backbone.options.depth=1", "--set", "objective.decoder_depth=1"]


@pytest.mark.slow
def test_the_command_prints_each_part_and_the_multiple():
    result = CliRunner().invoke(main, ["cost", *SMALL, "--masker", "attmask"], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    lines = {line.split("  ")[0]: line.split() for line in result.output.splitlines()}
    model, teacher, total = (float(lines[name][column]) for name, column in PLACES)
    assert model + teacher == pytest.approx(total, rel=2e-3)
    assert float(lines["of the same with random"][-2]) == pytest.approx(total / model, abs=0.006)
    assert "11,392 images" in result.output  # 8 epochs of 89 batches of 16


PLACES = [("model, forward and backward", 4), ("teacher", 1), ("total", 1)]


def test_the_command_refuses_with_a_sentence():
    result = CliRunner().invoke(main, ["cost", "--masker", "nonsense"])
    assert result.exit_code == 2
    assert "no strategy named 'nonsense'" in result.output
