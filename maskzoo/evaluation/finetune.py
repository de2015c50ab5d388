"""How well a copy of the whole encoder tells the classes after learning from labels: fine-tuning."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import closing
from typing import Any, ClassVar, Literal

import attrs
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from maskzoo.backbones.adapter import TimmBackbone
from maskzoo.backbones.sizes import any_size
from maskzoo.bounds import MOST_EPOCHS, MOST_IMAGES, between
from maskzoo.build import make_mover
from maskzoo.data.batches import batches, steps_in_epoch
from maskzoo.data.labels import LabelledAlone, NoLabelsError, why_unmeasurable
from maskzoo.engine import Engine, Precision, choose_precision
from maskzoo.errors import ContractError, RecipeError
from maskzoo.evaluation.features import WholeImages
from maskzoo.evaluation.options import classes_of, cosine, refuse_one_class
from maskzoo.mask import Mask
from maskzoo.metrics import Metric, accuracy
from maskzoo.norms import lone_value
from maskzoo.objectives.supervised import Classify
from maskzoo.protocols import Batch, Dataset, Encoder, Need, define
from maskzoo.recipe import OptimizerRecipe
from maskzoo.seeds import stream_seed

MOST_SKIPPED = 0.05  # share of the steps; with fp16 a few are skipped while the scale is found
a_share = [attrs.validators.ge(0.0), attrs.validators.lt(1.0)]
a_strength = between(0.0, 1000.0)


@define
class FineTune:
    """Accuracy after all of a copy of the encoder, and a classifier on top, have learnt from the training labels.

    AdamW with layer decay, a rise and a cosine, random crops; mixup, cutmix and drop path are off unless asked for.
    MAE's for ImageNet: 100 epochs, mixup 0.8, cutmix 1.0, drop_path 0.1, layer_decay 0.65 (ViT-B).
    """

    name: ClassVar[str] = "finetune"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})

    epochs: int = attrs.field(default=20, validator=between(1, MOST_EPOCHS))  # epochs of fine-tuning
    lr: float = attrs.field(default=1e-3, validator=attrs.validators.gt(0))  # of the classifier, absolute
    batch_size: int = attrs.field(default=64, validator=between(1, MOST_IMAGES))  # images per step
    warmup: float = attrs.field(default=0.1, validator=a_share)  # share of the steps in which the rate rises
    weight_decay: float = attrs.field(default=0.05, validator=a_strength)  # of AdamW; not on vectors and biases
    layer_decay: float = attrs.field(  # rate of each layer to that of the next; 1.0: all alike
        default=0.75, validator=[attrs.validators.gt(0), attrs.validators.le(1)]
    )
    mixup: float = attrs.field(default=0.0, validator=a_strength)  # alpha of timm's
    cutmix: float = attrs.field(default=0.0, validator=a_strength)  # alpha of timm's
    smoothing: float = attrs.field(default=0.1, validator=a_share)  # smoothing of the labels
    drop_path: float | None = None  # highest rate of stochastic depth; None: as the encoder has it
    scale: tuple[float, float] = (0.2, 1.0)  # share of the area that a random crop keeps
    clip: float | None = attrs.field(  # the largest norm of the whole gradient; None: no limit
        default=None, validator=attrs.validators.optional(attrs.validators.gt(0))
    )
    precision: Precision | Literal["auto"] = "auto"  # bf16 where the hardware has it, else fp32; kept with the figures
    # random seed of the evaluation's own draws
    seed: int = attrs.field(default=0, validator=attrs.validators.ge(0))

    def __attrs_post_init__(self) -> None:
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ValueError("batch_size: mixup and cutmix mix images in pairs, so it must be even")
        if self.drop_path is not None and not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path: must be at least 0 and below 1, got {self.drop_path:g}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale: must be two shares of the area, 0 < low <= high <= 1, got {list(self.scale)}")

    def __call__(self, encoder: Encoder, dataset: Dataset) -> Iterator[Metric]:
        """Yield "top1", the share of test images told right; nothing without labels or test images."""
        if dataset.classes is None or len(dataset.train) == 0 or len(dataset.test) == 0:
            return
        if reason := why_unmeasurable(dataset):
            raise NoLabelsError(reason)
        device = encoder.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
            torch.manual_seed(stream_seed(self.seed, "finetune"))  # the classifier's initial weights
            backbone = self._copy(encoder.backbone)
            model = Classify(
                mixup=self.mixup,
                cutmix=self.cutmix,
                smoothing=self.smoothing,
                pooling=encoder.pooling,
                classes=classes_of(dataset),
            )
            model.setup(backbone)
            model.to(device).train()
            known: Any = LabelledAlone(dataset)
            self._train(model, encoder, known)
        tuned = WholeImages(
            backbone,
            dataset,
            encoder.size,
            device=device,
            objective=model,
            statistics=encoder.statistics,
            workers=encoder.workers,
            stopping=encoder.stopping,
        )
        foretold = tuned.predictions(dataset.test)
        encoder.left_out(tuned.broken())
        if foretold is not None:
            scores, labels = foretold
            yield accuracy(self.name, (scores.argmax(dim=1) == labels).double().mean().item())

    def _copy(self, backbone: Any) -> Any:
        """The backbone once more, with the drop path that is asked for; RecipeError where it knows none."""
        if any(isinstance(module, FSDPModule) for module in backbone.modules()):
            raise ContractError("finetune: a sharded model cannot be copied; evaluate the run when it is finished")
        if self.drop_path is None:
            return copy.deepcopy(backbone)
        if not isinstance(backbone, TimmBackbone):
            raise RecipeError(f"finetune.drop_path: the backbone '{backbone.name}' is no timm model; leave it unset")
        known: Any = backbone  # whose class is one of attrs, which mypy forgets
        try:
            with any_size():
                made = attrs.evolve(known, drop_path=self.drop_path, pretrained=False)
        except RecipeError as problem:
            raise RecipeError(f"finetune.drop_path: {problem}") from problem
        made.load_state_dict(backbone.state_dict())
        return made

    def _train(self, model: Classify, encoder: Encoder, dataset: Dataset) -> None:
        self.precision = choose_precision(self.precision, encoder.device)
        engine = Engine(encoder.device, self.precision)
        batch_size = min(self.batch_size, len(dataset.train))
        batch_size -= batch_size % 2 if self.mixup or self.cutmix else 0
        if batch_size == 0:
            raise ContractError("finetune: mixup and cutmix mix images in pairs, and there is one training image")
        steps = self.epochs * steps_in_epoch(dataset, batch_size)
        recipe = OptimizerRecipe(
            weight_decay=self.weight_decay,
            betas=(0.9, 0.999),
            layer_decay=None if self.layer_decay == 1 else self.layer_decay,
            clip=self.clip,
        )
        mover = make_mover(recipe, [model], "finetune", engine, model.backbone)
        source = batches(
            dataset,
            size=encoder.size,
            batch_size=batch_size,
            seed=stream_seed(self.seed, "finetune", "images"),
            start=0,
            steps=steps,
            scale=self.scale,
            workers=encoder.workers,
            pin_memory=encoder.device.type == "cuda",
            statistics=encoder.statistics,
            labels_needed=True,
        )
        skipped = torch.zeros((), device=encoder.device)
        seen: set[int] = set()  # labels
        with closing(source):
            for step, batch in enumerate(source):
                encoder.refuse_if_stopping()
                encoder.left_out(batch.broken)
                seen |= set() if batch.labels is None else set(batch.labels.tolist())
                mover.set_lr(self.lr * cosine(step / steps, self.warmup))
                torch.manual_seed(stream_seed(self.seed, "finetune", step))  # drop path, dropout, mixup
                skipped += ~self._step(model, batch.to(encoder.device), mover, engine).isfinite()
        refuse_one_class(seen, dataset)
        if skipped > MOST_SKIPPED * steps:
            raise ContractError(
                f"finetune: in {int(skipped)} of {steps} steps the loss or its gradient was not finite; lower its lr, "
                "or set its clip"
            )

    @staticmethod
    def _step(model: Classify, batch: Batch, mover: Any, engine: Engine) -> Tensor:
        """Take a step; the norm [] of its gradient, NaN where nothing has moved."""
        scores = torch.zeros(len(batch.images), math.prod(model.backbone.grid), device=engine.device)
        nothing = Mask.hide_top(scores, 0)
        try:
            with engine.autocast():
                loss = model(batch.images, nothing, batch.labels).loss
        except ValueError as problem:
            if lone_value(problem) is None:
                raise
            raise ContractError(
                f"finetune: a norm of the encoder sees a single value of a channel, which has no deviation, where a "
                f"batch has {len(batch.images)} images; raise finetune.batch_size, or take larger images"
            ) from problem
        mover.backward(loss)
        norm: Tensor = mover.move(loss.detach())
        return norm
