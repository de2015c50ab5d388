from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from typing import Any, Literal

import attrs
import numpy as np
import pytest
import torch
from helpers import values
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from torch import Tensor, nn

from maskzoo.data.digits import Digits, ImagesInMemory
from maskzoo.data.folder import SourceGoneError
from maskzoo.data.labels import NoLabelsError
from maskzoo.data.prepare import prepare
from maskzoo.errors import ContractError, DataError, StoppedError
from maskzoo.evaluation import maskzoo_evaluators
from maskzoo.evaluation.features import WholeImages, evenly_spread
from maskzoo.evaluation.knn import KNearestNeighbours, nearest, vote
from maskzoo.protocols import Sample


class Patches(nn.Module):
    """A backbone whose latent is its class and register token and each patch's pixels, normalised by batch."""

    name = "patches"

    def __init__(self, channels: int = 1, prefix: int = 2) -> None:
        super().__init__()
        self.prefix = prefix
        self.dim = channels * 16
        self.norm = nn.BatchNorm2d(channels)
        self.frozen = nn.Dropout(0.5)
        self.tokens = nn.Parameter(torch.full((prefix, self.dim), 100.0))

    def forward(self, images: Tensor, mask: object = None) -> Tensor:
        assert mask is None
        pixels = nn.functional.unfold(self.frozen(self.norm(images)), 4, stride=4).transpose(1, 2)  # [B, N, D]
        return torch.cat([self.tokens.expand(len(images), -1, -1), pixels], dim=1)


class Pixels:
    """An encoder that passes images through."""

    device = torch.device("cpu")

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def __call__(self, images: Tensor) -> Tensor:
        return images.flatten(1)

    def features(self, split: Any, images: int | None = None) -> tuple[Tensor, Tensor | None]:
        chosen = evenly_spread(len(split), images)
        labels = [split[index].label for index in chosen]
        values = torch.stack([split[index].image.flatten().float() - 127 for index in chosen])
        return values, None if None in labels else torch.tensor(labels)


@attrs.define(eq=False)
class Points:
    """A data set of images [1, 4, 4]."""

    train: Any
    test: Any
    classes: Sequence[str] | None = tuple(map(str, range(100)))
    name: str = "points"
    channels: int = 1
    size: tuple[int, int] = (8, 8)
    flip: bool = False
    mean: Sequence[float] = (0.5,)
    std: Sequence[float] = (0.5,)


@attrs.define(eq=False)
class Album:
    """A split of which some cannot be read."""

    images: Tensor
    broken: frozenset[int] = frozenset()
    labelled: bool = True

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        if index in self.broken:
            raise DataError(f"'{index}.jpg' cannot be decoded")
        return Sample(self.images[index], index if self.labelled else None)


