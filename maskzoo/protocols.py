"""The contracts: what a masker, a curriculum, a backbone, an objective, a data set, an evaluator and a logger are.

Shapes: B images, N patches (mask units), V visible, H hidden (V + H = N), P prefix tokens, D channels.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, ParamSpec, Protocol, TypeVar, dataclass_transform, runtime_checkable

import attrs
import torch
from torch import Tensor, nn

from maskzoo import processes
from maskzoo.blame import titled
from maskzoo.errors import ContractError
from maskzoo.guard import Guard
from maskzoo.mask import Mask
from maskzoo.metrics import Metric
from maskzoo.seeds import stream

Need = Literal["teacher", "attention", "features", "patch_loss", "labels"]
Learning = Literal["no", "joint", "alternate"]
Pooling = Literal["mean", "class"]  # of the patches' tokens, or the class token
ClassType = TypeVar("ClassType", bound=type)
Given = ParamSpec("Given")
Made = TypeVar("Made")
HALF_PRECISION = (torch.float16, torch.bfloat16)
DECLARATIONS = frozenset(
    {"name", "paper", "needs", "learning", "default_curriculum", "default_ratio", "least_hidden", "provides", "dense"}
)


@dataclass_transform(eq_default=False, field_specifiers=(attrs.field,))
def _inherited_last(_: type, fields: list[Any]) -> list[Any]:
    """Options that are given by name alone, as those of a base class, after those that a short use may give."""
    return sorted(fields, key=lambda field: bool(field.kw_only))


def define(cls: ClassType) -> ClassType:
    """`attrs.define` for nn.Modules: the annotated fields of the class are its options in a recipe.

    Plain attrs writes a `__setattr__` that bypasses nn.Module's as soon as a field has a validator or converter, and
    parameters assigned later are lost without a word; `NO_OP` keeps nn.Module's own.
    """
    try:
        made = attrs.define(
            eq=False, repr=False, slots=False, on_setattr=attrs.setters.NO_OP, field_transformer=_inherited_last
        )(cls)
    except ValueError as problem:  # attrs shows the whole field
        mandatory = re.search(r"No mandatory attributes allowed.*name='(\w+)'", str(problem), re.DOTALL)
        if mandatory is None:
            raise
        raise ContractError(
            f"{cls.__module__}.{cls.__qualname__}: option '{mandatory[1]}' has no default and follows one that has; "
            "put it first, or give it a default"
        ) from None
    mistaken = DECLARATIONS & {field.name for field in attrs.fields(made)}
    if mistaken:
        raise ContractError(
            f"{cls.__module__}.{cls.__qualname__}: {', '.join(sorted(mistaken))} would become an option of the recipe; "
            "leave out the annotation, or annotate it as ClassVar"
        )
    return made


# ------------------------------------------------------------------------------------------------ what a strategy sees
def _asking_for_the_step(make: Callable[Given, Made]) -> Callable[Given, Made]:
    """Say why `step` is asked for, where Python would only say that it is missing."""

    @functools.wraps(make)
    def made(*arguments: Given.args, **options: Given.kwargs) -> Made:
        if "step" not in options:
            raise TypeError(
                "MaskingContext.of() needs step=..., the number of the batch: all draws depend on it, and without it "
                "every batch would hide the same patches; in a loop, MaskingContext.stream(objective) counts for you"
            )
        return make(*arguments, **options)

    return made


def _guard_of(context: MaskingContext) -> Guard:
    extras = {f"extras['{name}']": values for name, values in context.extras.items()}
    return Guard.over({"images": context.images, "labels": context.labels, "index": context.index, **extras})


@attrs.frozen(eq=False)
class MaskingContext:
    """What a strategy may look at when it chooses the patches of one batch, and must leave as it is."""

    images: Tensor  # [B, C, *size], float32, normalised
    labels: Tensor | None  # [B] int64
    index: Tensor | None  # [B] int64, positions in the data set
    extras: Mapping[str, Tensor]  # side data that travels with an image, augmented with it
    ratio: float  # the share of patches to hide, as asked
    count: int  # H, from the strategy's rounding rule
    factor: float  # the curriculum factor: +1 partner (hide what is easy), 0 neutral, -1 adversary (hide what is hard)
    progress: float  # 0.0 at the first step, 1.0 at the last
    student: Objective
    teacher: Objective | None
    grid: tuple[int, ...]  # mask units along each dimension; N is their product
    seed: int = 0
    step: int = 0
    branch: str = ""  # which part of a composite draws; parts must not share their noise
    least_hidden: int = 0  # patches to hide and to show at the least, where a moving ratio might leave none
    least_shown: int = 0
    share: int = 0  # which of the equal `shares` of the global batch these images are: one a process and micro-batch
    shares: int = 1
    guard: Guard = attrs.field(default=attrs.Factory(_guard_of, takes_self=True), repr=False)  # shared by all parts

    @classmethod
    @_asking_for_the_step
    def of(
        cls,
        objective: Objective,
        images: Tensor,
        ratio: float,
        *,
        step: int,
        factor: float = -1.0,
        progress: float = 0.0,
        seed: int = 0,
        labels: Tensor | None = None,
        index: Tensor | None = None,
        extras: Mapping[str, Tensor] | None = None,
        teacher: Objective | None = None,
    ) -> MaskingContext:
        """A context outside a run, for tests, notebooks and previews; the objective is its own teacher unless given.

        All draws depend on `seed` and `step`: the same step hides the same patches, so a loop counts its steps, or
        takes its contexts from `stream`, which does. The count is rounded as MAE does until a strategy's `mask` puts
        its own rule in place.
        """
        grid = tuple(objective.backbone.grid)
        return cls(
            images=images,
            labels=labels,
            index=index,
            extras={} if extras is None else extras,
            ratio=ratio,
            count=visible_rounded_down(ratio, math.prod(grid)),
            factor=factor,
            progress=progress,
            student=objective,
            teacher=objective if teacher is None else teacher,
            grid=grid,
            seed=seed,
            step=step,
        )

    @classmethod
    def stream(cls, objective: Objective, seed: int = 0, *, step: int = 0) -> ContextStream:
        """Contexts for a loop of one's own: each `next(images, ratio)` is one step further, beginning at `step`."""
        return ContextStream(objective, seed, step)

    @property
    def patches(self) -> int:
        """N, the number of mask units of an image."""
        return math.prod(self.grid)

    def counted_by(self, strategy: MaskingStrategy) -> MaskingContext:
        """The same context with the count that this strategy's rounding rule gives. Raises ContractError off [0, N]."""
        count = counted(strategy, self.ratio, self.patches)
        return attrs.evolve(self, count=min(max(count, self.least_hidden), self.patches - self.least_shown))

    def part(self, index: int, factor: float) -> MaskingContext:
        """The context of part `index` of a composite: draws of its own, and the factor of its own curriculum."""
        return attrs.evolve(self, branch=f"{self.branch}/{index}", factor=factor)

    def noise(self, *shape: int, name: str = "scores") -> Tensor:
        """Uniform noise in [0, 1), float32, [B, *shape], or [B, N] without a shape.

        It is drawn for the global batch from a hash of (seed, step, name), and this share of it gets its rows: one
        process with 64 images and two with 32 see the same. The same name gives the same noise within a step.
        """
        batch = self.images.shape[0]
        shape = shape or (self.patches,)
        generator = stream(self.seed, "mask", self.step, self.branch, name)
        noise = torch.rand(batch * self.shares, *shape, generator=generator)
        mine = noise[self.share * batch : (self.share + 1) * batch]
        if self.images.device.type == "cuda":
            mine = mine.pin_memory()  # else the copy would hold up the step
        return mine.to(self.images.device, non_blocking=True)

    def shared(self, name: str) -> float:
        """One uniform draw in [0, 1) for the whole global batch."""
        return float(torch.rand((), generator=stream(self.seed, "shared", self.step, self.branch, name)))

    def gather(self, values: Tensor) -> Tensor:
        """`values` [B, ...] of all processes as [B * world, ...], in the order of ranks, with gradient."""
        return processes.gather(values)


