"""What the evaluators say of an encoder, and what `maskzoo evaluate` makes of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from filelock import FileLock
from helpers import REGISTRY, measured_by, state_of, tiny_objective, values
from PIL import Image
from scipy.stats import t
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from maskzoo.cli import main
from maskzoo.compare.cells import gather
from maskzoo.data.digits import ImagesInMemory
from maskzoo.errors import ContractError, RecipeError
from maskzoo.evaluation.attentive import AttentiveProbe
from maskzoo.evaluation.classifier import Classifier
from maskzoo.evaluation.features import WholeImages
from maskzoo.evaluation.fewshot import FewShot, drawn, half_width
from maskzoo.evaluation.finetune import FineTune
from maskzoo.evaluation.linear import LinearProbe, logistic, moments
from maskzoo.evaluation.options import cosine
from maskzoo.evaluation.reconstruction import Reconstruction
from maskzoo.mask import Mask
from maskzoo.metrics import printed
from maskzoo.recipe import make

CPU = torch.device("cpu")
CLASSES = 3


@attrs.define(eq=False)
class Small:
    """A data set of small images, of which each class has a picture of its own."""

    train: Any
    test: Any
    classes: Sequence[str] | None = ("a", "b", "c")
    name: str = "small"
    channels: int = 1
    size: tuple[int, int] = (16, 16)
    flip: bool = False
    mean: Sequence[float] = (0.5,)
    std: Sequence[float] = (0.25,)


def small(train: int = 90, test: int = 60, signal: float = 1.0) -> Small:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(CLASSES, 1, 16, 16, generator=generator)

    def split(images: int) -> ImagesInMemory:
        labels = torch.arange(images) % CLASSES
        values = 127 + 40 * (signal * pictures[labels] + torch.randn(images, 1, 16, 16, generator=generator))
        return ImagesInMemory(values.round().clamp(0, 255).to(torch.uint8), labels)

    return Small(split(train), split(test))


class Given:
    """An encoder whose features are given beforehand: the first pixels of an image, some of them worthless."""

    device = CPU
    dim = 12
    classes = None

    def refuse_if_stopping(self) -> None:
        """Nobody stops."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def features(self, split: Any, images: int | None = None) -> tuple[Tensor, Tensor | None]:
        values = split.images.flatten(1).float()[:, : self.dim] * self.scale
        return torch.cat([values[:, :-1], torch.full((len(values), 1), 5.0)], dim=1), split.labels  # one says nothing


def encoder_of(dataset: Any, *, objective: Any = None, **options: Any) -> WholeImages:
    objective = tiny_objective(channels=1, size=(16, 16)) if objective is None else objective
    return WholeImages(objective.backbone, dataset, (16, 16), objective=objective, **options)


class Pixelwise(torch.nn.Module):
    """A backbone that makes tokens of pixels: as good as the pixels are."""

    name = "pixelwise"
    prefix, dim, grid, patch_size = 0, 16, (4, 4), (4, 4)

    def forward(self, images: Tensor, mask: Any = None) -> Tensor:
        return torch.nn.functional.unfold(images, 4, stride=4).transpose(1, 2)


class Blind(Pixelwise):
    """A backbone that has learnt nothing, and looks at nothing."""

    name = "blind"

    def forward(self, images: Tensor, mask: Any = None) -> Tensor:
        return torch.zeros(len(images), 16, 16)


def seeing(dataset: Any, backbone: Any) -> WholeImages:
    return WholeImages(backbone, dataset, (16, 16))


# -------------------------------------------------------------------------------------------------------------- linear
@pytest.mark.parametrize("penalty", [0.1, 30.0])
def test_the_probe_by_lbfgs_is_that_of_scikit_learn_on_standardised_features(penalty: float) -> None:
    dataset, encoder = small(signal=0.4), Given()
    (train, labels), (test, truth) = encoder.features(dataset.train), encoder.features(dataset.test)
    scaler = StandardScaler().fit(train.double().numpy())
    theirs = LogisticRegression(C=1 / penalty, max_iter=2000).fit(scaler.transform(train.double().numpy()), labels)
    expected = (theirs.predict(scaler.transform(test.double().numpy())) == truth.numpy()).mean()
    found = values(LinearProbe(solver="lbfgs", penalties=(penalty,))(encoder, dataset))
    assert found == {"top1": pytest.approx(expected, abs=1e-9), "penalty": penalty}
    assert 0.4 < expected < 0.95  # else agreement says little