def points(signal: float) -> Points:
    """Three classes, whose images are noise with `signal` times a picture of their own."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(3, 1, 4, 4, generator=generator)

    def split(images: int) -> ImagesInMemory:
        labels = torch.arange(images) % 3
        values = 127 + 20 * (signal * pictures[labels] + torch.randn(images, 1, 4, 4, generator=generator))
        return ImagesInMemory(values.round().clamp(0, 255).to(torch.uint8), labels)

    return Points(split(300), split(150))


def images(count: int, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 1, size, size), dtype=torch.uint8, generator=generator)


# ------------------------------------------------------------------------------------------------------------ features
def test_mean_features_leave_the_prefix_out_and_class_features_are_the_first_token() -> None:
    dataset = Points(Album(images(5)), Album(images(0)))
    backbone = Patches().eval()
    prepared = torch.stack([prepare(image, (8, 8), (0.5,), (0.5,)) for image in images(5)])
    expected = nn.functional.unfold(backbone.norm(prepared), 4, stride=4).mean(dim=2)
    features, labels = WholeImages(backbone, dataset, (8, 8), batch_size=2).features(dataset.train)
    assert torch.allclose(features, expected, atol=1e-5)
    assert labels is not None
    assert labels.tolist() == [0, 1, 2, 3, 4]
    assert WholeImages(backbone, dataset, (8, 8), pooling="class")(prepared).eq(100).all()


def test_class_features_need_a_class_token() -> None:
    dataset = Points(Album(images(1)), Album(images(0)))
    with pytest.raises(ContractError, match="'patches' has no class token"):
        WholeImages(Patches(prefix=0), dataset, (8, 8), pooling="class")
    assert WholeImages(Patches(prefix=0), dataset, (8, 8)).features(dataset.train)[0].shape == (1, 16)


def test_features_leave_the_backbone_as_it_was_part_by_part() -> None:
    dataset = Points(Album(images(4)), Album(images(0)))
    backbone = Patches()
    backbone.frozen.eval()
    before = {name: values.clone() for name, values in backbone.state_dict().items()}
    first, _ = WholeImages(backbone, dataset, (8, 8)).features(dataset.train)
    assert (backbone.training, backbone.norm.training, backbone.frozen.training) == (True, True, False)
    assert all(torch.equal(values, before[name]) for name, values in backbone.state_dict().items())
    assert torch.equal(first, WholeImages(backbone, dataset, (8, 8)).features(dataset.train)[0])


def test_a_failing_backbone_is_put_back_into_its_mode_too() -> None:
    dataset = Points(Album(images(1)), Album(images(0)))
    backbone = Patches()
    with pytest.raises(RuntimeError):
        WholeImages(backbone, dataset, (8, 8))(torch.zeros(1, 3, 8, 8))
    assert backbone.norm.training


def test_features_can_be_learnt_from_and_are_float32() -> None:
    dataset = Points(Album(images(3)), Album(images(0)))
    features, _ = WholeImages(Patches().to(torch.bfloat16), dataset, (8, 8))(torch.zeros(2, 1, 8, 8).bfloat16()), None
    assert features.dtype == torch.float32
    assert not features.requires_grad
    nn.Linear(16, 2)(features).sum().backward()


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_left_out_of_features_with_their_labels(workers: int) -> None:
    whole = Album(images(6))
    holed = Album(images(6), frozenset([0, 5]))
    dataset = Points(holed, Album(images(0)))
    encoder = WholeImages(Patches(), dataset, (8, 8), batch_size=2, workers=workers, max_broken=0.4)
    features, labels = encoder.features(holed)
    assert labels is not None
    assert labels.tolist() == [1, 2, 3, 4]
    assert torch.allclose(features, encoder.features(whole)[0][1:5])
    assert encoder.broken() == ["'0.jpg' cannot be decoded", "'5.jpg' cannot be decoded"]
    assert encoder.broken() == []
    with pytest.raises(DataError, match=r"3 of 6 images cannot be read.*'0\.jpg'"):
        encoder.features(Album(images(6), frozenset([0, 2, 4])))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation_stops_where_somebody_asks_for_it(workers: int) -> None:
    dataset, asked = Points(Album(images(6)), Album(images(0))), iter([False, True])
    encoder = WholeImages(Patches(), dataset, (8, 8), batch_size=2, workers=workers, stopping=lambda: next(asked))
    with pytest.raises(StoppedError, match="during an evaluation"):
        encoder.features(dataset.train)
    assert list(asked) == []  # in the middle
    assert multiprocessing.active_children() == []


def test_images_come_in_their_order_from_any_number_of_workers() -> None:
    dataset = Points(Album(images(23), frozenset([7, 8])), Album(images(0)))
    alone, shared = (
        list(
            WholeImages(Patches(), dataset, (8, 8), batch_size=4, workers=workers).batches(dataset.train, range(3, 23))
        )
        for workers in (0, 2)
    )
    assert [labels for _, labels in alone] == [labels for _, labels in shared]
    assert [label for _, labels in alone for label in labels] == [*range(3, 7), *range(9, 23)]
    assert all(torch.equal(one[0], other[0]) for one, other in zip(alone, shared, strict=True))


def test_a_batch_in_which_nothing_can_be_read_is_told_of_too() -> None:
    dataset = Points(Album(images(21), frozenset([20])), Album(images(0)))
    encoder = WholeImages(Patches(), dataset, (8, 8), batch_size=10)
    with encoder.remembering():
        for _ in range(2):  # what is remembered has lost the same image
            assert len(encoder.features(dataset.train)[0]) == 20
            assert encoder.broken() == ["'20.jpg' cannot be decoded"]


def test_where_the_images_are_gone_no_more_of_them_are_asked_for() -> None:
    class Gone(Album):
        asked = 0

        def __getitem__(self, index: int) -> Sample:
            Gone.asked += 1
            if index < 2:
                return super().__getitem__(index)
            raise SourceGoneError("the folder is gone")

    split = Gone(images(9))
    encoder = WholeImages(Patches(), Points(split, Album(images(0))), (8, 8), batch_size=2)
    with pytest.raises(SourceGoneError, match="the folder is gone"):
        encoder.features(split)
    assert Gone.asked == 3


def test_features_without_labels_and_of_an_empty_split() -> None:
    dataset = Points(Album(images(3), labelled=False), Album(images(0)))
    encoder = WholeImages(Patches(), dataset, (8, 8))
    assert encoder.features(dataset.train)[1] is None
    features, _ = encoder.features(dataset.test)
    assert features.shape == (0, 16)


def test_features_are_made_once_while_they_are_remembered_and_anew_afterwards() -> None:
    dataset = Points(Album(images(4)), Album(images(2)))
    backbone = Patches()
    encoder = WholeImages(backbone, dataset, (8, 8))
    with encoder.remembering():
        first, _ = encoder.features(dataset.train)
        assert encoder.features(dataset.train)[0] is first
        assert encoder.features(dataset.train, 4)[0] is first  # all of them
        assert len(encoder.features(dataset.train, 3)[0]) == 3
        assert len(encoder.features(dataset.test)[0]) == 2
    with torch.no_grad():
        backbone.norm.weight.fill_(2.0)
    assert not torch.equal(encoder.features(dataset.train)[0], first)


def test_tokens_are_those_of_the_patches_alone() -> None:
    dataset = Points(Album(images(3)), Album(images(0)))
    encoder = WholeImages(Patches(), dataset, (8, 8))
    ((prepared, labels),) = encoder.batches(dataset.train, [2, 0])
    assert labels == [2, 0]
    assert encoder.tokens(prepared).shape == (2, 4, 16)
    assert torch.allclose(encoder.tokens(prepared).mean(dim=1), encoder(prepared))


def test_features_of_images_that_differ_in_size() -> None:
    class Mixed(Album):
        def __getitem__(self, index: int) -> Sample:
            return Sample(images(1, 8 + 3 * index)[0], 0)

    dataset = Points(Mixed(images(4)), Album(images(0)))
    assert WholeImages(Patches(), dataset, (8, 8)).features(dataset.train)[0].shape == (4, 16)


def test_a_part_of_a_split_is_spread_over_it_without_repeats_and_always_the_same() -> None:
    for total, wanted in ((10, 3), (10, 9), (1000, 100), (7, 7), (3, 10), (0, 5), (5, None)):
        chosen = evenly_spread(total, wanted)
        assert len(chosen) == min(total, total if wanted is None else wanted)
        assert chosen == sorted(set(chosen))
        assert all(0 <= index < total for index in chosen)
        assert chosen == evenly_spread(total, wanted)
    assert np.diff([0, *evenly_spread(1000, 100), 999]).max() < 20
    assert len({index % 10 for index in evenly_spread(1000, 100)}) == 10  # classes that take turns


# ----------------------------------------------------------------------------------------------------------------- knn
@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (20, 0.5), (300, 0.2)])
def test_knn_agrees_with_scikit_learn(k: int, temperature: float) -> None:
    dataset = points(signal=0.5)
    encoder = Pixels(16)
    train, labels = encoder.features(dataset.train)
    test, truth = encoder.features(dataset.test)
    theirs = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    ).fit(train.double().numpy(), labels)
    expected = theirs.predict(test.double().numpy())
    assert (vote(train, labels, test, k=k, temperature=temperature).numpy() == expected).mean() > 0.99
    (result,) = KNearestNeighbours(k=k, temperature=temperature, images="all")(encoder, dataset)
    assert result.value == pytest.approx((expected == truth.numpy()).mean(), abs=0.01)


def test_knn_tells_separable_features_from_noise() -> None:
    assert values(KNearestNeighbours()(Pixels(16), points(signal=4.0)))["top1"] > 0.98
    assert values(KNearestNeighbours()(Pixels(16), points(signal=0.0)))["top1"] < 0.5


def test_knn_recognises_digits_by_their_pixels() -> None:
    digits = Digits(upsample=8)
    assert values(KNearestNeighbours(k=5)(Pixels(64), digits))["top1"] > 0.95


def test_knn_in_chunks_is_knn(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = points(signal=1.0)
    (whole,) = KNearestNeighbours()(Pixels(16), dataset)
    monkeypatch.setattr("maskzoo.evaluation.knn.SIMILARITIES", 1000)
    (fewer_test_images,) = KNearestNeighbours()(Pixels(16), dataset)
    monkeypatch.setattr("maskzoo.evaluation.knn.TRAINING", 7)  # fewer than vote
    (fewer_training_images,) = KNearestNeighbours()(Pixels(16), dataset)
    assert fewer_test_images == fewer_training_images == whole


def test_knn_takes_no_more_neighbours_than_there_are_and_no_more_images_than_asked_for() -> None:
    dataset = points(signal=4.0)
    (result,) = KNearestNeighbours(k=10_000, images=60)(Pixels(16), dataset)
    assert result.value > 0.9


def test_a_low_temperature_is_the_nearest_neighbour_and_does_not_overflow() -> None:
    dataset = points(signal=1.0)
    train, labels = Pixels(16).features(dataset.train)
    test, _ = Pixels(16).features(dataset.test)
    nearest = vote(train, labels, test, k=1, temperature=0.07)
    assert torch.equal(vote(train, labels, test, k=20, temperature=1e-6), nearest)


def test_without_labels_or_test_images_knn_has_nothing_to_say() -> None:
    dataset = points(signal=1.0)
    encoder = Pixels(16)
    assert list(KNearestNeighbours()(encoder, attrs.evolve(dataset, classes=None))) == []
    assert list(KNearestNeighbours()(encoder, attrs.evolve(dataset, test=Album(images(0, 4))))) == []
    with pytest.raises(NoLabelsError, match="the training images have no labels"):
        list(KNearestNeighbours()(encoder, attrs.evolve(dataset, train=Album(images(5, 4), labelled=False))))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("rows", [7, 100, 2**16])
def test_the_nearest_are_those_of_scikit_learn_however_many_are_looked_at_at_once(
    metric: Literal["cosine", "euclidean"], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskzoo.evaluation.knn.TRAINING", rows)
    monkeypatch.setattr("maskzoo.evaluation.knn.SIMILARITIES", 50 * rows)
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(300, 16, generator=generator), torch.randn(70, 16, generator=generator)
    train, test = train + 1000 * (metric == "euclidean"), test + 1000 * (metric == "euclidean")  # far from the origin
    theirs = NearestNeighbors(n_neighbors=9, metric=metric, algorithm="brute").fit(train.double().numpy())
    expected = theirs.kneighbors(test.double().numpy(), return_distance=False)
    scores, neighbours = nearest(train, test, most=9, metric=metric)
    assert (neighbours.numpy() == expected).mean() > 0.99
    assert (scores.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("k", [1, 4, 5])
def test_a_plain_vote_by_distance_is_that_of_scikit_learn(k: int) -> None:
    dataset = points(signal=0.5)
    encoder = Pixels(16)
    (train, labels), (test, truth) = encoder.features(dataset.train), encoder.features(dataset.test)
    theirs = KNeighborsClassifier(k, algorithm="brute").fit(train.double().numpy(), labels)
    expected = (theirs.predict(test.double().numpy()) == truth.numpy()).mean()
    (result,) = KNearestNeighbours(k=k, metric="euclidean", weighting="plain", images="all")(encoder, dataset)
    assert result.value == pytest.approx(expected, abs=0.007)  # one image: labels can tie


def test_each_of_several_k_has_a_figure_of_its_own_and_it_is_that_of_k_alone() -> None:
    dataset = points(signal=0.5)
    first, second = KNearestNeighbours(k=(1, 20))(Pixels(16), dataset)
    assert [first, second] == [one for k in (1, 20) for one in KNearestNeighbours(k=k)(Pixels(16), dataset)]
    assert (first.name, first.options, second.options) == ("top1", {"k": 1}, {"k": 20})
    assert first.value != second.value


@pytest.mark.parametrize(
    "options",
    [
        {"k": 0},
        {"k": ()},
        {"k": (5, 5)},
        {"temperature": 0.0},
        {"images": 0},
        {"weighting": "similarity", "metric": "euclidean"},
    ],
    ids=str,
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        KNearestNeighbours(**options)


def test_the_hook_offers_them_all() -> None:
    assert [cls.name for cls in maskzoo_evaluators()] == [
        *("knn", "linear", "attentive", "fewshot", "finetune", "reconstruction", "classifier")
    ]