@attrs.define(eq=False)
class ContextStream:
    """The contexts of a loop of one's own, one batch after the other, so that no two batches share their draws."""

    objective: Objective
    seed: int = 0
    step: int = 0  # of the next context

    def next(
        self,
        images: Tensor,
        ratio: float,
        *,
        factor: float = -1.0,
        progress: float = 0.0,
        labels: Tensor | None = None,
        index: Tensor | None = None,
        extras: Mapping[str, Tensor] | None = None,
        teacher: Objective | None = None,
    ) -> MaskingContext:
        """The context of the next batch, as `MaskingContext.of` makes it."""
        context = MaskingContext.of(
            self.objective,
            images,
            ratio,
            step=self.step,
            factor=factor,
            progress=progress,
            seed=self.seed,
            labels=labels,
            index=index,
            extras=extras,
            teacher=teacher,
        )
        self.step += 1
        return context


# ------------------------------------------------------------------------------------------------------------ maskers
def rounded_down(value: float) -> int:
    """The floor of a product of a share and a number, taken as whole where floating point barely misses it.

    25 * (1 - 0.8) is 4.999999999999999 and means 5: what is within 1e-9 of a whole number is that number.
    """
    return math.floor(round(value, 9))


def visible_rounded_down(ratio: float, patches: int) -> int:
    """Patches to hide when the visible share is rounded down: N - floor(N * (1 - ratio)), as MAE does."""
    return patches - rounded_down(patches * (1 - ratio))