@pytest.mark.parametrize("solver", ["sgd", "lars"])
@pytest.mark.slow
def test_the_probe_by_steps_agrees_with_scikit_learn(solver: Any) -> None:
    dataset, encoder = small(train=300, test=300, signal=0.4), Given()
    steps = values(LinearProbe(solver=solver, epochs=60, batch_size=50)(encoder, dataset))["top1"]
    exact = values(LinearProbe(solver="lbfgs", penalties=(0.1,))(encoder, dataset))["top1"]
    assert steps == pytest.approx(exact, abs=0.05)
    assert exact > 0.55


def test_rates_that_are_trained_side_by_side_do_not_know_of_each_other() -> None:
    dataset = small(train=200, test=200, signal=0.3)
    (train, labels), (test, truth) = Given().features(dataset.train), Given().features(dataset.test)
    probe = LinearProbe(epochs=3)
    rates = (0.001, 0.1, 5.0)
    together = probe._accuracies(train, labels, test, truth, rates, CLASSES, Given())
    alone = [probe._accuracies(train, labels, test, truth, [rate], CLASSES, Given())[0] for rate in rates]
    assert together == alone
    assert len(set(alone)) == len(rates)  # the rate matters here


@pytest.mark.parametrize("solver", ["sgd", "lbfgs"])
def test_the_rate_is_chosen_without_the_test_images(solver: Any) -> None:
    dataset = small(train=300, test=120)
    wrong = attrs.evolve(dataset, test=ImagesInMemory(dataset.test.images, (dataset.test.labels + 1) % CLASSES))
    seen: list[Tensor] = []

    class Watched(LinearProbe):
        def _best(self, train: Tensor, *rest: Any) -> float:
            seen.append(train)
            return super()._best(train, *rest)

    probe = Watched(solver=solver, epochs=5, batch_size=32, rates=(1e-9, 0.1), penalties=(1e9, 0.1))
    found = values(probe(Given(), wrong))  # the test images would ask for what has learnt least
    assert found == {"top1": pytest.approx(0.0, abs=0.2), "rate" if solver == "sgd" else "penalty": 0.1}
    assert torch.equal(seen[0], Given().features(dataset.train)[0])


def test_a_useless_rate_is_not_chosen() -> None:
    probe = LinearProbe(rates=(1e-9, 0.1), epochs=5, batch_size=32)
    found = values(probe(Given(), small(train=300, test=120)))
    assert found["rate"] == 0.1
    assert found["top1"] > 0.8


def test_features_of_any_scale_and_one_that_never_moves_make_the_same_probe() -> None:
    dataset = small(signal=0.5)
    probe = LinearProbe(epochs=3)
    assert values(probe(Given(scale=1000.0), dataset)) == values(probe(Given(), dataset))
    mean, deviation = moments(Given().features(dataset.train)[0])
    assert (mean[-1], deviation[-1]) == (5.0, 1.0)


def test_a_held_out_part_of_nothing_is_refused() -> None:
    with pytest.raises(ContractError, match=r"a share of 0.2 of 2 training images"):
        list(LinearProbe()(Given(), small(train=2)))


# ------------------------------------------------------------------------------------------------------------ few shots
def test_the_figure_of_few_shots_is_the_mean_of_its_draws_with_students_interval() -> None:
    dataset = small(train=120, test=90, signal=0.5)
    (train, labels), (test, truth) = Given().features(dataset.train), Given().features(dataset.test)
    found = list(FewShot(shots=(2, 5), draws=4)(Given(), dataset))
    mean, deviation = moments(train)
    for shots in (2, 5):
        accuracies = []
        for draw in range(4):
            chosen = drawn(labels, shots, 0, draw)
            assert torch.bincount(labels[chosen]).tolist() == [shots] * CLASSES
            fitted = LogisticRegression(max_iter=2000).fit((train[chosen] - mean) / deviation, labels[chosen])
            accuracies.append((fitted.predict((test - mean) / deviation) == truth.numpy()).mean())
        interval = t.interval(0.95, 3, loc=np.mean(accuracies), scale=np.std(accuracies, ddof=1) / 2)
        mine = values(metric for metric in found if metric.options == {"shots": [shots]})
        assert mine["top1"] == pytest.approx(np.mean(accuracies), abs=0.004)
        assert mine["top1 +-"] == pytest.approx((interval[1] - interval[0]) / 2, abs=0.02)


