"""What a recipe's step costs, in FLOPs of one image: counted on tensors that have a shape and no values.

Two FLOPs are a multiplication and an addition; only matrix products, convolutions and attention are counted, and of
attention what must be computed, not what a fused kernel computes once more in its backward pass: so a step costs the
same on every device. Shapes: B images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from rich.text import Text
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from maskzoo.backbones.adapter import pair
from maskzoo.blame import blaming
from maskzoo.build import (
    check_needs,
    check_range,
    check_ratio,
    choose_curriculum,
    choose_ratio,
    curriculum_path,
    make_backbone,
    points,
    set_up_module,
)
from maskzoo.checks import checked_active
from maskzoo.data.batches import steps_in_epoch
from maskzoo.data.remarks import remarks_of
from maskzoo.defaults import settled
from maskzoo.errors import DataError, MaskZooError, RecipeError
from maskzoo.listing import Listing
from maskzoo.norms import telling_lone_values
from maskzoo.probe import explaining, reached_by_gradient, refuse_unreached
from maskzoo.protocols import CurriculumSchedule, MaskingContext, Sample, Strategy
from maskzoo.recipe import MaskingRecipe, Recipe, Use, make, make_dial
from maskzoo.registry import Kind, Registry
from maskzoo.schedules import schedules_in, set_up
from maskzoo.teacher import Teacher
from maskzoo.train import LearnerStep, ModelStep, alternate_learners

BATCH = 2  # images that are counted; a loss over pairs of images needs two
MOMENTS = 10  # of the run, where its ratio or its curriculum moves
UNKNOWN_STEPS = 1000  # of an epoch of which nobody knows how many images it has
USUAL_SIZE = (224, 224)


@attrs.frozen
class Costs:
    """FLOPs of one image in one whole step, forward and backward, as a mean over the run."""

    model: float  # what the objective makes of the hard mask, forward and backward
    teacher: float  # what the teacher is asked for, whoever asks
    strategy: float  # choosing the mask, and the step of its own of a strategy that learns
    parameters: int  # that the model's optimizer moves, decoder and all
    strategy_parameters: int = 0  # of strategies that learn
    device: str = "meta"  # "cpu" where something looked at values, and images of zeros had to be given
    remarks: tuple[str, ...] = ()  # of the backbone, on the size of the images

    @property
    def total(self) -> float:
        """All of it."""
        return self.model + self.teacher + self.strategy


@attrs.frozen
class Shape:
    """A data set of nothing but its sizes; it matches the protocols of a data set and of its splits."""

    size: tuple[int, int] = USUAL_SIZE
    channels: int = 3
    class_count: int = 0  # 0: no labels
    images: int = 0  # to learn from; 0: unknown
    name = "none"
    flip = False

    @staticmethod
    def called(name: str, *sizes: Any, **more: Any) -> Shape:
        """Such sizes under the name of a data set, which is a class's as that of every data set."""
        made: Shape = type("Shape", (Shape,), {"name": name})(*sizes, **more)
        return made

    @property
    def classes(self) -> Sequence[str] | None:
        """Numbers for names."""
        return [str(number) for number in range(self.class_count)] or None

    @property
    def mean(self) -> Sequence[float]:
        """Nothing to shift by."""
        return (0.0,) * self.channels

    @property
    def std(self) -> Sequence[float]:
        """Nothing to scale by."""
        return (1.0,) * self.channels

    @property
    def train(self) -> Shape:
        """Itself, as a split."""
        return self

    test = train

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> Sample:
        return Sample(torch.zeros(self.channels, *self.size, dtype=torch.uint8))


DOWNLOADED = {  # data sets that would be fetched when they are opened, and are the same everywhere
    "cifar10": Shape.called("cifar10", (32, 32), 3, 10, 50_000),
    "fashion-mnist": Shape.called("fashion-mnist", (28, 28), 1, 10, 60_000),
}


