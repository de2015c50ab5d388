"""A norm that would see a single value of a channel is refused before training, with what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from helpers import REGISTRY, tiny_recipe
from torch import nn

from maskzoo import ContractError, RecipeError
from maskzoo.cli import main
from maskzoo.cost import flops_per_image
from maskzoo.norms import lone_value, needs_several, telling_lone_values, watching
from maskzoo.run import run
from maskzoo.terminal import Console

RESNET = {
    "timm": "resnet18",
    "hidden": "masked-convolution",
    "options": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 24]},
}
CONVNEXT = {
    "timm": "convnextv2_atto",
    "hidden": "masked-convolution",
    "options": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 24]},
}


def recipe_of(batch: int = 4, accumulate: int = 4, **changes: Any) -> Any:
    train = {"steps": 2, "batch_size": batch, "accumulate": accumulate, "pictures": 0}
    return tiny_recipe(
        **{
            "backbone": RESNET,
            "masking": {"strategy": "random", "ratio": 0.93},
            "evaluation": [],
            "train": train,
            **changes,
        }
    )


def trained(folder: Path, *arguments: Any, **changes: Any) -> None:
    run(recipe_of(*arguments, **changes), REGISTRY, Console(quiet=True), folder / "run")
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2


def refused(folder: Path, *arguments: Any, **changes: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        run(recipe_of(*arguments, **changes), REGISTRY, Console(quiet=True), folder / "run")
    assert not (folder / "run").exists()
    return str(caught.value)


# --------------------------------------------------------------------------------------------------------- before a run
def test_one_visible_place_of_one_image_is_refused_with_the_numbers(tmp_path: Path):
    message = refused(tmp_path)
    assert message.startswith("recipe.train.batch_size: the norm 'backbone.model.layer4.0.bn1' (BatchNorm2d) would see")
    assert "1 image in a micro-batch (4 images / 1 process / 4 micro-batches)" in message
    assert "1 of 16 patches is visible at ratio 0.93" in message
    assert "train.batch_size = 8 or more" in message
    assert "a smaller train.accumulate" in message
    assert "a lower masking.ratio" in message


def test_a_schedule_is_refused_for_the_highest_ratio_that_it_reaches(tmp_path: Path):
    rising = {"strategy": "random", "ratio": {"use": "linear", "start": 0.5, "end": 0.99}}
    assert "at ratio 0.99" in refused(tmp_path, 1, 1, masking=rising)
    falling = {"strategy": "random", "ratio": {"use": "linear", "start": 0.95, "end": 0.5}}
    assert "at ratio 0.95" in refused(tmp_path, 1, 1, masking=falling)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "accumulate", "changes"),
    [
        (8, 4, {}),  # two images
        (4, 4, {"masking": {"strategy": "random", "ratio": 0.87}}),  # two places
        (1, 1, {"backbone": CONVNEXT}),  # norms of single places alone
        (1, 1, {"backbone": {**RESNET, "hidden": "zero-pixels"}}),  # all places, though zeroed
        (1, 1, {"masking": {"strategy": "random", "ratio": {"use": "linear", "start": 0.5, "end": 0.87}}}),
    ],
)
def test_what_leaves_a_norm_two_values_is_trained(batch: int, accumulate: int, changes: Any, tmp_path: Path):
    trained(tmp_path, batch, accumulate, **changes)


@pytest.mark.slow
def test_one_patch_a_image_is_refused_where_nothing_is_hidden_too(tmp_path: Path):
    small = {**RESNET, "hidden": "zero-pixels", "image_size": 32}
    message = refused(
        tmp_path, 1, 1, backbone=small, objective="classify", masking={"strategy": "random", "ratio": 0.0}
    )
    assert "1 of 1 patches is visible at ratio 0" in message
    assert "masking.ratio" not in message


@pytest.mark.slow
def test_what_torch_says_of_a_norm_in_cost_is_a_message_too():
    made = recipe_of(2, 1)
    assert flops_per_image(made, REGISTRY).total > 0  # two images are counted
    with pytest.raises(ContractError, match="a norm sees a single value"), telling_lone_values():
        nn.BatchNorm2d(3)(torch.zeros(1, 3, 1, 1))
    with pytest.raises(ValueError, match="another"), telling_lone_values():
        raise ValueError("another")


# ------------------------------------------------------------------------------------------------------- which norms
@pytest.mark.parametrize(
    ("norm", "shape", "images", "noted"),
    [
        (nn.BatchNorm2d(4), (2, 4, 1, 1), 1, True),
        (nn.BatchNorm2d(4), (2, 4, 1, 1), 2, False),
        (nn.BatchNorm2d(4), (2, 4, 2, 1), 1, False),
        (nn.BatchNorm2d(4).eval(), (2, 4, 1, 1), 1, False),
        (nn.BatchNorm1d(4), (2, 4), 1, True),
        (nn.BatchNorm1d(4), (2, 4, 3), 1, False),
        (nn.GroupNorm(4, 4), (2, 4, 1, 1), 1, True),
        (nn.GroupNorm(2, 4), (2, 4, 1, 1), 1, False),
        (nn.InstanceNorm2d(4), (2, 4, 2, 1), 8, False),
    ],
)
def test_a_norm_is_noted_where_torch_would_raise(norm: Any, shape: tuple[int, ...], images: int, noted: bool):
    network = nn.Sequential(nn.Identity(), norm)
    training = norm.training
    with watching(network, tried=2, images=images) as found:
        network(torch.randn(shape))
    assert bool(found) == noted
    assert needs_several(network, images=images) == (images == 1 or isinstance(norm, nn.InstanceNorm2d))
    norm.train(training)
    real = torch.randn(images, *shape[1:])
    if noted:
        with pytest.raises(ValueError, match="Expected more than 1") as caught:
            norm(real)
        assert lone_value(caught.value) is not None
    else:
        norm(real)


def test_copies_of_a_watched_network_are_watched_and_the_hooks_are_gone_afterwards():
    import copy

    network = nn.Sequential(nn.BatchNorm2d(3))
    with watching(network, tried=2, images=1) as found:
        copy.deepcopy(network)(torch.randn(2, 3, 1, 1))
    assert [one.name for one in found] == ["0"]
    network(torch.randn(2, 3, 1, 1))
    assert len(found) == 1


# ------------------------------------------------------------------------------------------------- at the command line
def maskzoo(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), env={"COLUMNS": "400"}, prog_name="maskzoo")


@pytest.mark.slow
def test_fine_tuning_by_single_images_says_what_is_wrong(tmp_path: Path):
    backbone = "backbone={timm='resnet18',image_size=32,options={layers=[1,1,1,1],channels=[8,8,16,24]}}"
    result = maskzoo(
        *("train", "--data", "digits", "--objective", "classify", "--ratio", "0", "--set", backbone),
        *("--set", "train.steps=1", "--batch-size", "4", "--set", "train.pictures=0", "--out", str(tmp_path / "run")),
        *("--set", 'evaluation=["knn"]'),
    )
    assert result.exit_code == 0, result.output
    result = maskzoo(
        *("evaluate", str(tmp_path / "run"), "--with", "finetune"),
        *("--set", "finetune.batch_size=1", "--set", "finetune.epochs=1"),
    )
    assert result.exit_code == 2, result.output
    assert "raise finetune.batch_size" in result.output
    assert "Traceback" not in result.output