def test_draws_differ_but_are_the_same_for_every_encoder_and_nested() -> None:
    labels = torch.arange(60) % CLASSES
    few, more = drawn(labels, 2, 0, 1), drawn(labels, 5, 0, 1)
    assert set(few.tolist()) < set(more.tolist())
    assert torch.equal(few, drawn(labels, 2, 0, 1))
    assert not torch.equal(few, drawn(labels, 2, 0, 2))
    assert not torch.equal(few, drawn(labels, 2, 1, 1))
    assert half_width([0.5, 0.7]) == pytest.approx(12.706 * 0.1, rel=1e-3)


def test_one_draw_has_no_interval_and_too_few_images_are_named() -> None:
    assert list(values(FewShot(shots=(1,), draws=1)(Given(), small()))) == ["top1"]
    with pytest.raises(ContractError, match=r"class 'c' has 3 of the 11 training images, and 4 are asked for"):
        list(FewShot(shots=(1, 4))(Given(), small(train=11)))


def test_one_class_alone_is_told_without_scikit_learns_complaint() -> None:
    features = torch.randn(4, 3)
    assert logistic(features, torch.full((4,), 2), features, 1.0).tolist() == [2] * 4


# ----------------------------------------------------------------------------------------------------------- attentive
def test_the_attentive_probe_tells_what_the_tokens_know() -> None:
    dataset = small(signal=1.5)
    probe = AttentiveProbe(epochs=6, batch_size=16, lr=3e-3)
    assert values(probe(seeing(dataset, Pixelwise()), dataset))["top1"] > 0.9
    assert values(probe(seeing(dataset, Blind()), dataset))["top1"] < 0.6


def test_the_attentive_probe_can_make_tokens_anew_in_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = small(signal=1.5)
    probe = AttentiveProbe(epochs=6, batch_size=16, lr=3e-3)
    kept = values(probe(seeing(dataset, Pixelwise()), dataset))
    monkeypatch.setattr("maskzoo.evaluation.attentive.CACHE", 0)
    assert values(probe(seeing(dataset, Pixelwise()), dataset)) == kept


def test_heads_that_cannot_share_the_width_are_refused() -> None:
    dataset = small()
    with pytest.raises(ContractError, match="5 heads cannot share a width of 16"):
        list(AttentiveProbe(heads=5)(seeing(dataset, Pixelwise()), dataset))


# ------------------------------------------------------------------------------------------------------------ finetune
@pytest.mark.parametrize("options", [{}, {"mixup": 0.2, "cutmix": 0.5, "drop_path": 0.1}], ids=["plain", "mixed"])
@pytest.mark.slow
def test_fine_tuning_learns_and_leaves_the_model_alone(options: dict[str, Any]) -> None:
    dataset = small(signal=1.5)
    encoder = encoder_of(dataset)
    before, modes = state_of(encoder.objective), [part.training for part in encoder.backbone.modules()]
    drop_path = encoder.backbone.drop_path
    tune = FineTune(epochs=8, batch_size=10, lr=5e-3, scale=(1.0, 1.0), **options)
    (result,) = tune(encoder, dataset)
    assert result.name == "top1"
    assert result.value > (0.9 if not options else 0.6)
    assert all(torch.equal(value, before[name]) for name, value in encoder.objective.state_dict().items())
    assert [part.training for part in encoder.backbone.modules()] == modes
    assert all(parameter.grad is None for parameter in encoder.backbone.parameters())
    assert encoder.backbone.drop_path == drop_path