def counted(strategy: MaskingStrategy, ratio: float, patches: int) -> int:
    """H by a strategy's rounding rule. Raises ContractError where that is no whole number in [0, N]."""
    count: Any = strategy.count(ratio, patches)
    who = titled("strategy", strategy)
    if isinstance(count, bool) or not hasattr(count, "__index__") or (isinstance(count, Tensor) and count.numel() != 1):
        raise ContractError(f"{who} counts {count!r} patches; count() is a whole number")
    if not 0 <= count <= patches:
        raise ContractError(f"{who} would hide {count} of {patches} patches at ratio {ratio:g}")
    return int(count)


class MaskingStrategy(Protocol):
    """Scores patches; MaskZoo hides the top `count`. Subclass `Strategy` to get all but `scores` for nothing."""

    name: ClassVar[str]

    @property
    def needs(self) -> frozenset[Need]:
        """What must be there for it to look at."""
        ...

    @property
    def learning(self) -> Learning:
        """ "no" loss; its loss joins the model's ("joint"); or it has a step of its own ("alternate")."""
        ...

    @property
    def default_curriculum(self) -> str | Mapping[str, Any] | None:
        """The schedule of the factor unless a recipe names one; None: the factor means nothing to this strategy."""
        ...

    def setup(self, objective: Objective) -> None:
        """Build what depends on sizes; called once, before training and before any weights are loaded."""

    def count(self, ratio: float, patches: int) -> int:
        """H: how many of `patches` to hide at `ratio`, in the paper's own rounding."""
        ...

    def scores(self, context: MaskingContext) -> Tensor:
        """[B, N], finite, high = hidden first; an "alternate" learner's are chances of hiding, in [0, 1].

        float32, or half precision, which is cast. A step of scores that are NaN or infinite is skipped; to keep a patch
        visible give it a low score.
        """
        ...

    def mask(self, context: MaskingContext) -> Mask:
        """The hard mask of this batch. It changes nothing: pictures ask for masks too, between the steps."""
        ...

    def soft_mask(self, context: MaskingContext) -> Mask:
        """The soft mask of this batch; of "alternate" learners only."""
        ...

    def learners(self) -> list[MaskingStrategy]:
        """The plain strategies that learn, at whatever moment of training."""
        ...

    def active(self, context: MaskingContext) -> list[tuple[MaskingStrategy, MaskingContext]]:
        """The plain strategies that have a say at this moment, each with the context that it sees."""
        ...

    def loss(self, context: MaskingContext, mask: Mask, outcome: Outcome) -> Tensor:
        """What the strategy minimises [], given what the model made of its mask; of learners only."""
        ...

    def after_step(self, context: MaskingContext, mask: Mask, outcome: Outcome) -> None:
        """Called after the model's step, without gradient: averages, tables."""

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """What it learns, as of any nn.Module."""
        ...


