"""What the evaluators train with: an option that is passed on to nobody changes a figure without a word."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import attrs
import pytest
import torch
from helpers import REGISTRY, tiny_objective, values
from test_evaluators import CLASSES, CPU, Given, Pixelwise, Small, encoder_of, small
from timm.optim import Lars
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from maskzoo.data.digits import ImagesInMemory
from maskzoo.data.labels import Part
from maskzoo.engine import choose_precision
from maskzoo.errors import ContractError, StoppedError
from maskzoo.evaluation.attentive import AttentiveProbe
from maskzoo.evaluation.classifier import Classifier
from maskzoo.evaluation.features import WholeImages
from maskzoo.evaluation.fewshot import FewShot
from maskzoo.evaluation.finetune import FineTune
from maskzoo.evaluation.knn import KNearestNeighbours
from maskzoo.evaluation.linear import LinearProbe
from maskzoo.evaluation.options import cosine
from maskzoo.objectives.supervised import Classify
from maskzoo.recipe import make

ABSURD = 3e38  # a rate at which float32 overflows soon


@attrs.frozen(eq=False)
class Step:
    """What an optimizer was about to do."""

    optimizer: Optimizer
    rates: list[float]  # of its groups
    norm: float  # of the whole gradient


@pytest.fixture
def steps() -> Iterator[list[Step]]:
    """All steps that any optimizer of a model takes, as they are taken."""
    taken: list[Step] = []

    def watch(optimizer: Optimizer, *_: Any) -> None:
        gradients = [one.grad for group in optimizer.param_groups for one in group["params"] if one.grad is not None]
        if sum(gradient.numel() for gradient in gradients) < 10:
            return  # an optimizer is tried out on a few numbers before it gets a model
        rates = [group["lr"] for group in optimizer.param_groups]
        taken.append(Step(optimizer, rates, torch.nn.utils.get_total_norm(gradients).item()))

    handle = register_optimizer_step_pre_hook(watch)
    yield taken
    handle.remove()


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[Classify]:
    """All models that are fine-tuned, real ones."""
    made: list[Classify] = []

    def kept(**options: Any) -> Classify:
        made.append(Classify(**options))
        return made[-1]

    monkeypatch.setattr("maskzoo.evaluation.finetune.Classify", kept)
    return made


@pytest.fixture
def learnt(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The labels that the attentive probe learns from, step by step."""
    seen: list[list[int]] = []

    def watched(scores: Tensor, labels: Tensor) -> Tensor:
        seen.append(labels.tolist())
        return nn.functional.cross_entropy(scores, labels)

    monkeypatch.setattr("maskzoo.evaluation.attentive.cross_entropy", watched)
    return seen


def groups(steps: list[Step]) -> list[dict[str, Any]]:
    """The parameter groups of the one optimizer that took all of these steps."""
    assert len({id(step.optimizer) for step in steps}) == 1
    return steps[0].optimizer.param_groups


def broken(encoder: WholeImages) -> WholeImages:
    """The same encoder, after its weights have gone bad."""
    with torch.no_grad():
        for weight in encoder.backbone.parameters():
            weight.fill_(float("nan"))
    return encoder


# ------------------------------------------------------------------------------------------------------------ finetune
def tune(**options: Any) -> FineTune:
    return FineTune(**{"epochs": 2, "batch_size": 10, "precision": "fp32", **options})