def test_fine_tuning_is_the_same_twice_and_hangs_on_its_seed() -> None:
    dataset = small(train=30, signal=0.3)
    encoder = encoder_of(dataset)
    scores = {}

    class Kept(FineTune):
        def _train(self, model: Any, encoder: Any, dataset: Any) -> None:
            super()._train(model, encoder, dataset)
            scores[len(scores)] = model.head.weight.detach().clone()

    for seed in (0, 0, 1):
        torch.rand(3)  # nothing hangs on what was drawn before
        list(Kept(epochs=1, batch_size=10, drop_path=0.2, mixup=0.5, seed=seed)(encoder, dataset))
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


def test_fine_tuning_begins_with_the_encoders_weights_and_the_drop_path_asked_for() -> None:
    backbone = tiny_objective(channels=1, size=(16, 16)).backbone
    copied = FineTune(drop_path=0.3)._copy(backbone)
    assert copied is not backbone
    assert (copied.drop_path, backbone.drop_path) == (0.3, 0.0)
    assert all(torch.equal(value, backbone.state_dict()[name]) for name, value in copied.state_dict().items())
    assert FineTune()._copy(copied).drop_path == 0.3
    with pytest.raises(RecipeError, match=r"finetune\.drop_path: the backbone 'pixelwise' is no timm model"):
        FineTune(drop_path=0.1)._copy(Pixelwise())


# ------------------------------------------------------------------------------------------------------ reconstruction
def test_the_loss_on_fixed_masks_is_the_objectives_own_whatever_the_batches() -> None:
    dataset, objective = small(test=10), tiny_objective(channels=1, size=(16, 16))
    found = {
        size: values(Reconstruction(ratio=0.6)(encoder_of(dataset, objective=objective, batch_size=size), dataset))
        for size in (1, 4, 10)
    }
    seen: list[Mask] = []
    forward = objective.forward

    def watched(images: Tensor, mask: Mask, **rest: Any) -> Any:
        assert not objective.training
        seen.append(mask)
        return forward(images, mask, **rest)

    objective.forward = watched
    list(Reconstruction(ratio=0.6)(encoder_of(dataset, objective=objective), dataset))
    (mask,) = seen
    assert mask.count == 10  # 16 - int(16 * 0.4), as MAE rounds
    assert len({tuple(row) for row in mask.hidden.tolist()}) > 5
    encoder = encoder_of(dataset, objective=objective)
    ((images, _),) = encoder.batches(dataset.test, range(10))
    with torch.no_grad():
        losses = objective.eval()(images, mask).patch_loss
    expected = losses[mask.hidden].mean().item()
    for value in found.values():
        assert value == {"loss on fixed masks": pytest.approx(expected, rel=1e-5)}


def test_the_fixed_masks_are_the_same_for_every_model_and_loss_tells_models_apart() -> None:
    dataset = small(test=10)
    torch.manual_seed(1)
    first = encoder_of(dataset)
    torch.manual_seed(2)
    second = encoder_of(dataset)
    seen: list[Tensor] = []
    for encoder in (first, second):
        encoder.objective.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1].hidden))
    losses = [values(Reconstruction()(encoder, dataset)) for encoder in (first, second)]
    assert torch.equal(seen[0], seen[1])
    assert losses[0] != losses[1]


@pytest.mark.parametrize("use", ["classify", "distill"])
def test_no_loss_is_told_of_what_rebuilds_nothing_or_follows_a_teacher(use: str) -> None:
    dataset = small()
    backbone = tiny_objective(channels=1, size=(16, 16)).backbone
    options = {"classes": CLASSES} if use == "classify" else {"decoder_dim": 16, "decoder_depth": 1}
    objective = make(REGISTRY, "objective", {"use": use, **options}, "objective")
    objective.setup(backbone)
    assert list(Reconstruction()(encoder_of(dataset, objective=objective), dataset)) == []
    assert list(Reconstruction()(seeing(dataset, Pixelwise()), dataset)) == []


# ---------------------------------------------------------------------------------------------------------- classifier
def test_a_classifier_of_other_classes_is_not_asked() -> None:
    class Foretelling(Given):
        learnt = CLASSES

        def predictions(self, split: Any, images: int | None = None) -> tuple[Tensor, Tensor]:
            return torch.eye(self.learnt)[split.labels], split.labels

    encoder = Foretelling()
    assert values(Classifier()(encoder, small())) == {"top1": 1.0}
    encoder.learnt = CLASSES + 1
    with pytest.raises(ContractError, match=f"it has learnt {CLASSES + 1} classes, not {CLASSES}"):
        list(Classifier()(encoder, small()))