class Strategy(nn.Module):
    """The nn.Module to subclass: write `scores`, decorate with `define`, and that is a masker.

    `count` may be overridden with a paper's own rounding, and `mask` by the odd strategy that is no ranking.
    """

    name: ClassVar[str]
    paper: ClassVar[str] = ""  # citation, for `maskzoo show`
    needs: ClassVar[frozenset[Need]] = frozenset()
    learning: ClassVar[Learning] = "no"
    default_curriculum: ClassVar[str | Mapping[str, Any] | None] = None

    def __attrs_pre_init__(self) -> None:
        super().__init__()

    def setup(self, objective: Objective) -> None:
        """Nothing to build."""

    def count(self, ratio: float, patches: int) -> int:
        """N - floor(N * (1 - ratio)), as MAE does."""
        return visible_rounded_down(ratio, patches)

    def scores(self, context: MaskingContext) -> Tensor:
        """[B, N] float32 or half precision, finite, high = hidden first."""
        raise NotImplementedError(f"strategy '{self.name}' has no scores()")

    def mask(self, context: MaskingContext) -> Mask:
        """Hide the `count` patches of the highest score; with gradient for "joint" learners alone."""
        context = context.counted_by(self)
        with torch.set_grad_enabled(self.learning == "joint" and torch.is_grad_enabled()):
            scores = checked_scores(self, self.scores(context), context)
            return Mask.hide_top(scores, context.count, ties=context.noise(name="ties"))

    def soft_mask(self, context: MaskingContext) -> Mask:
        """Scale every patch by 1 - its score."""
        context = context.counted_by(self)
        scores = checked_scores(self, self.scores(context), context)
        return Mask.soft(scores, context.count, ties=context.noise(name="ties"))

    def learners(self) -> list[MaskingStrategy]:
        """This strategy itself, if it learns."""
        return [] if self.learning == "no" else [self]

    def active(self, context: MaskingContext) -> list[tuple[MaskingStrategy, MaskingContext]]:
        """This strategy itself, in this very context."""
        return [(self, context)]

    def loss(self, context: MaskingContext, mask: Mask, outcome: Outcome) -> Tensor:
        """What the strategy minimises []; named terms for the log go into `outcome.metrics`."""
        raise NotImplementedError(f"strategy '{self.name}' learns, but has no loss()")

    def after_step(self, context: MaskingContext, mask: Mask, outcome: Outcome) -> None:
        """Nothing to keep."""


def checked_scores(strategy: MaskingStrategy, scores: Tensor, context: MaskingContext) -> Tensor:
    """The scores [B, N] in float32, or ContractError, which names the strategy that made them.

    Half precision is cast, since a network gives it under autocast. float64 and integers are refused: they would lose
    digits, and with them the ranking, without a word. So is a tensor on another device than the images. Scores that
    are NaN or infinite are counted, and the step is then not taken. Raises too if an input was changed in place.
    """
    return _checked(strategy, "scores", scores, context)


def _checked(strategy: MaskingStrategy, what: str, scores: object, context: MaskingContext) -> Tensor:
    """`checked_scores`, for anything that a strategy's method called `what` may have returned."""
    expected, device = [context.images.shape[0], context.patches], context.images.device
    context.guard.refuse_changed("strategy", strategy)
    if isinstance(scores, Tensor):
        if scores.dtype in HALF_PRECISION:
            scores = scores.to(torch.float32)
        if list(scores.shape) == expected and scores.dtype == torch.float32 and scores.device == device:
            context.guard.count(f"{strategy.name}{context.branch}", scores)
            return scores
        given = f"{scores.dtype} {list(scores.shape)} on {scores.device}"
    else:
        given = f"of type {type(scores).__name__}"
    raise ContractError(
        f"{titled('strategy', strategy)} gave {what} {given}; the contract is float32 {expected} on {device}, one "
        "score for each mask unit (half precision is cast)"
    )


class RankedStrategy(Strategy):
    """A strategy that knows how hard each patch is: write `hardness`, and any curriculum goes with it."""

    default_curriculum: ClassVar[str | Mapping[str, Any] | None] = "adversary"

    def hardness(self, context: MaskingContext) -> Tensor:
        """[B, N], high = hard to rebuild, or salient."""
        raise NotImplementedError(f"strategy '{self.name}' has no hardness()")

    def scores(self, context: MaskingContext) -> Tensor:
        """Noise, plus 1 for the floor(|factor| * count) patches taken by rank.

        The hardest are taken if the factor is negative (adversary), the easiest if it is positive (partner); the rest
        of the count is random, so at 0 (neutral) everything is, and the hardness is not even asked for.
        """
        return context.noise() if self._taken(context) == 0 else self.ranked(context, self.hardness(context))

    def ranked(self, context: MaskingContext, hardness: Tensor) -> Tensor:
        """The scores that follow from a hardness [B, N], for strategies that change something about them."""
        if isinstance(hardness, Tensor) and not hardness.is_complex():
            hardness = hardness.to(torch.float32)
        hardness = _checked(self, "hardness", hardness, context)
        ranking = -hardness if context.factor > 0 else hardness
        by_rank = Mask.hide_top(ranking, self._taken(context), ties=context.noise(name="rank ties"))
        return context.noise() + by_rank.hidden

    @staticmethod
    def _taken(context: MaskingContext) -> int:
        """How many patches are taken by rank."""
        return min(rounded_down(abs(context.factor) * context.count), context.count)