@attrs.frozen
class _Unopened:
    """A registry whose data sets check their options, as every class of attrs does, and open nothing."""

    registry: Registry

    def find(self, kind: Kind, name: str) -> type:
        """A class like the one of that name."""
        cls = self.registry.find(kind, name)
        if not attrs.has(cls):
            return type(cls.__name__, (), {"name": name})
        return type(cls.__name__, (cls,), {"__attrs_post_init__": lambda _: None})

    def classes(self, kind: Kind) -> dict[str, type]:
        """All classes of a kind."""
        return self.registry.classes(kind)


def shape_of(recipe: Recipe, registry: Registry) -> Any:
    """The data set of a recipe, or its sizes alone where opening it would fetch it, or where it is not here.

    Of a data set that is neither known nor here the sizes are those that the recipe names, else 3 channels of 224
    pixels a side, and the number of its images is unknown (0). Raises RecipeError or DataError for options that it
    does not take, and for a batch of more images than there are.
    """
    options: Any = make(_Unopened(registry), "dataset", recipe.data, "recipe.data")  # type: ignore[arg-type]
    shape: Any = DOWNLOADED.get(options.name)
    if shape is None and options.name != "timm":  # which may fetch gigabytes
        try:
            shape = make(registry, "dataset", recipe.data, "recipe.data")
        except MaskZooError:
            root = getattr(options, "root", None)
            if not isinstance(root, str) or Path(root).expanduser().exists():
                raise
    if shape is None:
        shape = _unseen(recipe, options, registry)
    if len(shape.train) or not isinstance(shape, Shape):
        steps_in_epoch(shape, settled(recipe, len(shape.train)).train.batch)  # which refuses less than one
    return shape


def _unseen(recipe: Recipe, options: Any, registry: Registry) -> Shape:
    """What the recipe says of data that are not here; they have labels if anybody needs them."""
    objective: Any = make(registry, "objective", recipe.objective, "recipe.objective")
    strategy: Any = make(registry, "strategy", recipe.masking.strategy, "recipe.masking.strategy")
    count = 0
    if "labels" in objective.needs | strategy.needs and getattr(options, "labels", True) is not False:
        told = getattr(objective, "classes", 1)  # of those who have no such option, none counts them
        count = getattr(options, "class_count", None) or told
        if not count:
            raise RecipeError("recipe.objective.classes: give objective.classes, since the data are not here")
    told_size = getattr(options, "size", None)
    size = USUAL_SIZE if told_size is None else pair(told_size)
    if min(size) < 1:
        raise RecipeError(f"recipe.data.size: must be at least 1 pixel, got {size[0]} x {size[1]}")
    return Shape.called(
        options.name,
        size,
        channels=getattr(options, "channels", None) or 3,
        class_count=count,
        images=getattr(options, "train_images", None) or 0,
    )


def flops_per_image(recipe: Recipe, registry: Registry, shape: Any = None) -> Costs:
    """What one image costs in a step of this recipe, on data of this `shape`: a data set, or a `Shape`.

    Nothing is loaded or downloaded, and nothing large is held: pretrained weights and those to start from are left
    out. Raises RecipeError or ContractError for a recipe that could not be trained.
    """
    shape = shape_of(recipe, registry) if shape is None else shape
    step = _made(recipe, registry, shape, "meta")
    dials = _dials(recipe, registry, shape, step)
    try:
        return _counted(recipe, step, dials)
    except Exception:  # somebody looks at values, which a meta tensor has not, or makes some where there are others
        with telling_lone_values():
            return _counted(recipe, _made(recipe, registry, shape, "cpu"), dials)


def steps_of(recipe: Recipe, shape: Any) -> int | None:
    """The steps of the whole run; None where neither the recipe nor the data say."""
    images = len(shape.train)
    in_epoch = images // settled(recipe, images).train.batch
    return recipe.train.steps or (recipe.train.epochs * in_epoch if in_epoch else None)