# ---------------------------------------------------------------------------------------------------------- all of them
PROBES: list[Callable[[], Any]] = [
    lambda: LinearProbe(epochs=2),
    lambda: FewShot(shots=(1,)),
    lambda: AttentiveProbe(epochs=1),
    lambda: FineTune(epochs=1),
]


@pytest.mark.parametrize("probe", PROBES)
def test_without_labels_or_test_images_a_probe_has_nothing_to_say(probe: Callable[[], Any]) -> None:
    dataset = small(train=30, test=9)
    empty = ImagesInMemory(dataset.test.images[:0], dataset.test.labels[:0])
    encoder = encoder_of(dataset)
    assert list(probe()(encoder, attrs.evolve(dataset, classes=None))) == []
    assert list(probe()(encoder, attrs.evolve(dataset, test=empty))) == []


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.sampled(1)
def test_a_probe_draws_nothing_from_the_global_generator(probe: Callable[[], Any]) -> None:
    dataset = small(train=30, test=9)
    encoder = encoder_of(dataset)
    before = torch.random.get_rng_state()
    first = list(probe()(encoder, dataset))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert list(probe()(encoder, dataset)) == first


@pytest.mark.parametrize(
    ("evaluator", "options"),
    [
        (LinearProbe, {"rates": ()}),
        (LinearProbe, {"rates": (0.1, 0.0)}),
        (LinearProbe, {"held_out": 0.0}),
        (FewShot, {"shots": ()}),
        (FewShot, {"draws": 0}),
        (AttentiveProbe, {"images": 0}),
        (FineTune, {"batch_size": 7, "mixup": 0.2}),
        (FineTune, {"layer_decay": 0.0}),
        (FineTune, {"drop_path": 1.0}),
        (FineTune, {"scale": (0.5, 0.2)}),
        (Reconstruction, {"ratio": 1.0}),
    ],
    ids=str,
)
def test_options_that_mean_nothing_are_refused_by_name(evaluator: type, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        evaluator(**options)


def test_the_rate_rises_and_falls() -> None:
    assert [cosine(progress, 0.5) for progress in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert cosine(0.0) == 1.0


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.8765, "0.876"), (0.01234, "0.0123"), (12.7821, "12.78"), (-3.14159, "-3.142"), (1234.5, "1234"), (0, "0.000")],
)
def test_a_value_is_printed_as_its_unit_says(value: float, text: str) -> None:
    assert printed(value) == text
    assert printed(0.8765, "share") == "87.6%"
    assert printed(None) == printed(float("nan"), "share") == "not a number"


# --------------------------------------------------------------------------------------------------------- the command
def maskzoo(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments], env={"COLUMNS": "400"}, prog_name="maskzoo")