# ---------------------------------------------------------------------------------------------------------- schedules
@runtime_checkable
class CurriculumSchedule(Protocol):
    """A number that moves with progress: the factor, the ratio, a learning rate, a decay, a weight of a mixture."""

    name: ClassVar[str]

    def setup(self, epochs: float, steps: int) -> None:
        """For schedules that move by epoch: how many there will be, the last perhaps not whole. Others need nothing."""
        return  # a body, so that type checkers do not take it for abstract

    def __call__(self, progress: float) -> float:
        """The value at `progress`: 0.0 at the first step, 1.0 at the last."""
        ...


class Part(nn.Module):
    """A strategy inside a composite, with a curriculum of its own if it has one."""

    def __init__(self, strategy: MaskingStrategy, curriculum: CurriculumSchedule | None = None) -> None:
        super().__init__()
        self.strategy = strategy
        self.curriculum = curriculum
        if curriculum is not None and strategy.default_curriculum is None:
            raise ContractError(f"strategy '{strategy.name}' knows no hardness, so a curriculum means nothing to it")

    @classmethod
    def all_of(cls, parts: Sequence[Part | MaskingStrategy]) -> nn.ModuleList:
        """Parts and bare strategies as a ModuleList of parts, which nn.Module registers (a plain list it would not)."""
        return nn.ModuleList(part if isinstance(part, Part) else cls(part) for part in parts)

    def context(self, context: MaskingContext, position: int) -> MaskingContext:
        """What this part sees as part number `position` of a composite that sees `context`."""
        factor = context.factor if self.curriculum is None else self.curriculum(context.progress)
        return context.part(position, factor)


# ---------------------------------------------------------------------------------------------- backbones, objectives
class Backbone(Protocol):
    """An encoder that can be shown part of an image."""

    name: ClassVar[str]
    grid: tuple[int, ...]  # mask units along each dimension
    patch_size: tuple[int, ...]  # pixels of a mask unit along each dimension
    channels: int  # of an image
    dim: int  # D of the latent
    token_dim: int  # of `tokens`
    prefix: int  # P class and register tokens, first in the latent, never masked
    stage_dims: tuple[int, ...]  # of `stages`; empty where a decoder sees the latent alone

    @property
    def provides(self) -> frozenset[Need]:
        """ "features", "attention"."""
        ...

    @property
    def dense(self) -> bool:
        """Whether the latent has all N units also under a hard mask."""
        ...

    def __call__(self, images: Tensor, mask: Mask | None = None) -> Tensor:
        """The latent of images [B, C, *size]: [B, P + V, D]; [B, P + N, D] where dense, whole, or under a soft mask."""
        ...

    def stages(self, images: Tensor, mask: Mask | None = None) -> list[Tensor]:
        """What each stage of the encoder makes of each unit, [B, V or N, stage_dims[i]], in the order of the latent,
        which is the last of them: for decoders of encoders whose early stages see what the last one has lost.
        """
        ...

    def no_weight_decay(self) -> set[str]:
        """Names of parameters, other than vectors, that the encoder's authors do not decay."""
        ...

    def tokens(self, images: Tensor) -> Tensor:
        """[B, N, token_dim]: each unit's embedded tokens (their mean) plus position, as the encoder's first block
        sees them; fixed sin-cos positions where the encoder adds none there.
        """
        ...

    def inspect(self, images: Tensor, block: int = -1) -> tuple[Tensor, Tensor | None]:
        """What a block makes of whole images: features [B, P + N, D], attention [B, heads, P + N, P + N] or None."""
        ...

    def attention(self, images: Tensor) -> Tensor:
        """[B, N]: how much the last block attends to each unit: the class token's row, or the mean row without one."""
        ...