def with_random(recipe: Recipe) -> Recipe:
    """The same recipe with random masks, which is what a strategy's price is compared with."""
    return attrs.evolve(recipe, masking=MaskingRecipe(ratio=recipe.masking.ratio, strategy="random"))


def cost_table(recipe: Recipe, registry: Registry) -> Listing:
    """What `maskzoo cost` prints."""
    shape = shape_of(recipe, registry)
    costs = flops_per_image(recipe, registry, shape)
    table = Listing(("", "GFLOP an image", "share"), {1, 2})
    lines = [("model, forward and backward", costs.model), ("teacher", costs.teacher), ("strategy", costs.strategy)]
    for title, flops in lines:
        table.add(title, gigas(flops), f"{flops / costs.total:.0%}" if costs.total else "")
    table.add(Text("total", style="bold"), Text(gigas(costs.total), style="bold"), "")
    try:
        cheapest = flops_per_image(with_random(recipe), registry, shape).total
        table.add("of the same with random", f"{costs.total / cheapest:.2f} x", "")
    except MaskZooError:
        pass  # no strategy of that name, or one that the objective refuses
    steps = steps_of(recipe, shape)
    if steps is None:
        table.add("whole run", "unknown", "")
    else:
        seen = steps * settled(recipe, len(shape.train)).train.batch
        table.add("whole run", f"{costs.total * seen:.3g} FLOP", f"{seen:,} images")
    table.add("parameters of the model", f"{costs.parameters:,}", "")
    if costs.strategy_parameters:
        table.add("parameters of the strategy", f"{costs.strategy_parameters:,}", "")
    table.remarks += [*remarks_of(shape), *costs.remarks]
    if steps is None:
        table.remarks.append("the run's cost needs the data's number of images, or train.steps")
    if costs.device != "meta":
        table.remarks.append("counted on two images of zeros: something in this recipe looks at values")
    return table


def gigas(flops: float) -> str:
    """FLOPs in units of 10^9, to four digits."""
    return f"{flops / 1e9:.4g}"


