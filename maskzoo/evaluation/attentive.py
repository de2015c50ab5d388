"""How well the frozen tokens of the patches tell the classes, if the probe may choose which to look at.

Shapes: B images in a batch, M images, N patches, D channels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import ClassVar

import attrs
import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from maskzoo.bounds import MOST_EPOCHS, MOST_IMAGES, MOST_WIDTH, between
from maskzoo.data.labels import NoLabelsError, why_unmeasurable
from maskzoo.errors import ContractError
from maskzoo.evaluation.features import evaluating, some_of
from maskzoo.evaluation.options import Images, an_amount, at_most, classes_of, cosine, refuse_one_class
from maskzoo.metrics import Metric, accuracy
from maskzoo.protocols import Dataset, Encoder, Need, Split, Stream, define
from maskzoo.seeds import stream, stream_seed

CACHE = 2**32  # bytes of tokens that are kept; more are made anew in each epoch


@define
class AttentiveProbe:
    """Accuracy of timm's attention pooling (one query, which looks at all patches, and an MLP) and a linear layer.

    They learn on frozen tokens of the patches, whichever pooling the encoder has. Images are not augmented. Where all
    tokens fit into 4 GiB they are made once, else in each epoch.
    """

    name: ClassVar[str] = "attentive"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})

    epochs: int = attrs.field(default=20, validator=between(1, MOST_EPOCHS))  # epochs of training the probe
    lr: float = attrs.field(default=1e-3, validator=attrs.validators.gt(0))  # of AdamW, absolute; a cosine to 0
    weight_decay: float = attrs.field(default=0.01, validator=attrs.validators.ge(0))  # of AdamW
    batch_size: int = attrs.field(default=128, validator=between(1, MOST_IMAGES))  # images per step of the probe
    heads: int = attrs.field(default=8, validator=between(1, MOST_WIDTH))  # attention heads of the pooling
    images: Images = attrs.field(default="all", validator=an_amount)  # images of each split, at most
    # random seed of the evaluation's own draws
    seed: int = attrs.field(default=0, validator=attrs.validators.ge(0))

    def __call__(self, encoder: Encoder, dataset: Dataset) -> Iterator[Metric]:
        """Yield "top1", the share of test images told right; nothing without labels or test images."""
        if dataset.classes is None or len(dataset.train) == 0 or len(dataset.test) == 0:
            return
        if reason := why_unmeasurable(dataset):
            raise NoLabelsError(reason)
        if encoder.dim % self.heads:
            raise ContractError(f"attentive: {self.heads} heads cannot share a width of {encoder.dim}")
        device = encoder.device
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            torch.manual_seed(stream_seed(self.seed, "attentive"))  # initial weights
            pool = AttentionPoolLatent(encoder.dim, num_heads=self.heads, norm_layer=nn.LayerNorm)
            probe = nn.Sequential(pool, nn.Linear(encoder.dim, classes_of(dataset))).to(device)
            source = Tokens(encoder, dataset.train, at_most(self.images))
            self._train(probe, source)
        if not source.seen:
            raise NoLabelsError("the training images have no labels (-1)")
        refuse_one_class(source.seen, dataset)
        right, images = 0, 0
        tested = labelled(encoder, dataset.test, some_of(dataset.test, at_most(self.images)))
        with evaluating(probe), torch.no_grad(), closing(tested):
            for tokens, told in tested:
                scores = probe(tokens)
                if not scores.isfinite().all():
                    raise ContractError("attentive: the probe's scores are not finite; lower its lr")
                right += int((scores.argmax(dim=1).cpu() == told).sum())
                images += len(told)
        if not images:
            raise NoLabelsError("the test images have no labels (-1)")
        yield accuracy(self.name, right / images)

    def _train(self, probe: nn.Module, source: Tokens) -> None:
        """Train the probe."""
        device = source.encoder.device
        optimizer = torch.optim.AdamW(probe.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        for epoch in range(self.epochs):
            generator = stream(self.seed, "attentive", epoch)
            with closing(source.epoch(self.batch_size, generator)) as batches:
                for tokens, labels, done in batches:
                    source.encoder.refuse_if_stopping()
                    for group in optimizer.param_groups:
                        group["lr"] = self.lr * cosine((epoch + done) / self.epochs)
                    loss = cross_entropy(probe(tokens.to(device)), labels.to(device))
                    optimizer.zero_grad()
                    torch.autograd.backward(loss)
                    optimizer.step()
        if not all(weight.isfinite().all() for weight in probe.parameters()):
            raise ContractError("attentive: the probe's weights did not stay finite; lower its lr")


class Tokens:
    """The tokens of a split's labelled images, batch by batch in an order of each epoch's own."""

    def __init__(self, encoder: Encoder, split: Split, images: int | None) -> None:
        self.encoder, self.split = encoder, split
        self.chosen = some_of(split, images)
        self.seen: set[int] = set()  # labels
        self._kept: tuple[Tensor, Tensor] | None = None

    def epoch(self, batch_size: int, generator: torch.Generator) -> Generator[tuple[Tensor, Tensor, float], None, None]:
        """Tokens [B, N, D], labels [B], and which share of the epoch came before; a stream keeps its order."""
        if self._kept is None:
            if not self._fits():
                yield from self._anew(batch_size, generator)
                return
            pairs = list(labelled(self.encoder, self.split, self.chosen, device="cpu"))
            if not pairs:
                return
            self._kept = torch.cat([tokens for tokens, _ in pairs]), torch.cat([labels for _, labels in pairs])
        tokens, labels = self._kept
        self.seen |= set(labels.tolist())
        order = torch.randperm(len(labels), generator=generator)
        for number, some in enumerate(torch.split(order, batch_size)):
            yield tokens[some], labels[some], number * batch_size / len(labels)

    def _fits(self) -> bool:
        return len(self.chosen) * math.prod(self.encoder.backbone.grid) * self.encoder.dim * 4 <= CACHE

    def _anew(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, float]]:
        chosen = self.chosen
        if not isinstance(self.split, Stream):
            chosen = [chosen[place] for place in torch.randperm(len(chosen), generator=generator).tolist()]
        done = 0
        waiting: list[tuple[Tensor, Tensor]] = []
        with closing(labelled(self.encoder, self.split, chosen)) as pairs:
            for pair in pairs:
                self.seen |= set(pair[1].tolist())
                waiting.append(pair)
                tokens, labels = (torch.cat(parts) for parts in zip(*waiting, strict=True))
                whole = len(labels) - len(labels) % batch_size  # what is left over waits for the encoder's next batch
                for first in range(0, whole, batch_size):
                    some = slice(first, first + batch_size)
                    yield tokens[some], labels[some], min(1.0, done / len(chosen))
                    done += batch_size
                waiting = [(tokens[whole:], labels[whole:])]
        if waiting and len(waiting[0][1]):
            yield *waiting[0], min(1.0, done / len(chosen))


def labelled(
    encoder: Encoder, split: Split, chosen: list[int], device: str | None = None
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Tokens [B, N, D] and labels [B] of those of the chosen images that have one; no batch is empty."""
    with closing(encoder.batches(split, chosen)) as source:
        for images, told in source:
            known = [place for place, label in enumerate(told) if label is not None]
            if known:
                tokens = encoder.tokens(images[known])
                yield tokens.to(device or tokens.device), torch.tensor([label for label in told if label is not None])
