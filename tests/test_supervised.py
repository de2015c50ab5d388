"""Learning from labels: the two halves of MaskSub, the targets, mixing, BatchNorm, and what is refused.

Shapes: B images, N patches, D channels of the latent, K classes.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from helpers import noise_images, random_images, tiny_recipe, tiny_session
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from maskzoo import ContractError, Mask, RecipeError
from maskzoo.backbones.vit import VitBackbone
from maskzoo.gallery import Gallery
from maskzoo.objectives.supervised import Classify, MaskSub, statistics_kept
from maskzoo.protocols import Batch, visible_rounded_down
from maskzoo.train import train

CLASSES = 5
LABELS = torch.tensor([0, 3, 2, 4])
IMAGES = random_images(4)


def build(kind: type[Any] = MaskSub, *, training: bool = True, **options: Any) -> Any:
    """A small objective, its weights shaken so that nothing begins at zero."""
    torch.manual_seed(0)
    made = kind(classes=CLASSES, **options)
    made.setup(VitBackbone(image_size=32, patch_size=8, options={"embed_dim": 24, "depth": 1, "num_heads": 2}))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made.train(training)


class Normed(nn.Module):
    """A dense backbone of one convolution and a BatchNorm, on 4 x 4 units of 8 pixels; hidden pixels are zeroed."""

    name, provides, dense, prefix, dim, channels = "normed", frozenset[str](), True, 0, 6, 3
    grid, patch_size = (4, 4), (8, 8)

    def __init__(self, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 8, stride=8), nn.BatchNorm2d(6, momentum=momentum)

    def forward(self, images: Tensor, mask: Mask | None = None) -> Tensor:
        if mask is not None:
            images = torch.where(mask.hidden_on(self.grid, 8).view(-1, 1, 32, 32), 0.0, images)
        return self.norm(self.conv(images)).flatten(2).transpose(1, 2)


def on_normed(momentum: float | None = 0.1, **options: Any) -> MaskSub:
    torch.manual_seed(0)
    made = MaskSub(classes=CLASSES, **options)
    made.setup(Normed(momentum))  # type: ignore[arg-type]
    return made.train()


def hiding(count: int, seed: int = 0) -> Mask:
    return Mask.hide_top(torch.rand(4, 16, generator=torch.Generator().manual_seed(seed)), count)


def gradients(objective: Any, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(objective.parameters()), allow_unused=True, materialize_grads=True))


# ------------------------------------------------------------------------------------------------------- the two halves
@pytest.mark.parametrize("loss", ["cross-entropy", "binary"])
def test_the_gradient_is_half_of_each_parts_gradient_summed(loss: str):
    objective = build(loss=loss)
    mask = hiding(8)
    whole, part = objective.predict(IMAGES), objective._logits(objective.backbone(IMAGES, mask))
    target = torch.eye(CLASSES)[LABELS]
    if loss == "binary":
        criterion = nn.BCEWithLogitsLoss()
        parts = criterion(whole, target), criterion(part, whole.detach().sigmoid())
    else:
        criterion = nn.CrossEntropyLoss()
        parts = criterion(whole, LABELS), criterion(part, whole.detach().softmax(dim=1))
    expected = [
        0.5 * main + 0.5 * sub
        for main, sub in zip(gradients(objective, parts[0]), gradients(objective, parts[1]), strict=True)
    ]
    outcome = objective(IMAGES, mask, LABELS)
    for found, wanted in zip(gradients(objective, outcome.loss), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    assert outcome.metrics["main"].item() == pytest.approx(parts[0].item(), abs=1e-6)
    assert outcome.metrics["sub"].item() == pytest.approx(parts[1].item(), abs=1e-6)
    assert expected[0].abs().max() > 0
    assert outcome.latent.shape == (4, 1 + 8, 24)  # of the masked view


@pytest.mark.parametrize("loss", ["cross-entropy", "binary"])
def test_no_gradient_passes_through_the_target(loss: str):
    objective = build(loss=loss)
    whole = torch.randn(4, CLASSES, requires_grad=True)
    part = torch.randn(4, CLASSES, requires_grad=True)
    objective._sub_loss(part, whole.detach()).backward()
    assert whole.grad is None
    assert part.grad is not None
    # In the whole objective: were the target a path of gradient, the head would feel the sub-branch twice.
    seen: list[Tensor] = []
    objective.head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    outcome = objective(IMAGES, hiding(8), LABELS)
    for logits in seen:
        logits.retain_grad()
    outcome.loss.backward()
    foretold = seen[0].sigmoid() if loss == "binary" else seen[0].softmax(dim=1)
    share = 0.5 / 4 / (CLASSES if loss == "binary" else 1)
    torch.testing.assert_close(seen[0].grad, share * (foretold - torch.eye(CLASSES)[LABELS]), atol=1e-6, rtol=1e-5)


def test_at_ratio_0_it_is_the_plain_loss_plus_self_distillation():
    objective = build()
    nothing = hiding(0)
    outcome = objective(IMAGES, nothing, LABELS)
    logits = objective.predict(IMAGES)
    entropy = -(logits.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert outcome.loss.item() == pytest.approx(0.5 * (cross_entropy(logits, LABELS) + entropy).item(), abs=1e-6)
    # A cross-entropy with oneself has no gradient, so half of the plain one is left.
    plain = gradients(objective, 0.5 * cross_entropy(objective.predict(IMAGES), LABELS))
    for found, wanted in zip(gradients(objective, outcome.loss), plain, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)


def test_classify_sees_only_what_the_mask_leaves():
    objective, mask = build(Classify), hiding(8)
    noisy = torch.where(mask.hidden_on((4, 4), 8).view(4, 1, 32, 32), math.nan, IMAGES)
    outcome = objective(noisy, mask, LABELS)
    assert outcome.loss.item() == pytest.approx(
        cross_entropy(objective._logits(objective.backbone(IMAGES, mask)), LABELS).item(), abs=1e-6
    )
    assert outcome.loss.item() != pytest.approx(objective(IMAGES, hiding(8, seed=1), LABELS).loss.item(), abs=1e-4)


def test_classify_at_ratio_0_is_the_plain_recipe():
    objective = build(Classify, training=False)
    expected = cross_entropy(objective.predict(IMAGES), LABELS)
    torch.testing.assert_close(objective(IMAGES, hiding(0), LABELS).loss, expected)


def test_the_published_quirk_hides_what_the_mask_shows():
    mask = hiding(7)
    quirky, straight = build(inverted=True), build()
    theirs = Mask(torch.logical_not(mask.hidden), 9)
    assert torch.equal(quirky(IMAGES, mask, LABELS).loss, straight(IMAGES, theirs, LABELS).loss)
    assert not torch.equal(quirky(IMAGES, mask, LABELS).loss, straight(IMAGES, mask, LABELS).loss)
    at_224 = Mask.hide_top(torch.rand(2, 49), visible_rounded_down(0.5, 49))
    assert (at_224.count, at_224.inverted().count) == (25, 24)  # so 25 of 49 units survive, as published


@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_features_are_pooled_as_declared(pooling: str):
    objective = build(Classify, pooling=pooling)
    latent = objective.backbone(IMAGES)
    pooled = latent[:, 0] if pooling == "class" else latent[:, 1:].mean(dim=1)
    torch.testing.assert_close(objective.predict(IMAGES), objective.head(pooled))


# --------------------------------------------------------------------------------------------------- labels, and mixing
def test_smoothed_labels_are_those_of_cross_entropy_and_training_alone_feels_them():
    objective = build(Classify, smoothing=0.1)
    expected = cross_entropy(objective.predict(IMAGES), LABELS, label_smoothing=0.1)
    torch.testing.assert_close(objective(IMAGES, hiding(0), LABELS).loss, expected)
    plain = cross_entropy(objective.predict(IMAGES), LABELS)
    torch.testing.assert_close(objective.eval()(IMAGES, hiding(0), LABELS).loss, plain)


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
@pytest.mark.parametrize("loss", ["cross-entropy", "binary"])
def test_both_views_see_the_same_mixed_images_and_the_given_ones_stay(options: dict[str, Any], loss: str):
    objective = build(loss=loss, **options)
    given, seen = IMAGES.clone(), []
    objective.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    torch.manual_seed(3)
    objective(given, hiding(8), LABELS)
    assert torch.equal(given, IMAGES)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], IMAGES)
    # Every pixel is that of the image, of its partner, or between the two.
    low, high = torch.minimum(IMAGES, IMAGES.flip(0)), torch.maximum(IMAGES, IMAGES.flip(0))
    assert ((seen[0] >= low - 1e-6) & (seen[0] <= high + 1e-6)).all()


def test_the_target_is_mixed_as_the_images_are():
    objective = build(mixup=0.8)
    torch.manual_seed(3)
    mixed, target = objective._mixed(IMAGES, LABELS)
    share = ((mixed - IMAGES.flip(0)) / (IMAGES - IMAGES.flip(0))).median()
    expected = share * torch.eye(CLASSES)[LABELS] + (1 - share) * torch.eye(CLASSES)[LABELS.flip(0)]
    torch.testing.assert_close(target, expected, atol=1e-4, rtol=0)
    assert 0 < share < 1


def test_mixing_follows_the_seed_of_the_batch_and_leaves_the_generators_alone():
    objective = build(mixup=0.8, cutmix=1.0)
    np.random.seed(7)
    expected = np.random.RandomState(7).rand()
    torch.manual_seed(3)
    first, _ = objective._mixed(IMAGES, LABELS)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(3), drawn)
    assert torch.equal(objective._mixed(IMAGES, LABELS)[0], first)
    assert np.random.rand() == expected
    torch.manual_seed(4)
    assert not torch.equal(objective._mixed(IMAGES, LABELS)[0], first)


def test_nothing_is_mixed_outside_training():
    objective = build(training=False, mixup=0.8)
    assert objective._mixed(IMAGES, LABELS)[0] is IMAGES


def test_a_binary_loss_takes_both_classes_of_a_mixed_image_for_true():
    objective = build(Classify, loss="binary", mixup=1.0)
    logits, target = torch.randn(4, CLASSES), torch.tensor([[0.3, 0.7, 0, 0, 0]] * 4)
    expected = nn.BCEWithLogitsLoss()(logits, torch.tensor([[1.0, 1.0, 0, 0, 0]] * 4))
    assert torch.equal(objective._main_loss(logits, target), expected)


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(ContractError, match=r"in pairs, and 3 are not even"):
        build(mixup=1.0)(IMAGES[:3], Mask.hide_top(torch.rand(3, 16), 8), LABELS[:3])
    with pytest.raises(ContractError, match="'masksub' needs labels"):
        build()(IMAGES, hiding(8))


# ------------------------------------------------------------------------------------------------------------ BatchNorm
def test_running_averages_see_both_views_as_published_or_the_whole_one_alone():
    mask = hiding(8)
    reference = Normed()
    reference.load_state_dict(on_normed().backbone.state_dict())  # type: ignore[attr-defined]
    reference(IMAGES)
    apart = on_normed(masked_statistics=False)
    apart(IMAGES, mask, LABELS)
    torch.testing.assert_close(apart.backbone.norm.running_mean, reference.norm.running_mean)  # type: ignore[attr-defined]
    assert apart.backbone.norm.num_batches_tracked == 1  # type: ignore[attr-defined]
    reference(IMAGES, mask)
    shared = on_normed()
    shared(IMAGES, mask, LABELS)
    torch.testing.assert_close(shared.backbone.norm.running_mean, reference.norm.running_mean)  # type: ignore[attr-defined]
    torch.testing.assert_close(shared.backbone.norm.running_var, reference.norm.running_var)  # type: ignore[attr-defined]


@pytest.mark.parametrize("momentum", [0.1, None])
def test_keeping_statistics_changes_no_output_and_nothing_afterwards(momentum: float | None):
    module = Normed(momentum).train()
    before = copy.deepcopy(module.state_dict())
    with statistics_kept(module):
        kept = module(IMAGES)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.norm.momentum == momentum
    assert torch.equal(module(IMAGES), kept)
    assert not torch.equal(module.norm.running_mean, before["norm.running_mean"])  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------- in a run
def labelled_batches(steps: int) -> list[Batch]:
    return [Batch(random_images(6, seed=step), torch.arange(6) % 3, torch.arange(6)) for step in range(steps)]


@pytest.mark.parametrize("strategy", ["random", "block", "attmask"])
@pytest.mark.parametrize("objective", ["masksub", "classify"])
@pytest.mark.sampled(3)
def test_any_strategy_feeds_it(strategy: str, objective: str):
    session = tiny_session(strategy, noise_images(labelled=True), objective=objective, masking={"ratio": 0.5})
    assert session.objective.classes == 3  # type: ignore[attr-defined]
    figures = list(train(session, labelled_batches(2)))
    assert all(math.isfinite(figure["loss"]) and figure["hidden"] == 32 for figure in figures)


def test_a_strategy_that_needs_a_loss_of_patches_is_refused_by_name():
    with pytest.raises(RecipeError, match=r"'clmae' needs patch_loss, which objective 'masksub' does not provide"):
        tiny_session("clmae", noise_images(labelled=True), objective="masksub")


def test_data_without_labels_are_refused_by_name():
    with pytest.raises(RecipeError, match=r"recipe\.objective\.classes: it needs labels, and the data have none"):
        tiny_session(objective="masksub")


@pytest.mark.parametrize("ratio", [0.0, {"use": "linear", "start": 0.0, "end": 0.5}])
def test_nothing_need_be_hidden(ratio: Any):
    session = tiny_session(dataset=noise_images(labelled=True), objective="masksub", masking={"ratio": ratio})
    first, *_ = train(session, labelled_batches(1))
    assert first["hidden"] == 0
    rebuilt = tiny_session(masking={"ratio": ratio}) if ratio else None
    if rebuilt is not None:  # where there is nothing to learn from that, one patch is hidden
        assert next(train(rebuilt, labelled_batches(1)))["hidden"] == 1


def test_half_of_the_patches_is_hidden_unless_a_recipe_says_otherwise():
    session = tiny_session(dataset=noise_images(labelled=True), objective="masksub")
    assert session.recipe["masking"]["ratio"] == {"use": "constant", "value": 0.5}
    assert tiny_session().recipe["masking"]["ratio"] == {"use": "constant", "value": 0.75}


def test_a_drop_path_of_its_own_falls_to_each_view():
    objective = MaskSub(classes=CLASSES)
    torch.manual_seed(0)
    options = {"embed_dim": 24, "depth": 3, "num_heads": 2}
    objective.setup(VitBackbone(image_size=32, patch_size=8, drop_path=0.6, options=options))
    objective.train()
    logits: list[Tensor] = []
    objective.head.register_forward_hook(lambda module, inputs, output: logits.append(output))
    objective(IMAGES, hiding(0), LABELS)
    assert not torch.equal(logits[0], logits[1])  # the same images and weights


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"loss": "binary", "smoothing": 0.1}, "smoothing"),
        ({"mixup": -1}, "mixup"),
        ({"smoothing": 1.5}, "smoothing"),
        ({"loss": "focal"}, "loss"),
        ({"pooling": "max"}, "pooling"),
    ],
)
def test_what_cannot_be_is_refused_with_its_key(options: dict[str, Any], key: str):
    with pytest.raises(RecipeError, match=rf"recipe\.objective\.{key}: "):
        tiny_session(dataset=noise_images(labelled=True), objective={"use": "masksub", **options})


def test_a_class_token_that_is_not_there_is_refused():
    backbone = {
        "timm": "vit_base_patch16_siglip_224",
        "patch_size": 4,
        "options": {"embed_dim": 24, "depth": 1, "num_heads": 2},
    }
    with pytest.raises(RecipeError, match=r"recipe\.objective\.pooling: this backbone has no class token"):
        tiny_session(
            dataset=noise_images(labelled=True), objective={"use": "masksub", "pooling": "class"}, backbone=backbone
        )


def test_its_resolved_recipe_builds_it_again():
    session = tiny_session(dataset=noise_images(labelled=True), objective={"use": "masksub", "mixup": 0.2})
    assert session.recipe["objective"]["classes"] == 3
    again = tiny_recipe(objective=session.recipe["objective"])
    assert attrs.asdict(again)["objective"] == session.recipe["objective"]


@pytest.mark.parametrize(
    ("objective", "shown"), [("masksub", ["images", "seen"]), (None, ["images", "rebuilt", "seen"])]
)
@pytest.mark.slow
def test_a_picture_shows_as_rebuilt_only_what_was(objective: str | None, shown: list[str], tmp_path: Path):
    dataset = noise_images(labelled=True)
    session = tiny_session(dataset=dataset, **({} if objective is None else {"objective": objective}))
    gallery = Gallery(session, dataset, tmp_path, moments=1)
    session.step = session.steps - 1
    gallery.draw_if_due()
    gallery.draw_all(print)
    assert (tmp_path / "curriculum.png").exists()
    with np.load(next(tmp_path.glob("step-*.npz"))) as kept:
        assert sorted(set(kept.files) - {"factor", "ratio"}) == shown
