"""Features of whole images from a trained backbone, pooled one declared way.

Shapes: B images in a batch, M images, C channels, P prefix tokens, N patches, D channels of the latent, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor, nn

from maskzoo import processes
from maskzoo.data.labels import NoLabelsError, without_label
from maskzoo.data.whole import Whole, usual_workers, whole_batches
from maskzoo.errors import ContractError, StoppedError
from maskzoo.guard import Guard
from maskzoo.protocols import Dataset, Objective, Pooling, Split, Stream
from maskzoo.seeds import stream

T = TypeVar("T")
MAX_BROKEN = 0.1
Statistics = tuple[Sequence[float], Sequence[float]]  # mean and deviation of each channel


class WholeImages:
    """A backbone that sees images unmasked, in eval mode and without gradient; an Encoder."""

    def __init__(
        self,
        backbone: Any,  # an nn.Module and a Backbone, which Python's types cannot say together
        dataset: Dataset,
        size: tuple[int, int],
        *,
        pooling: Pooling = "mean",
        batch_size: int = 256,
        device: torch.device | str | None = None,  # where the backbone is; None: where its parameters are
        objective: Any = None,  # an nn.Module and an Objective: what the backbone learnt by, if that is here
        classes: Sequence[str] | None = None,  # that the objective has learnt, where it has
        statistics: Statistics | None = None,  # by which images are normalised; None: the data set's
        workers: int | None = None,  # that read and prepare images; None: as many as is usual for the device
        max_broken: float = MAX_BROKEN,  # share of the images that may be unreadable
        stopping: Callable[[], bool] = lambda: False,  # asked before each batch; then StoppedError is raised
    ) -> None:
        if pooling == "class" and backbone.prefix == 0:
            raise ContractError(
                f"backbone '{backbone.name}' has no class token, so features cannot be pooled from one; "
                f'"mean" takes those of the patches'
            )
        self.dim: int = backbone.dim
        self.backbone = backbone
        self.size = size
        self.pooling: Pooling = pooling
        self.batch_size = batch_size
        self.objective: Objective | None = objective
        self.stopping = stopping
        self._open: WeakSet[Generator[Any, None, None]] = WeakSet()  # what is being read
        if device is None:
            device = next((parameter.device for parameter in backbone.parameters()), "cpu")
        self.device = torch.device(device)
        self.workers = usual_workers(self.device) if workers is None else workers
        self.classes = classes
        self.statistics: Statistics = (tuple(dataset.mean), tuple(dataset.std)) if statistics is None else statistics
        self.max_broken = max_broken
        self.class_count = None if dataset.classes is None else len(dataset.classes)
        self._names = {id(dataset.test): "test", id(dataset.train): "training"}
        self._unlabelled: dict[str, None] = {}  # a sentence for each split of which images have no label
        self._broken: dict[str, None] = {}  # a sentence for each image that cannot be read, in their order
        self._kept: dict[tuple[int, int | None], tuple[Split, Tensor, Tensor | None, list[str], Guard]] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, D] float32, on the CPU, of prepared images [B, C, *size]."""
        latent = self._latent(images)
        pooled = latent[:, 0] if self.pooling == "class" else latent[:, self.backbone.prefix :].float().mean(dim=1)
        return pooled.to("cpu", torch.float32)

    def tokens(self, images: Tensor) -> Tensor:
        """Tokens of the patches [B, N, D] float32, on the encoder's device, of prepared images [B, C, *size]."""
        return self._latent(images)[:, self.backbone.prefix :].float()

    def _latent(self, images: Tensor) -> Tensor:
        """[B, P + N, D]; no_grad and not inference_mode, since a probe may be trained on what comes out."""
        with evaluating(self.backbone, self.refuse_if_stopping), torch.no_grad():
            latent: Tensor = self.backbone(images.to(self.device))
        if not latent.isfinite().all():
            raise ContractError("the encoder's features are not finite: its weights have gone bad")
        return latent

    def refuse_if_stopping(self) -> None:
        """Raise StoppedError where somebody wants to stop: an evaluation can be begun again."""
        if self.stopping():
            raise StoppedError("during an evaluation")

    def broken(self) -> list[str]:
        """A sentence for each image that has been left out since this was last asked, since it cannot be read."""
        told, self._broken = list(self._broken), {}
        return told

    def left_out(self, sentences: Iterable[str]) -> None:
        """Tell of images that an evaluator could not read with a loader of its own."""
        self._broken |= dict.fromkeys(sentences)

    def unlabelled(self) -> list[str]:
        """A sentence for each split that was read since this was last asked and of which images have no label."""
        told, self._unlabelled = list(self._unlabelled), {}
        return told

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Keep features in memory inside, for the next evaluator that asks; the backbone must not learn meanwhile."""
        self._kept = {}
        try:
            yield
        finally:
            self._kept = None

    def features(self, split: Split, images: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Features [M, D] and labels [M] of a split, or of `images` of it, evenly spread; None without labels.

        Where some images have a label and others none, those that have one are given, and the
        others told of by `unlabelled`. Images that cannot be read are left out; DataError if that leaves none.
        """
        self.refuse_if_stopping()
        key = (id(split), None if images is None or images >= len(split) else images)
        if self._kept is not None and key in self._kept:
            _, features, found, broken, _ = self._kept[key]
            self.left_out(broken)
            return features, found
        earlier, self._broken = self._broken, {}
        chosen = some_of(split, images)
        features = torch.empty(len(chosen), self.dim)  # filled in place: these may be half of what the memory holds
        labels: list[int | None] = []
        with closing(self.batches(split, chosen)) as source:
            for some, told in source:
                features[len(labels) : len(labels) + len(told)] = self(some)
                labels += told
        features = features[: len(labels)]
        known = [place for place, label in enumerate(labels) if label is not None]
        if known and len(known) < len(labels):
            features = features[known]
        found = None if labels and not known else torch.tensor([labels[place] for place in known], dtype=torch.int64)
        if self._kept is not None:
            guard = Guard.over({"features": features, "labels": found})
            self._kept[key] = split, features, found, list(self._broken), guard  # the split, so that none gets its id
        self._broken = earlier | self._broken
        return features, found

    def predictions(self, split: Split, images: int | None = None) -> tuple[Tensor, Tensor] | None:
        """Scores of the classes [M, K] float32 from the model's own classifier, and the labels [M].

        Of the images that have a label; None where there is no classifier. NoLabelsError where no image has one.
        """
        model: Any = self.objective
        if model is None:
            return None
        scores, labels = [], []
        with closing(self.batches(split, some_of(split, images))) as source:
            for some, told in source:
                with evaluating(model, self.refuse_if_stopping), torch.no_grad():
                    foretold = model.predict(some.to(self.device))
                if foretold is None:
                    return None
                if not foretold.isfinite().all():
                    raise ContractError("the classifier's scores are not finite: its weights have gone bad")
                known = [position for position, label in enumerate(told) if label is not None]
                scores.append(foretold.to("cpu", torch.float32)[known])
                labels += [label for label in told if label is not None]
        if not labels:
            raise NoLabelsError(f"the {self._named(split)} images have no labels (-1)")
        return torch.cat(scores), torch.tensor(labels, dtype=torch.int64)

    def _named(self, split: Split) -> str:
        """A split in words."""
        return self._names.get(id(split), "chosen")

    def batches(self, split: Split, chosen: Sequence[int]) -> Generator[tuple[Tensor, list[int | None]], None, None]:
        """The images at the `chosen` positions in their order, prepared [B, C, *size], with their labels.

        Images that cannot be read are left out, and told of by `broken`; DataError where they are too many.
        StoppedError where somebody wants to stop.
        """
        return self._opened(self._labelled(split, chosen))

    def batches_with_valid(
        self, split: Split, chosen: Sequence[int]
    ) -> Generator[tuple[Tensor, Tensor | None], None, None]:
        """The same images, each batch with which of its pixels were measured, bool [B, C, *size]; None: all."""
        return self._opened(self._measured(split, chosen))

    def _opened(self, source: Generator[T, None, None]) -> Generator[T, None, None]:
        self._open.add(source)
        return source

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Close what an evaluator inside has read half, however it ends: workers may stand behind it.

        Raises ContractError where it has changed what is kept for the next; that is forgotten, to be made anew.
        """
        try:
            yield
        finally:
            for opened in list(self._open):
                opened.close()
            kept = {} if self._kept is None else self._kept
            spoiled = {key: changed for key, (*_, guard) in kept.items() if (changed := guard.changed())}
            for key in spoiled:
                del kept[key]
        if spoiled:
            raise ContractError(
                f"it changed the {' and '.join(sorted(set(spoiled.values())))} in place, which other evaluators are "
                "given too; change a copy (.clone())"
            )

    def _labelled(self, split: Split, chosen: Sequence[int]) -> Generator[tuple[Tensor, list[int | None]], None, None]:
        with closing(self._whole(split, chosen)) as source:
            for images, batch in source:
                yield images, batch.labels

    def _measured(self, split: Split, chosen: Sequence[int]) -> Generator[tuple[Tensor, Tensor | None], None, None]:
        with closing(self._whole(split, chosen)) as source:
            for images, batch in source:
                yield images, batch.valid

    def _whole(self, split: Split, chosen: Sequence[int]) -> Generator[tuple[Tensor, Whole], None, None]:
        source = whole_batches(
            split,
            chosen,
            size=self.size,
            mean=self.statistics[0],
            std=self.statistics[1],
            batch_size=self.batch_size,
            workers=self.workers,
            max_broken=self.max_broken,
            classes=self.class_count,
        )
        unlabelled, read = 0, 0
        with closing(source):  # an error that travels holds this frame
            for batch in source:
                self.refuse_if_stopping()
                self._broken |= dict.fromkeys(batch.broken.values())
                unlabelled += batch.labels.count(None)
                read += len(batch.labels)
                if batch.images is not None:
                    yield batch.images, batch
        if 0 < unlabelled < read and self.class_count is not None:
            self._unlabelled[without_label(unlabelled, read, self._named(split))] = None


def some_of(split: Split, wanted: int | None) -> list[int]:
    """`wanted` positions of a split, always the same; all of them for None.

    Of a stream the first: it is shuffled anyway, and looking one up means reading all before it.
    """
    if isinstance(split, Stream):
        return list(range(len(split) if wanted is None else min(wanted, len(split))))
    return evenly_spread(len(split), wanted)


def evenly_spread(total: int, wanted: int | None) -> list[int]:
    """`wanted` of `total` positions in ascending order, always the same; all of them for None.

    One from each of as many equal stretches, at random within: at fixed steps a set that lists its classes in turns
    would show a few of them only.
    """
    if wanted is None or wanted >= total:
        return list(range(total))
    places = torch.rand(wanted, generator=stream(0, "evenly spread")).tolist()
    edges = [position * total // wanted for position in range(wanted + 1)]
    return [low + int(place * (high - low)) for place, low, high in zip(places, edges, edges[1:], strict=False)]


@contextmanager
def evaluating(module: nn.Module, refuse: Callable[[], None] | None = None) -> Iterator[None]:
    """Eval mode inside, and then every part in the mode it was in, which need not be one for all.

    `refuse` is called before each block of the module, and may raise: a batch of a large model takes minutes on a CPU.
    Several processes go through their blocks together, so there it is not.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    hooks = []
    if refuse is not None and processes.world() == 1:
        lists = [part for part, _ in modes if isinstance(part, nn.ModuleList | nn.Sequential)]
        blocks = {block for parts in lists for block in parts if block._compiled_call_impl is None}  # or it would again
        hooks = [block.register_forward_pre_hook(lambda *_: refuse()) for block in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for part, training in modes:
            part.training = training