@attrs.define(eq=False)
class Outcome:
    """What an objective made of images under a mask."""

    loss: Tensor  # [], the mean over patches weighted by `mask.weights`
    latent: Tensor  # as the backbone gave it
    patch_loss: Tensor | None = None  # [B, N] float32
    decoder_input: Tensor | None = None  # [B, P + N, decoder channels]
    prediction: Tensor | None = None  # [B, N, ...], in the space of the target
    metrics: dict[str, Tensor] = attrs.field(factory=dict)  # named scalars for the log


class Objective(Protocol):
    """What the model learns by: images and a mask go in, a loss comes out. An nn.Module that owns the backbone."""

    name: ClassVar[str]
    backbone: Backbone

    @property
    def provides(self) -> frozenset[Need]:
        """ "patch_loss" where outcomes carry one."""
        ...

    @property
    def needs(self) -> frozenset[Need]:
        """ "labels", "teacher"."""
        ...

    @property
    def default_ratio(self) -> float:
        """The share of patches that is hidden unless a recipe says otherwise: what its paper hides."""
        ...

    @property
    def least_hidden(self) -> int:
        """The least number of hidden patches from which there is something to learn: 0 or 1."""
        ...

    def setup(self, backbone: Backbone) -> None:
        """Take the backbone and build what depends on its sizes; called once."""
        ...

    def __call__(
        self, images: Tensor, mask: Mask, labels: Tensor | None = None, teacher: Objective | None = None
    ) -> Outcome:
        """The outcome of images [B, C, *size] under the mask, losses in float32."""
        ...

    def predict(self, images: Tensor) -> Tensor | None:
        """Scores of the classes [B, K] float32 of whole images [B, C, *size]; None: it tells no class."""
        ...

    def picture(self, images: Tensor, mask: Mask) -> tuple[Tensor, str] | None:
        """The images [B, C, *size] with their hidden patches rebuilt, and a word on how to read them; None: no such."""
        ...


# ------------------------------------------------------------------------------------------------------ data, scoring
@attrs.frozen(eq=False)
class Sample:
    """One image of a data set, before augmentation."""

    image: Tensor  # [C, H, W]; levels are uint8 / 255, uint16 / 65535, or float32 as they are, nominally in [0, 1]
    label: int | None = None
    # [*, H, W] each; cropped and flipped with the image. "valid", bool [C, H, W], says which values were measured
    extras: Mapping[str, Tensor] = attrs.field(factory=dict)


