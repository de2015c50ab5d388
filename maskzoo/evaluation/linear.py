"""How well a linear map of the frozen features tells the classes: the linear probe.

Shapes: B images in a batch, M images, R rates, D channels, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import attrs
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from maskzoo.bounds import MOST_EPOCHS, MOST_IMAGES, between
from maskzoo.errors import ContractError
from maskzoo.evaluation.options import Images, an_amount, classes_of, cosine, labelled_features, several_above_zero
from maskzoo.metrics import Metric, accuracy
from maskzoo.protocols import Dataset, Encoder, Need, define
from maskzoo.seeds import stream

PIECE = 4096  # images that are scored at once
MOST_ITERATIONS = 2000  # of scikit-learn's solver


@define
class LinearProbe:
    """Accuracy of a linear classifier on frozen features, at the best of several rates.

    Features are made once, without augmentation, and standardised by the training images' mean and deviation, as MAE's
    BatchNorm without affine does. All rates are trained side by side on the same batches. Which one is best is decided
    on a held-out part of the training images; then that one is trained on all of them, and meets the test images.
    """

    name: ClassVar[str] = "linear"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})

    solver: Literal["sgd", "lars", "lbfgs"] = "sgd"  # "lbfgs": scikit-learn's LogisticRegression, for small data
    rates: tuple[float, ...] = attrs.field(  # of sgd and lars, absolute
        default=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0), validator=several_above_zero
    )
    penalties: tuple[float, ...] = attrs.field(  # of lbfgs: the inverse of scikit-learn's C
        default=(0.01, 0.1, 1.0, 10.0, 100.0), validator=several_above_zero
    )
    epochs: int = attrs.field(default=100, validator=between(1, MOST_EPOCHS))  # epochs of training the probe
    batch_size: int = attrs.field(default=256, validator=between(1, MOST_IMAGES))  # images per step of the probe
    weight_decay: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))  # of the probe's weights
    held_out: float = attrs.field(  # share of the training images on which the rate is chosen
        default=0.2, validator=[attrs.validators.gt(0), attrs.validators.lt(1)]
    )
    images: Images = attrs.field(default="all", validator=an_amount)  # images of each split, at most
    # random seed of the evaluation's own draws
    seed: int = attrs.field(default=0, validator=attrs.validators.ge(0))

    def __call__(self, encoder: Encoder, dataset: Dataset) -> Iterator[Metric]:
        """Yield "top1", the share of test images told right, and "rate" or "penalty", the one that was chosen.

        Nothing without labels or test images.
        """
        found = labelled_features(encoder, dataset, self.images)
        if found is None:
            return
        (train, labels), (test, truth) = found
        classes = classes_of(dataset)
        offered = self.penalties if self.solver == "lbfgs" else self.rates
        chosen = offered[0] if len(offered) == 1 else self._best(train, labels, offered, classes, encoder)
        (right,) = self._accuracies(train, labels, test, truth, [chosen], classes, encoder)
        yield accuracy(self.name, right)
        yield Metric("penalty" if self.solver == "lbfgs" else "rate", chosen, result=False)

    def _best(self, train: Tensor, labels: Tensor, offered: Sequence[float], classes: int, encoder: Encoder) -> float:
        """The rate or penalty that does best on the held-out part of the training images."""
        out = round(len(train) * self.held_out)
        if not 0 < out < len(train):
            raise ContractError(f"linear: a share of {self.held_out:g} of {len(train)} training images is no part")
        order = torch.randperm(len(train), generator=stream(self.seed, "held out"))
        kept, held = order[out:], order[:out]
        accuracies = self._accuracies(train[kept], labels[kept], train[held], labels[held], offered, classes, encoder)
        return offered[max(range(len(offered)), key=accuracies.__getitem__)]

    def _accuracies(
        self,
        train: Tensor,
        labels: Tensor,
        test: Tensor,
        truth: Tensor,
        offered: Sequence[float],
        classes: int,
        encoder: Encoder,
    ) -> list[float]:
        """The accuracy on `test` of what each of the offered rates or penalties makes of `train`.

        Raises ContractError where all rates were so high that nothing finite came of them.
        """
        device = encoder.device
        mean, deviation = moments(train)
        if self.solver == "lbfgs":
            standard, asked = ((features - mean) / deviation for features in (train, test))
            answers = [logistic(standard, labels, asked, penalty) for penalty in offered]
            return [(answer == truth).double().mean().item() for answer in answers]
        layers = Layers(train.shape[1], classes, len(offered), self.seed).to(device)
        with torch.enable_grad():
            self._train(layers, train, labels, (mean, deviation), offered, encoder)
        sound = torch.stack([weight.detach().isfinite().all() for weight in layers.weights])  # [R]
        if not sound.any():
            raise ContractError("linear: at none of its rates the weights stayed finite; lower its rates")
        right = torch.zeros(len(offered), dtype=torch.float64)
        with torch.no_grad():
            for some, told in zip(torch.split(test, PIECE), torch.split(truth, PIECE), strict=True):
                scores = layers(((some - mean) / deviation).to(device)).cpu()  # [R, B, K]
                right += (scores.argmax(dim=2) == told).sum(dim=1)
        return torch.where(sound.cpu(), right / len(test), -1.0).tolist()

    def _train(
        self,
        layers: Layers,
        train: Tensor,
        labels: Tensor,
        standard: tuple[Tensor, Tensor],
        rates: Sequence[float],
        encoder: Encoder,
    ) -> None:
        """Train one layer a rate on the same batches, as if each were alone: no loss knows another's layer."""
        lars = self.solver == "lars"
        extra = {"always_adapt": True} if lars else {}  # MAE's adapts the weights, and not the biases
        groups: list[dict[str, Any]] = []
        for weight, bias in zip(layers.weights, layers.biases, strict=True):
            groups += [
                {"params": [weight], "weight_decay": self.weight_decay, **extra},
                {"params": [bias], "weight_decay": 0.0},
            ]
        optimizer = create_optimizer_v2(groups, opt="lars" if lars else "momentum", lr=0.0, momentum=0.9)
        steps = self.epochs * -(-len(train) // self.batch_size)
        mean, deviation = standard
        step = 0
        for epoch in range(self.epochs):
            order = torch.randperm(len(train), generator=stream(self.seed, "linear", epoch))
            for some in torch.split(order, self.batch_size):
                encoder.refuse_if_stopping()
                for number, group in enumerate(optimizer.param_groups):
                    group["lr"] = rates[number // 2] * cosine(step / steps)
                scores = layers(((train[some] - mean) / deviation).to(encoder.device))  # [R, B, K]
                told = labels[some].to(encoder.device).expand(len(rates), -1)
                loss = cross_entropy(scores.flatten(0, 1), told.flatten(), reduction="sum") / len(some)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                step += 1


class Layers(nn.Module):
    """R linear layers side by side, all with the same initial weights, of deviation 0.01."""

    def __init__(self, dim: int, classes: int, number: int, seed: int) -> None:
        super().__init__()
        initial = 0.01 * torch.randn(classes, dim, generator=stream(seed, "linear", "weights"))
        self.weights = nn.ParameterList(nn.Parameter(initial.clone()) for _ in range(number))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(classes)) for _ in range(number))

    def forward(self, features: Tensor) -> Tensor:
        """Scores [R, B, K] of features [B, D]."""
        return features @ torch.stack(list(self.weights)).mT + torch.stack(list(self.biases))[:, None]


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [D] of features [M, D], piece by piece; a channel without any deviation has 1."""
    mean = features.mean(dim=0)
    squares = torch.zeros(features.shape[1], dtype=torch.float64)
    for some in torch.split(features, PIECE):
        squares += (some - mean).square().sum(dim=0)
    deviation = (squares / len(features)).sqrt().float()
    return mean, torch.where(deviation > 1e-6, deviation, 1.0)


def logistic(train: Tensor, labels: Tensor, test: Tensor, penalty: float) -> Tensor:
    """The labels [.] that scikit-learn's logistic regression on `train` [M, D] and `labels` [M] gives to `test`."""
    from sklearn.linear_model import LogisticRegression

    if len(set(labels.tolist())) == 1:  # nothing to tell apart
        return labels[:1].expand(len(test))
    fitted = LogisticRegression(C=1 / penalty, max_iter=MOST_ITERATIONS)
    fitted.fit(train.double().numpy(), labels.numpy())
    return torch.from_numpy(fitted.predict(test.double().numpy()))