def test_fine_tuning_learns_more_slowly_the_further_a_layer_is_from_the_classifier(
    steps: list[Step], models: list[Classify]
) -> None:
    dataset = small(train=20, test=3)
    list(tune(lr=1e-3, layer_decay=0.5, warmup=0.0)(encoder_of(dataset), dataset))
    (model,) = models
    first = {
        id(weight): (group.get("lr_scale", 1.0), rate)
        for group, rate in zip(groups(steps), steps[0].rates, strict=True)
        for weight in group["params"]
    }
    blocks = [name for name, _ in model.named_parameters() if ".blocks." in name]
    scales = {name: first[id(weight)][0] for name, weight in model.named_parameters() if weight.requires_grad}
    rates = {name: first[id(weight)][1] for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(blocks) > 10
    assert {scales[name] for name in blocks if ".blocks.1." in name} == {0.5}
    assert {scales[name] for name in blocks if ".blocks.0." in name} == {0.25}
    assert {scale for name, scale in scales.items() if "patch_embed" in name} == {0.125}
    assert {scales["head.weight"], scales["head.bias"]} == {1.0}
    assert rates == {name: pytest.approx(1e-3 * scale) for name, scale in scales.items()}


def test_fine_tuning_without_layer_decay_moves_all_layers_alike(steps: list[Step]) -> None:
    dataset = small(train=20, test=3)
    list(tune(layer_decay=1.0)(encoder_of(dataset), dataset))
    assert all(len(set(step.rates)) == 1 for step in steps)


def test_fine_tuning_decays_the_weights_by_what_is_asked_for_and_no_vector(steps: list[Step]) -> None:
    dataset = small(train=20, test=3)
    list(tune(weight_decay=0.07)(encoder_of(dataset), dataset))
    assert isinstance(steps[0].optimizer, AdamW)
    matrices, vectors = set(), set()
    for group in groups(steps):
        assert group["betas"] == (0.9, 0.999)
        matrices |= {group["weight_decay"] for weight in group["params"] if weight.squeeze().ndim > 1}
        vectors |= {group["weight_decay"] for weight in group["params"] if weight.ndim == 1}
    assert (matrices, vectors) == ({0.07}, {0.0})


def test_fine_tuning_clips_the_gradient_where_that_is_asked_for(steps: list[Step]) -> None:
    dataset = small(train=20, test=3)
    list(tune(clip=0.01)(encoder_of(dataset), dataset))
    assert [step.norm for step in steps] == [pytest.approx(0.01, rel=1e-3)] * 4
    steps.clear()
    list(tune()(encoder_of(dataset), dataset))
    assert min(step.norm for step in steps) > 0.1


def test_the_rate_of_fine_tuning_rises_and_falls_as_a_cosine(steps: list[Step]) -> None:
    dataset = small(train=40, test=3)
    list(tune(lr=2e-3, epochs=3, warmup=0.25)(encoder_of(dataset), dataset))
    expected = [2e-3 * cosine(step / 12, 0.25) for step in range(12)]
    assert [max(step.rates) for step in steps] == pytest.approx(expected)
    assert expected[:4] == pytest.approx([0, 2e-3 / 3, 4e-3 / 3, 2e-3])
    assert expected[-1] < 1e-4


def test_fine_tuning_mixes_smooths_and_pools_as_asked_for(models: list[Classify]) -> None:
    dataset = small(train=8, test=3)
    list(tune(batch_size=4, epochs=1, mixup=0.3, cutmix=0.6, smoothing=0.2)(encoder_of(dataset), dataset))
    list(tune(batch_size=4, epochs=1)(encoder_of(dataset, pooling="class"), dataset))
    options = [
        (model.mixup, model.cutmix, model.smoothing, model.pooling, model.classes, model.head.out_features)
        for model in models
    ]
    assert options == [(0.3, 0.6, 0.2, "mean", CLASSES, CLASSES), (0.0, 0.0, 0.1, "class", CLASSES, CLASSES)]


def test_fine_tuning_normalises_by_what_the_encoder_has_learnt_with(steps: list[Step]) -> None:
    white = ImagesInMemory(torch.full((8, 1, 16, 16), 255, dtype=torch.uint8), torch.arange(8) % CLASSES)
    dataset = Small(white, white)
    encoder = encoder_of(dataset, statistics=((0.2,), (2.0,)))
    seen: dict[bool, list[Tensor]] = {True: [], False: []}
    # The hook goes with the copy that is fine-tuned.
    encoder.backbone.register_forward_pre_hook(lambda module, inputs: seen[module.training].append(inputs[0]))
    list(tune(batch_size=4, epochs=1)(encoder, dataset))
    assert [len(images) for images in seen[True]] == [4, 4]
    assert [len(images) for images in seen[False]] == [8]
    assert len(steps) == 2
    for images in (*seen[True], *seen[False]):
        assert torch.allclose(images, torch.tensor(0.4), atol=1e-5)  # (1 - 0.2) / 2, and not (1 - 0.5) / 0.25


def test_fine_tuning_tells_which_precision_it_has_chosen() -> None:
    dataset = small(train=8, test=3)
    evaluator = FineTune(epochs=1, batch_size=4)
    assert evaluator.precision == "auto"
    list(evaluator(encoder_of(dataset), dataset))
    assert evaluator.precision == choose_precision("auto", CPU)
    assert evaluator.precision in ("fp32", "bf16")


def test_fine_tuning_at_a_rate_at_which_nothing_stays_finite_has_no_figure() -> None:
    dataset = small(train=40, test=3)
    with pytest.raises(ContractError, match=r"finetune: in \d+ of 8 steps .* was not finite; lower its lr"):
        list(tune(lr=1e20)(encoder_of(dataset), dataset))


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_one_image_cannot_be_mixed(mixing: str) -> None:
    dataset = small(train=1, test=3)
    dataset = attrs.evolve(dataset, train=Part(dataset.train, [0]))  # whose label is not known beforehand
    with pytest.raises(ContractError, match="mix images in pairs, and there is one training image"):
        list(tune(**{mixing: 0.5})(encoder_of(dataset), dataset))


def test_an_odd_number_of_images_is_mixed_without_the_last(models: list[Classify], steps: list[Step]) -> None:
    dataset = small(train=5, test=3)
    seen: list[int] = []
    encoder = encoder_of(dataset)
    encoder.backbone.register_forward_pre_hook(
        lambda module, inputs: seen.append(len(inputs[0])) if module.training else None
    )
    list(tune(epochs=1, mixup=0.5)(encoder, dataset))
    assert seen == [4]


# ----------------------------------------------------------------------------------------------------------- attentive
def numbered(images: int) -> Small:
    """A data set whose labels are its images' numbers."""
    made = small(train=images, test=3)
    numbers = ImagesInMemory(made.train.images, torch.arange(images))
    return attrs.evolve(made, train=numbers, classes=[str(number) for number in range(images)])


@pytest.mark.parametrize("cache", [2**32, 0])
def test_the_attentive_probes_rate_falls_as_a_cosine_and_its_weights_decay(
    cache: int, steps: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskzoo.evaluation.attentive.CACHE", cache)
    dataset = small(train=40, test=3)
    encoder = WholeImages(Pixelwise(), dataset, (16, 16))
    list(AttentiveProbe(epochs=5, lr=2e-3, weight_decay=0.03, batch_size=10)(encoder, dataset))
    assert isinstance(steps[0].optimizer, AdamW)
    assert [group["weight_decay"] for group in groups(steps)] == [0.03]
    rates = [rate for step in steps for rate in step.rates]
    assert rates == pytest.approx([2e-3 * cosine(step / 20) for step in range(20)])
    assert rates[0] == 2e-3
    assert rates[-1] < 2e-5


@pytest.mark.parametrize("cache", [2**32, 0])
@pytest.mark.parametrize("batch_size", [7, 16, 24, 256])
def test_the_attentive_probes_batches_do_not_hang_on_the_encoders(
    batch_size: int, cache: int, learnt: list[list[int]], steps: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskzoo.evaluation.attentive.CACHE", cache)
    dataset = numbered(50)
    encoder = WholeImages(Pixelwise(), dataset, (16, 16), batch_size=batch_size)
    list(AttentiveProbe(epochs=2, batch_size=16)(encoder, dataset))
    assert [len(labels) for labels in learnt] == [16, 16, 16, 2] * 2
    first, second = (list(chain.from_iterable(learnt[start : start + 4])) for start in (0, 4))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    progress = [(epoch + done / 50) / 2 for epoch in range(2) for done in (0, 16, 32, 48)]
    assert [rate for step in steps for rate in step.rates] == pytest.approx([1e-3 * cosine(one) for one in progress])


def test_the_attentive_probe_at_a_rate_at_which_nothing_stays_finite_has_no_figure() -> None:
    dataset = small(train=40, test=3)
    with pytest.raises(ContractError, match="attentive: the probe's weights did not stay finite; lower its lr"):
        list(AttentiveProbe(epochs=2, lr=1e30, batch_size=10)(WholeImages(Pixelwise(), dataset, (16, 16)), dataset))


# -------------------------------------------------------------------------------------------------------------- linear
@pytest.mark.parametrize(("solver", "expected"), [("sgd", SGD), ("lars", Lars)])
def test_the_linear_probe_is_trained_by_the_solver_that_is_asked_for(
    solver: Any, expected: type, steps: list[Step]
) -> None:
    probe = LinearProbe(solver=solver, rates=(0.5,), epochs=2, batch_size=10, weight_decay=0.02)
    list(probe(Given(), small(train=20, test=3)))
    assert type(steps[0].optimizer) is expected
    weights, biases = groups(steps)
    assert [weight.shape for group in (weights, biases) for weight in group["params"]] == [(CLASSES, 12), (CLASSES,)]
    assert (weights["weight_decay"], biases["weight_decay"]) == (0.02, 0.0)
    assert [(group["momentum"], group["nesterov"]) for group in (weights, biases)] == [(0.9, False)] * 2
    if solver == "lars":
        assert (weights["always_adapt"], biases["always_adapt"]) == (True, False)


def test_each_of_the_linear_probes_rates_falls_as_a_cosine(steps: list[Step]) -> None:
    list(LinearProbe(rates=(0.1, 0.4), epochs=2, batch_size=8)(Given(), small(train=20, test=3)))
    chosen = [step for step in steps if step.optimizer is steps[0].optimizer]  # among the rates, on 16 images
    assert len(chosen) == 4
    for rates, progress in zip([step.rates for step in chosen], (0, 0.25, 0.5, 0.75), strict=True):
        assert rates == pytest.approx([rate * cosine(progress) for rate in (0.1, 0.1, 0.4, 0.4)])


@pytest.mark.parametrize("solver", ["sgd", "lars"])
@pytest.mark.parametrize("rates", [(ABSURD,), (ABSURD, ABSURD / 2)], ids=["one", "two"])
def test_a_linear_probe_of_which_nothing_stayed_finite_has_no_figure(solver: Any, rates: tuple[float, ...]) -> None:
    probe = LinearProbe(solver=solver, rates=rates, epochs=3, batch_size=10)
    with pytest.raises(ContractError, match="linear: at none of its rates the weights stayed finite; lower its rates"):
        list(probe(Given(), small(train=30, test=3)))


@pytest.mark.parametrize("rates", [(ABSURD, 0.1), (0.1, ABSURD)])
def test_a_sane_rate_is_chosen_before_an_absurd_one_and_not_spoilt_by_it(rates: tuple[float, ...]) -> None:
    dataset = small(train=150, test=60)
    found = values(LinearProbe(rates=rates, epochs=5, batch_size=32)(Given(), dataset))
    assert found == values(LinearProbe(rates=(0.1,), epochs=5, batch_size=32)(Given(), dataset))
    assert found["top1"] > 0.8


def test_a_rate_that_left_nothing_finite_is_not_chosen_where_not_a_number_is_taken_for_the_right_class() -> None:
    dataset = small(train=50, test=9)
    labels = (torch.arange(50) == 49).long()  # nearly all of one class
    alike = attrs.evolve(dataset, train=ImagesInMemory(dataset.train.images, labels))
    assert values(LinearProbe(rates=(ABSURD, 0.1), epochs=5, batch_size=10)(Given(), alike))["rate"] == 0.1


# ---------------------------------------------------------------------------------------------------------- all of them
@pytest.mark.parametrize(
    "evaluator",
    [
        KNearestNeighbours(),
        LinearProbe(epochs=1),
        LinearProbe(epochs=1, rates=(0.1,)),
        LinearProbe(solver="lbfgs", penalties=(1.0,)),
        FewShot(shots=(1,)),
        AttentiveProbe(epochs=1),
        tune(),
    ],
    ids=lambda evaluator: evaluator.name,
)
def test_weights_that_have_gone_bad_have_no_figure(evaluator: Any) -> None:
    dataset = small(train=20, test=6)
    with pytest.raises(ContractError, match="not finite"):
        list(evaluator(broken(encoder_of(dataset)), dataset))


@pytest.mark.parametrize(
    "evaluator",
    [
        LinearProbe(epochs=9, batch_size=5),
        LinearProbe(epochs=9, batch_size=5, solver="lars", rates=(0.1,)),
        AttentiveProbe(epochs=9, batch_size=5),
        tune(epochs=9, batch_size=5),
    ],
    ids=lambda evaluator: evaluator.name,
)
def test_training_stops_at_the_step_at_which_somebody_asks_for_it(evaluator: Any, steps: list[Step]) -> None:
    dataset = small(train=20, test=6)
    encoder = encoder_of(dataset, stopping=lambda: len(steps) >= 3)
    with pytest.raises(StoppedError, match="during an evaluation"):
        list(evaluator(encoder, dataset))
    assert len(steps) == 3


@pytest.mark.parametrize(
    "evaluator", [AttentiveProbe(epochs=1, batch_size=5), tune(epochs=1, batch_size=5)], ids=["attentive", "finetune"]
)
def test_what_is_trained_meets_no_test_image_where_somebody_asks_to_stop(evaluator: Any, steps: list[Step]) -> None:
    dataset = small(train=20, test=6)
    encoder = encoder_of(dataset, stopping=lambda: len(steps) >= 4)  # all of them
    with pytest.raises(StoppedError, match="during an evaluation"):
        list(evaluator(encoder, dataset))


def told_by_a_classifier(dataset: Small, classes: list[str]) -> WholeImages:
    """An encoder that was trained with a classifier of these classes."""
    objective = make(REGISTRY, "objective", {"use": "classify", "classes": len(classes)}, "objective")
    objective.setup(tiny_objective(channels=1, size=(16, 16)).backbone)
    return encoder_of(dataset, objective=objective, classes=classes)


def test_a_classifier_of_as_many_other_classes_is_not_asked() -> None:
    dataset = small(train=3, test=6)
    assert list(values(Classifier()(told_by_a_classifier(dataset, ["a", "b", "c"]), dataset))) == ["top1"]
    for others in (["a", "b", "d"], ["b", "a", "e"]):
        with pytest.raises(ContractError, match="the classes of these data are not those that it has learnt"):
            list(Classifier()(told_by_a_classifier(dataset, others), dataset))


def test_a_classifier_whose_weights_have_gone_bad_has_no_figure() -> None:
    dataset = small(train=3, test=6)
    with pytest.raises(ContractError, match="not finite"):
        list(Classifier()(broken(told_by_a_classifier(dataset, ["a", "b", "c"])), dataset))