def train(out: Path, evaluation: str) -> str:
    """What a run of two steps on small digits prints."""
    tiny = ["--set", "data.upsample=16", "--set", "backbone.options.depth=1", "--set", "backbone.options.embed_dim=24"]
    quick = ["--device", "cpu", "--set", "train.steps=2", "--set", "train.pictures=0"]
    done = maskzoo("train", "--out", out, "--set", f"evaluation={evaluation}", *quick, *tiny)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on small digits, which nobody changes."""
    out = tmp_path_factory.mktemp("runs") / "run"
    train(out, "[{use='knn', images=100}]")
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def evaluated(*arguments: str | Path) -> str:
    done = maskzoo("evaluate", *arguments, "--device", "cpu")
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def entries(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "evaluation.json").read_text())["evaluations"]
    return found


@pytest.mark.slow
def test_evaluating_a_run_adds_to_its_figures_and_replaces_only_its_own(run: Path) -> None:
    before = entries(run)
    shown = evaluated(run, "--with", "knn:[5,20],reconstruction", "--set", "knn.images=50")
    assert "knn (k 5, images 50)" in shown
    assert "loss on fixed masks" in shown
    assert "step 2" in shown
    after = json.loads((run / "evaluation.json").read_text())
    assert [entry["when"] for entry in before] == ["before", "after"]
    assert entries(run)[:2] == before  # what the run wrote stays as it is
    first, second, third = entries(run)[2:]
    assert [entry["evaluator"].get("k") for entry in (first, second, third)] == [5, 20, None]
    assert first["evaluator"] == {
        "use": "knn",
        "k": 5,
        "images": 50,
        "temperature": 0.07,
        "metric": "cosine",
        "weighting": "similarity",
    }
    (metric,) = first["metrics"]
    assert (metric["name"], metric["better"], metric["unit"], metric["label"]) == (
        *("top1", "higher", "share"),
        "k-NN top-1",
    )
    assert (first["step"], first["pooling"], first["data"]) == (2, "mean", {"use": "digits", "upsample": 16})
    emptied = [*before, {**first, "metrics": []}, second, third]
    (run / "evaluation.json").write_text(json.dumps({**after, "evaluations": emptied}))
    evaluated(run, "--with", "knn:[5,20]", "--set", "knn.images=50")
    assert entries(run) == [*before, first, second, third]
    evaluated(run, "--with", "knn", "--set", "knn.images=50")  # the same measurement as one of several k
    assert entries(run) == [*before, first, second, third]
    evaluated(run, "--with", "knn:[5,20]", "--set", "knn.images=50", "--pooling", "class")
    assert [entry["pooling"] for entry in entries(run)[2:]] == ["mean", "mean", "mean", "class", "class"]
    assert entries(run)[5]["metrics"] != first["metrics"]


@pytest.mark.slow
def test_without_wishes_a_run_is_evaluated_as_its_recipe_says(run: Path) -> None:
    evaluated(run)
    entry = entries(run)[2]
    assert (entry["when"], entry["evaluator"]["images"]) == ("later", 100)
    assert entry["metrics"][0]["value"] == measured_by(run, "after")["knn/top1"]


@pytest.mark.slow
def test_what_needs_labels_is_said_and_the_others_still_run(run: Path, tmp_path: Path) -> None:
    for number in range(12):
        folder = tmp_path / "images" / ("train" if number < 8 else "test")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    wishes = ["--data", tmp_path / "images", "--with", "knn,finetune,reconstruction"]
    done = maskzoo("evaluate", run, *wishes, "--device", "cpu")
    assert done.exit_code == 2
    assert "have 3 channels, and the run's backbone takes 1" in done.output
    shown = evaluated(run, *wishes, "--set", "data.channels=1")
    for name in ("knn", "finetune"):
        assert f"{name}: not measured: it needs labels, and data 'folder' have none" in shown
    (entry,) = entries(run)[2:]
    assert entry["evaluator"]["use"] == "reconstruction"
    assert entry["data"]["root"] == str(tmp_path / "images")
    assert entry["metrics"][0]["value"] > 0


def test_a_figure_that_is_no_number_is_said_and_kept_as_null(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(self: Any, encoder: Any, dataset: Any) -> Iterator[tuple[str, float]]:
        yield "top1", float("nan")

    monkeypatch.setattr(FewShot, "__call__", nothing)
    shown = evaluated(run, "--with", "fewshot")
    assert "fewshot: top1 is nan, no finite number" in shown
    assert [(one["name"], one["value"]) for one in entries(run)[2]["metrics"]] == [("top1", None)]


@pytest.mark.slow
def test_a_run_keeps_what_is_no_number_as_null_and_shows_a_loss_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(self: Any, encoder: Any, dataset: Any) -> Iterator[tuple[str, float]]:
        yield "top1", float("nan")

    monkeypatch.setattr(FewShot, "__call__", nothing)
    shown = train(tmp_path / "run", "['fewshot', 'reconstruction']")
    json.loads((tmp_path / "run" / "evaluation.json").read_text(), parse_constant=pytest.fail)
    after = measured_by(tmp_path / "run", "after")
    assert measured_by(tmp_path / "run", "before").keys() == after.keys()
    assert after["fewshot/top1"] is None
    assert "fewshot/top1: not a number before, not a number after training" in shown
    assert f"fewshot/top1 of '{tmp_path / 'run'}' is not a number" in "".join(gather([tmp_path / "run"]).remarks)
    assert f"{after['reconstruction/loss on fixed masks']:.3f} after training" in shown
    assert "fewshot/top1 is nan after training" in (tmp_path / "run" / "warnings.txt").read_text()


@pytest.mark.slow
def test_what_one_evaluator_refuses_the_others_survive(run: Path) -> None:
    shown = evaluated(run, "--with", "fewshot,knn", "--set", "fewshot.images=20")
    assert "fewshot: not measured: class" in shown
    assert [entry["evaluator"]["use"] for entry in entries(run)[2:]] == ["knn"]


@pytest.mark.slow
def test_any_backbone_stands_in_the_same_table(run: Path, tmp_path: Path) -> None:
    backbone = ["--backbone", "vit_tiny_patch16_224", "--out", tmp_path / "other"]
    sizes = [f"backbone.{key}={value}" for key, value in (("patch_size", 2), ("position", '"sin-cos"'))]
    sizes += ["backbone.options={embed_dim=24, depth=1, num_heads=4}", "data.upsample=16", "knn.images=100"]
    settings = [word for setting in sizes for word in ("--set", setting)]
    evaluated(*backbone, "--data", "digits", "--with", "knn", *settings)
    evaluated(*backbone, "--data", "digits", "--with", "knn", *settings, "--weights", run)
    initial, learnt = entries(tmp_path / "other")
    assert (initial["weights"], learnt["weights"]) == (None, str(run))
    assert initial["model"] == learnt["model"]
    assert initial["metrics"][0]["value"] == measured_by(run, "before")["knn/top1"]
    assert learnt["metrics"][0]["value"] == measured_by(run, "after")["knn/top1"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give the folder of a run, or --backbone with --out"),
        (["RUN", "--backbone", "resnet18"], "give the folder of a run, or --backbone with --out"),
        (["RUN", "--pretrained"], "--weights, --pretrained and --out go with --backbone"),
        (["--backbone", "resnet18"], "--out: say in which folder"),
        (["nowhere"], "'nowhere' is no run: it has no recipe.toml"),
        (["RUN", "--with", "kn"], "--with kn.use: no evaluator named 'kn'; did you mean 'knn'?"),
        (["RUN", "--with", "knn,"], "expected names of evaluators with commas between them"),
        (["RUN", "--with", "knn:[1,2"], "the brackets of 'knn:[1,2' do not match"),
        (["RUN", "--with", "knn", "--set", "linear.epochs=3"], "--set: no 'linear' is to be set here"),
        (["RUN", "--with", "knn", "--set", "knn.kk=3"], "--with knn.kk: no such key; did you mean 'k'?"),
        (["RUN", "--with", "knn", "--set", "knn"], "--set: expected EVALUATOR.OPTION=VALUE"),
        (["RUN", "--data", "fashion"], "'fashion' is neither a folder nor a data set"),
        (["RUN", "--with", "classifier"], "nothing could be measured"),
        (["--backbone", "test_vit", "--out", "RUN"], "is a run, whose figures are its own"),
    ],
    ids=str,
)
def test_questions_that_make_no_sense_are_answered_with_a_sentence(
    arguments: list[str], sentence: str, trained: Path
) -> None:
    before = (trained / "evaluation.json").read_text()
    done = maskzoo("evaluate", *[str(trained) if one == "RUN" else one for one in arguments], "--device", "cpu")
    assert done.exit_code == 2, (done.output, done.exception)
    assert sentence in done.output
    assert (trained / "evaluation.json").read_text() == before


def test_a_run_that_is_being_written_to_is_not_evaluated(run: Path) -> None:
    with FileLock(run / "lock"):
        done = maskzoo("evaluate", run, "--device", "cpu")
    assert done.exit_code == 2
    assert "is being written to by another run" in done.output
    assert "--out" not in done.output


def test_an_encoder_that_has_learnt_is_told_from_one_that_has_not() -> None:
    dataset = small(signal=1.5)
    for probe in (LinearProbe(epochs=20), FewShot(shots=(5,)), AttentiveProbe(epochs=6, batch_size=16, lr=3e-3)):
        sees = next(iter(values(probe(seeing(dataset, Pixelwise()), dataset)).values()))
        blind = next(iter(values(probe(seeing(dataset, Blind()), dataset)).values()))
        assert sees > blind + 0.2, probe.name