class Split(Protocol):
    """The training or the test images of a data set; looking up a broken image raises DataError, naming it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@runtime_checkable
class Stream(Split, Protocol):
    """A split whose images come in an order of their own, such as those of shards on a server.

    It can be looked into as any other, but that means reading up to the place: lookups are in one fixed order, and
    cheap only in ascending order and near the beginning. Training reads it share by share.
    """

    shares: int  # parts that can be read side by side, the same number on every machine; each has len // shares images

    def read(self, order: int, share: int) -> Iterator[Sample]:
        """The images of a share, shuffled by what `order` says: the same for the same order, in whichever process.

        No image is in two shares of one order. What cannot be read is left out. Raises DataError where nothing can.
        """
        ...


class Dataset(Protocol):
    """Images to learn from: its `train` and `test` splits, and what must be known before any is opened.

    It may have `remarks`, a sequence of messages on how it was read and what was left out; a run prints and keeps them.
    """

    name: ClassVar[str]
    train: Split
    test: Split  # may be empty
    channels: int
    size: tuple[int, int]  # height and width in pixels to which images are brought unless a recipe says otherwise
    classes: Sequence[str] | None  # None: no labels
    flip: bool  # whether a mirrored image still shows the same (not so for digits)
    mean: Sequence[float]  # of each channel, in levels
    std: Sequence[float]


@attrs.frozen(eq=False)
class Batch:
    """Augmented images on their way into a step."""

    images: Tensor  # [B, C, H, W] float32, normalised
    labels: Tensor | None  # [B] int64
    index: Tensor  # [B] int64, positions in the data set; in a stream in this epoch's order, naming no image for longer
    extras: Mapping[str, Tensor] = attrs.field(factory=dict)  # [B, ...]
    broken: Sequence[str] = ()  # one sentence for each image that could not be read and was replaced
    seconds: float = 0.0  # the loader alone, with all its workers, needs for a batch; 0 where nobody measured

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""

        def move(values: Tensor) -> Tensor:
            return values.to(device, non_blocking=True)

        return Batch(
            images=move(self.images),
            labels=None if self.labels is None else move(self.labels),
            index=move(self.index),
            extras={name: move(values) for name, values in self.extras.items()},
            broken=self.broken,
            seconds=self.seconds,
        )


class Encoder(Protocol):
    """A trained backbone as evaluators see it: whole images, eval mode, no gradient, pooled one declared way.

    An evaluator changes nothing about the backbone and the objective; whoever trains them trains a copy.
    """

    dim: int  # D
    size: tuple[int, int]  # height and width of prepared images
    pooling: Pooling  # of the features, for fit and score alike
    device: torch.device  # where the backbone is
    workers: int  # processes that read images, for an evaluator that needs a loader of its own
    statistics: tuple[Sequence[float], Sequence[float]]  # mean and deviation by which images are normalised
    stopping: Callable[[], bool]  # whether somebody wants to stop
    backbone: Backbone
    objective: Objective | None  # what the backbone learnt by; None where that is not here
    classes: Sequence[str] | None  # that the objective has learnt; None where it has not, empty where nobody knows

    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, D] float32 of prepared images [B, C, H, W]."""
        ...

    def tokens(self, images: Tensor) -> Tensor:
        """Tokens of the patches [B, N, D] float32, on the encoder's device, of prepared images [B, C, H, W]."""
        ...

    def batches(self, split: Split, chosen: Sequence[int]) -> Generator[tuple[Tensor, list[int | None]], None, None]:
        """The images at the `chosen` positions in their order, prepared [B, C, H, W], with their labels.

        Processes may stand behind it, which end when it is closed: at its end, by `contextlib.closing` wherever the
        loop may be left before, and in any case when the evaluator ends.
        """
        ...

    def batches_with_valid(
        self, split: Split, chosen: Sequence[int]
    ) -> Generator[tuple[Tensor, Tensor | None], None, None]:
        """The same images, each batch with which of its pixels were measured, bool [B, C, H, W]; None: all."""
        ...

    def predictions(self, split: Split, images: int | None = None) -> tuple[Tensor, Tensor] | None:
        """Scores of the classes [M, K] from the model's own classifier, and labels [M]; None without either."""
        ...

    def features(self, split: Split, images: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Features [M, D] and labels [M] (None without labels) of a split, or of `images` of it, evenly spread."""
        ...

    def left_out(self, sentences: Iterable[str]) -> None:
        """Tell of images that an evaluator could not read with a loader of its own."""
        ...

    def refuse_if_stopping(self) -> None:
        """Raise StoppedError where somebody wants to stop; to be called by an evaluator at each step it trains."""
        ...


class Evaluator(Protocol):
    """Measures what an encoder has learned, in named metrics.

    It may say what it `needs`: "labels" of the data, "patch_loss" of the objective.
    """

    name: ClassVar[str]

    def __call__(self, encoder: Encoder, dataset: Dataset) -> Iterator[Metric | tuple[str, float]]:
        """Yield metrics, e.g. Metric("top1", 0.87, "higher", "share", "k-NN top-1"); nothing where nothing can be
        measured. Of a plain (name, value) neither direction nor unit is known, so that no cell is better by it.

        MaskZooError says why it cannot measure what is there.
        """
        ...


class Logger(Protocol):
    """Takes the figures and pictures of a run somewhere else too; `metrics.jsonl` is written whether or not it can.

    Whatever it raises, RecipeError at `start` apart, costs it the rest of the run, and the run nothing.
    """

    name: ClassVar[str]

    def start(self, folder: Path, recipe: Mapping[str, Any], step: int) -> None:
        """Begin, or go on with, the run in `folder` at `step`; what was logged from that step on will come again.

        The recipe is resolved: plain values, every option written out. RecipeError refuses the run.
        """
        ...

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Take the figures of a step by name; all are finite. Steps never fall between `start` and `close`."""
        ...

    def image(self, name: str, path: Path, step: int) -> None:
        """Take a picture, a PNG file; a logger without pictures does nothing."""
        ...

    def close(self, failed: bool = False) -> None:
        """Write out what is left; `failed` if the run was broken off. A run that goes back closes, and starts again."""
        ...