# ------------------------------------------------------------------------------------------------------------ counting
def flop_counter() -> FlopCounterMode:
    """torch's counter, which then knows the attention of every device, and counts it alike on all of them."""
    aten = torch.ops.aten
    backward = [
        aten._scaled_dot_product_efficient_attention_backward,
        aten._scaled_dot_product_flash_attention_backward,
        aten._scaled_dot_product_cudnn_attention_backward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward,
    ]
    mapping: dict[Any, Any] = {aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    return FlopCounterMode(display=False, custom_mapping=mapping | dict.fromkeys(backward, _attention_backward))


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """FLOPs of attention, of shapes: two products."""
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """FLOPs of its backward pass: four products. The scores that a kernel makes anew are not counted."""
    return 2 * _attention(query, key, value)


class _Accounts:
    """To whom the FLOPs of a step go."""

    def __init__(self, owner: str) -> None:
        self.flops = {"model": 0, "teacher": 0, "strategy": 0}
        self._owners, self._settled = [owner], 0
        self._counter = flop_counter()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Count what happens inside."""
        with self._counter:
            yield
            self._settle()

    @contextmanager
    def charging(self, owner: str) -> Iterator[None]:
        """Charge what happens inside to another."""
        self.enter(owner)
        try:
            yield
        finally:
            self.leave()

    def enter(self, owner: str) -> None:
        """From here on it is `owner` who pays."""
        self._settle()
        self._owners.append(owner)

    def leave(self) -> None:
        """From here on it is again whoever paid before."""
        self._settle()
        self._owners.pop()

    def _settle(self) -> None:
        total = self._counter.get_total_flops()
        self.flops[self._owners[-1]] += total - self._settled
        self._settled = total


class _NoExtras(dict[str, Tensor]):
    """The side data of images that are not there: whoever asks cannot be counted, and has made no mistake."""

    def __missing__(self, name: str) -> Tensor:
        raise DataError(f"what looks at context.extras['{name}'] cannot be counted without the data")


@attrs.frozen(eq=False)
class _Step:
    """The parts of a step, made but never trained."""

    objective: Any
    strategy: Any
    teacher: Teacher | None
    images: Tensor  # [B, C, *size]
    labels: Tensor | None
    reached: set[Any] = attrs.field(factory=set)  # the objective and the learners that a loss depends on

    def context(self, ratio: float, factor: float, progress: float, least: tuple[int, int]) -> MaskingContext:
        """What the strategy may see at that moment."""
        context = MaskingContext.of(
            self.objective, self.images, ratio, step=0, factor=factor, progress=progress, labels=self.labels
        )
        return attrs.evolve(
            context,
            index=torch.arange(BATCH, device=self.images.device),
            extras=_NoExtras(),
            teacher=None if self.teacher is None else self.teacher.module,  # type: ignore[arg-type]  # an objective
            least_hidden=least[0],
            least_shown=least[1],
        ).counted_by(self.strategy)

    def of_model(self, context: MaskingContext) -> dict[str, int]:
        """FLOPs of the model's step, by who pays."""
        accounts = _Accounts("model")
        step = ModelStep(self.objective, self.strategy).train()
        step.hide = charged(accounts, "strategy", step.hide)
        with accounts.open(), self._teacher_pays(accounts):
            loss = step(context)[2]
            loss.backward()
        self.reached.update(reached_by_gradient([self.objective, *self.strategy.learners()]))
        return accounts.flops

    def of_learners(self, context: MaskingContext) -> dict[str, int]:
        """FLOPs of the steps of those who learn by themselves, by who pays."""
        accounts = _Accounts("strategy")
        learners = alternate_learners(self.strategy)
        with accounts.open(), self._teacher_pays(accounts):
            for learner, seen in self.strategy.active(context):
                if learner in learners:
                    step = LearnerStep(learner).train()
                    loss, _ = step(seen)
                    torch.autograd.backward(loss, inputs=[one for one in step.parameters() if one.requires_grad])
                    self.reached.update(reached_by_gradient([learner]))
        return accounts.flops

    @contextmanager
    def _teacher_pays(self, accounts: _Accounts) -> Iterator[None]:
        """Charge to the teacher whatever any part of it computes, by whichever method it was asked."""
        handles = []
        for part in [] if self.teacher is None else self.teacher.module.modules():
            handles.append(part.register_forward_pre_hook(lambda *_: accounts.enter("teacher")))
            handles.append(part.register_forward_hook(lambda *_: accounts.leave()))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def charged(accounts: _Accounts, owner: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """The same call, at the cost of `owner`."""

    def paid(*arguments: Any) -> Any:
        with accounts.charging(owner):
            return call(*arguments)

    return paid


Dials = tuple[CurriculumSchedule, CurriculumSchedule, tuple[int, int]]


def _length(recipe: Recipe, shape: Any) -> tuple[float, int]:
    """How many epochs and steps the run has, or would have with a usual number of images."""
    steps = steps_of(recipe, shape) or recipe.train.epochs * UNKNOWN_STEPS
    batch = settled(recipe, len(shape.train)).train.batch
    return steps * batch / (len(shape.train) or UNKNOWN_STEPS * batch), steps


def _dials(recipe: Recipe, registry: Registry, shape: Any, step: _Step) -> Dials:
    """The ratio, the factor, and how many patches are hidden and shown at the least, checked as `build` does."""
    epochs, steps = _length(recipe, shape)
    ratio: Any = make_dial(registry, choose_ratio(recipe.masking, step.objective), "recipe.masking.ratio")
    factor: Any = make(
        registry,
        "schedule",
        choose_curriculum(recipe.masking, step.strategy),
        curriculum_path(recipe.masking, step.strategy),
    )
    for schedule, path in ((ratio, "recipe.masking.ratio"), (factor, "recipe.masking.curriculum")):
        with blaming(path):
            set_up(schedule, epochs, steps)
    check_range(factor, "recipe.masking.curriculum", points(steps), -1.0, 1.0)
    return ratio, factor, check_ratio(ratio, step.strategy, step.objective, points(steps))


def _counted(recipe: Recipe, step: _Step, dials: Dials) -> Costs:
    ratio, factor, least = dials
    composed = step.strategy.active.__qualname__ != Strategy.active.__qualname__
    known: dict[Any, dict[str, float]] = {}
    moments = []
    for number in range(MOMENTS):
        progress = (number + 0.5) / MOMENTS
        context = step.context(ratio(progress), factor(progress), progress, least)
        by_rank = abs(context.factor) * context.count >= 1  # where nothing is, nobody asks for the hardness
        moment = context.count, by_rank and context.factor > 0, by_rank, progress if composed else None
        if moment not in known:
            with explaining(step.strategy, step.objective, context):
                checked_active(step.strategy, context)
                own, learners = step.of_model(context), step.of_learners(context)
            known[moment] = {name: own[name] + learners[name] / recipe.masking.strategy_every for name in own}
        moments.append(known[moment])
    refuse_unreached(step.objective, step.strategy, step.reached)
    mean = {name: sum(one[name] for one in moments) / MOMENTS / BATCH for name in moments[0]}
    return Costs(
        **mean,
        parameters=trained_parameters(step.objective),
        strategy_parameters=sum(trained_parameters(learner) for learner in step.strategy.learners()),
        device=step.images.device.type,
        remarks=tuple(getattr(step.objective.backbone, "remarks", ())),
    )


def _made(recipe: Recipe, registry: Registry, shape: Any, device: str) -> _Step:
    """What `build` would make, without weights where the device is "meta", and without an optimizer."""
    try:
        with torch.device(device):
            backbone, objective, strategy = _built(recipe, registry, shape)
    except Exception:  # a mistake, which will show again; or somebody looks at values while it is built
        backbone, objective, strategy = _built(recipe, registry, shape)
    check_needs(strategy, objective, shape)
    for schedule in [*schedules_in(strategy), *schedules_in(objective)]:
        with blaming("recipe.masking.strategy"):
            set_up(schedule, *_length(recipe, shape))
    for module in (objective, strategy):
        module.to(device)
    rows, columns = (count * side for count, side in zip(backbone.grid, backbone.patch_size, strict=True))
    return _Step(
        objective=objective.train(),
        strategy=strategy.train(),
        teacher=Teacher(objective) if "teacher" in strategy.needs | objective.needs else None,
        images=torch.zeros(BATCH, backbone.channels, rows, columns, device=device),
        labels=torch.zeros(BATCH, dtype=torch.int64, device=device) if shape.classes else None,
    )


def _built(recipe: Recipe, registry: Registry, shape: Any) -> tuple[Any, Any, Any]:
    """Backbone, objective and strategy, on torch's default device of the moment."""
    classes = {} if shape.classes is None else {"classes": len(shape.classes)}
    with torch.random.fork_rng(devices=[]):
        backbone: Any = make_backbone(untaught(recipe.backbone), shape, registry)
        objective: Any = make(registry, "objective", recipe.objective, "recipe.objective", **classes)
        strategy: Any = make(registry, "strategy", recipe.masking.strategy, "recipe.masking.strategy")
        for path, made, sizes in (("objective", objective, backbone), ("masking.strategy", strategy, objective)):
            set_up_module(f"recipe.{path}", made, sizes)
    return backbone, objective, strategy


def untaught(use: Use) -> Use:
    """The same backbone without pretrained weights, which need not be fetched to be counted."""
    return {**use, "pretrained": False} if isinstance(use, Mapping) and use.get("pretrained") else use


def trained_parameters(module: nn.Module) -> int:
    """How many numbers an optimizer moves."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
