"""From a recipe to a session: everything is made, checked against everything else, or refused with a sentence."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import attrs
import torch
from timm.optim import (
    create_optimizer_v2,
    get_optimizer_info,
    list_optimizers,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from torch import nn

from maskzoo.backbones import skeleton
from maskzoo.backbones.sizes import any_size
from maskzoo.blame import blaming, distribution_of, plugin_error, refuses, titled
from maskzoo.bounds import MOST_STEPS
from maskzoo.checks import kind_of
from maskzoo.data.labels import unlabelled, why_none, why_unlabelled
from maskzoo.defaults import settled
from maskzoo.engine import Engine, Mover, blocks_of, choose_device, choose_precision, compile_blocks, recompute
from maskzoo.errors import ContractError, MaskZooError, PluginError, RecipeError
from maskzoo.matrix import unmet
from maskzoo.norms import Lone, needs_several, telling_lone_values, watching
from maskzoo.plain import quoted, rooted
from maskzoo.probe import PROBED, try_out
from maskzoo.processes import world
from maskzoo.protocols import (
    Backbone,
    Batch,
    CurriculumSchedule,
    Dataset,
    MaskingContext,
    MaskingStrategy,
    Objective,
    Part,
    Strategy,
    counted,
)
from maskzoo.recipe import MaskingRecipe, OptimizerRecipe, Recipe, TrainRecipe, Use, describe, make, make_dial, plain_of
from maskzoo.registry import Registry, indefinite, nearest
from maskzoo.schedules import schedules_in, set_up, value_of
from maskzoo.seeds import stream_seed
from maskzoo.teacher import Teacher
from maskzoo.train import Session
from maskzoo.weights import load_weights

Trial = Callable[[tuple[int, ...], int], Batch]  # (size, count) -> images on which a step is tried out
MOST_POINTS = 20_001
ELSEWHERE = {  # options of timm's create_optimizer_v2 that are keys of the recipe, or without effect on groups
    "opt": "it is `use`",
    "lr": "it is `lr`",
    "weight_decay": "it is a key of the optimizer itself, and would have no effect here",
    "layer_decay": "it is `layer_decay`",
    **dict.fromkeys(("layer_decay_min_scale", "layer_decay_no_opt_scale"), "layers differ by `layer_decay` alone"),
    **dict.fromkeys(("filter_bias_and_bn", "param_group_fn"), "vectors and biases are never decayed"),
    **dict.fromkeys(("model_or_params", "params"), "all of the model's parameters are moved"),
}
MAE_BETAS = (0.9, 0.95)
FUSED = ("adam", "adamw")  # torch's own, of which all parameters are moved in one go
FIRST_SCALE = 2.0**14  # of an fp16 loss; torch's 2 ** 16 overflows in the first steps of most runs


def build(
    recipe: Recipe,
    dataset: Dataset,
    registry: Registry,
    *,
    steps_in_epoch: int,
    resuming: bool = False,
    trial: Trial | None = None,
) -> Session:
    """The live objects of a run on `dataset`, its weights drawn from the recipe's seed.

    Where the run is `resuming` from a checkpoint, the weights to start from are not asked for any more. With images
    for a `trial`, a step is tried out on them, of which nothing remains.
    Raises RecipeError or ContractError, before any training, for whatever does not fit together.
    """
    recipe = settled(recipe, len(dataset.train), world() * recipe.train.accumulate)
    train = recipe.train
    steps = train.steps or train.epochs * steps_in_epoch
    if steps > MOST_STEPS:
        raise RecipeError(f"recipe.train.epochs: {train.epochs} make {steps} steps; at most {MOST_STEPS} can be made")
    moments = points(steps)
    engine = make_engine(train)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(train.seed, "model"))
        with any_size() if resuming else nullcontext():
            backbone, remarks = make_backbone(recipe.backbone, dataset, registry), list[str]()
        if recipe.weights is not None and not resuming:
            remarks = load_weights(backbone, recipe.weights)
        classes = {} if dataset.classes is None else {"classes": len(dataset.classes)}
        objective: Any = make(registry, "objective", recipe.objective, "recipe.objective", **classes)
        _refuse_other_classes(objective, dataset)
        refuse_unlabelled("recipe.objective", f"objective '{objective.name}'", objective.needs, dataset)
        set_up_module("recipe.objective", objective, backbone)
        torch.manual_seed(stream_seed(train.seed, "strategy"))  # so that every masker starts with the same model
        strategy: Any = make(registry, "strategy", recipe.masking.strategy, "recipe.masking.strategy")
        _refuse_lost_parameters(strategy)
        set_up_module("recipe.masking.strategy", strategy, objective)
    objective.to(engine.device)
    strategy.to(engine.device)
    check_needs(strategy, objective, dataset)

    def schedule(use: Use | None, path: str, low: float = -math.inf, high: float = math.inf) -> CurriculumSchedule:
        made: CurriculumSchedule = make_dial(registry, use, path)  # type: ignore[arg-type]  # it is settled
        with blaming(path):
            set_up(made, steps / steps_in_epoch, steps)
        check_range(made, path, moments, low, high)
        return made

    for inner in [*schedules_in(strategy), *schedules_in(objective)]:
        with blaming("recipe.masking.strategy"):
            set_up(inner, steps / steps_in_epoch, steps)
    for part in strategy.modules():
        if isinstance(part, Part) and part.curriculum is not None:
            check_range(part.curriculum, "recipe.masking.strategy: a part's curriculum", moments, -1.0, 1.0)
    ratio = schedule(choose_ratio(recipe.masking, objective), "recipe.masking.ratio")
    least_hidden, least_shown = check_ratio(ratio, strategy, objective, moments)
    curriculum: CurriculumSchedule = make(
        registry,
        "schedule",
        choose_curriculum(recipe.masking, strategy),
        curriculum_path(recipe.masking, strategy),
    )
    with blaming("recipe.masking.curriculum"):
        set_up(curriculum, steps / steps_in_epoch, steps)
    check_range(curriculum, "recipe.masking.curriculum", moments, -1.0, 1.0)
    refuse_meaningless(curriculum, strategy, moments)
    lr = schedule(recipe.optimizer.lr, "recipe.optimizer.lr", 0.0)
    own = recipe.masking.optimizer or attrs.evolve(recipe.optimizer, layer_decay=None)
    strategy_lr = schedule(own.lr, "recipe.masking.optimizer.lr", 0.0)
    decay = schedule(recipe.teacher.decay, "recipe.teacher.decay", 0.0, 1.0)

    joint = [learner for learner in strategy.learners() if learner.learning == "joint"]
    alternate = [learner for learner in strategy.learners() if learner.learning == "alternate"]
    if engine.sharded and joint:
        raise RecipeError(
            f"recipe.train.parallel: the loss of strategy '{joint[0].name}' joins the model's, and such a strategy "
            "cannot be sharded; use ddp"
        )
    teacher = Teacher(objective) if "teacher" in strategy.needs | objective.needs else None
    if trial is not None:
        _try(
            trial,
            objective,
            strategy,
            teacher,
            engine,
            (ratio, curriculum),
            (least_hidden, least_shown),
            train,
            moments,
        )
    prepare_blocks(objective, strategy, teacher, train, engine)
    uses = {
        "data": described(dataset),
        "backbone": describe(backbone),
        "objective": describe(objective),
        "masking": attrs.evolve(
            recipe.masking, ratio=describe(ratio), strategy=describe(strategy), curriculum=describe(curriculum)
        ),
        "optimizer": attrs.evolve(recipe.optimizer, lr=describe(lr), betas=settled_betas(recipe.optimizer)),
        "teacher": attrs.evolve(recipe.teacher, decay=describe(decay)),
        "train": attrs.evolve(train, precision=engine.precision),
    }
    if recipe.masking.optimizer is not None:
        own_described = attrs.evolve(own, lr=describe(strategy_lr), betas=settled_betas(own))
        uses["masking"] = attrs.evolve(uses["masking"], optimizer=own_described)
    return Session(
        recipe=plain_of(attrs.evolve(recipe, **uses)),
        engine=engine,
        objective=objective,
        strategy=strategy,
        teacher=teacher,
        mover=make_mover(recipe.optimizer, [objective, *joint], "recipe.optimizer", engine, backbone),
        strategy_mover=make_mover(own, alternate, "recipe.masking.optimizer", engine) if alternate else None,
        lr=lr,
        strategy_lr=strategy_lr,
        ratio=ratio,
        curriculum=curriculum,
        decay=decay,
        seed=train.seed,
        steps=steps,
        steps_in_epoch=steps_in_epoch,
        fingerprint=fingerprint(dataset),
        classes=None if dataset.classes is None else [str(name) for name in dataset.classes],
        renumbered="labels" in objective.needs | strategy.needs and getattr(dataset, "older_classes", None) is not None,
        least_hidden=least_hidden,
        least_shown=least_shown,
        accumulate=train.accumulate,
        strategy_every=recipe.masking.strategy_every,
        remarks=remarks,
    )


def _try(
    trial: Trial,
    objective: Any,
    strategy: Any,
    teacher: Teacher | None,
    engine: Engine,
    dials: tuple[CurriculumSchedule, CurriculumSchedule],
    least: tuple[int, int],
    train: TrainRecipe,
    moments: Sequence[float],
) -> None:
    """Take a step on two images, or, where that fails, on as many as a real one has: a plugin may need them all."""
    backbone = objective.backbone
    size = tuple(count * side for count, side in zip(backbone.grid, backbone.patch_size, strict=True))
    images = train.batch // (world() * train.accumulate)  # of a micro-batch
    few = needs_several(objective, strategy, images=images)
    highest = max(dials[0](progress) for progress in moments) if few else 0.0
    whole = max(PROBED, images)
    for count in dict.fromkeys((PROBED, whole)):
        batch = trial(size, count).to(engine.device)
        if batch.labels is None and "labels" in strategy.needs | objective.needs:
            raise RecipeError(
                "recipe.data: what is trained learns from labels, and some training images have none (-1)"
            )
        context = MaskingContext(
            images=batch.images,
            labels=batch.labels,
            index=batch.index,
            extras=batch.extras,
            ratio=0.0,
            count=0,
            factor=0.0,
            progress=0.0,
            student=objective,
            teacher=None if teacher is None else teacher.module,  # type: ignore[arg-type]  # an objective
            grid=tuple(backbone.grid),
            seed=train.seed,
            least_hidden=least[0],
            least_shown=least[1],
        )

        def context_at(progress: float, context: MaskingContext = context) -> MaskingContext:
            ratio, factor = (dial(progress) for dial in dials)
            return attrs.evolve(context, ratio=highest if few else ratio, factor=factor, progress=progress)

        try:
            with watching(objective, strategy, tried=count, images=images) as lone, telling_lone_values():
                try_out(objective, strategy, teacher, engine, context_at)
        except (PluginError, ContractError) as problem:
            if lone:
                raise _lone_value(lone[0], images, train, strategy, context_at(0.0)) from problem
            if count == whole or not isinstance(problem, PluginError):
                raise
        else:
            if lone:
                raise _lone_value(lone[0], images, train, strategy, context_at(0.0))
            break


def _lone_value(lone: Lone, images: int, train: TrainRecipe, strategy: Any, context: MaskingContext) -> RecipeError:
    """What to say of a norm that would see a single value where most is hidden."""
    shown = context.patches - context.counted_by(strategy).count
    micro = "an image" if lone.by_image else f"{images} image{'s' if images > 1 else ''} in a micro-batch"
    if not lone.by_image and (world() > 1 or train.accumulate > 1):
        processes = f"{world()} process{'es' if world() > 1 else ''}"
        micro += f" ({train.batch} images / {processes} / {train.accumulate} micro-batches)"
    least = 2 * world() * train.accumulate
    ways = [] if lone.by_image else [f"train.batch_size = {least} or more"]
    if not lone.by_image and train.accumulate > 1:
        ways.append("a smaller train.accumulate")
    if shown < context.patches:
        ways.append("a lower masking.ratio")
    ways.append("larger images (backbone.image_size)")
    key = "masking.ratio" if lone.by_image else "train.batch_size"
    return RecipeError(
        f"recipe.{key}: {lone.told}: of {micro}, {shown} of {context.patches} patches "
        f"{'is' if shown == 1 else 'are'} visible at ratio {context.ratio:g}; take {', or '.join(ways)}"
    )


def make_engine(train: TrainRecipe) -> Engine:
    """The device, precision and processes of a run, checked against each other."""
    device = choose_device(train.device)
    precision = choose_precision(train.precision, device)
    sharded = train.parallel == "fsdp2" and world() > 1
    shares = world() * train.accumulate
    if train.batch % shares:
        micro = f" x {train.accumulate} micro-batches (train.accumulate)" if train.accumulate > 1 else ""
        raise RecipeError(
            f"recipe.train.batch_size: is that of all processes together, and {train.batch} images do not divide "
            f"among {world()} processes{micro}; {round(train.batch / shares) * shares or shares} would"
        )
    if precision == "fp16" and sharded:
        raise RecipeError("recipe.train.precision: fp16 cannot be had with fsdp2; use bf16, which needs no scaling")
    return Engine(device, precision, sharded)


def prepare_blocks(objective: Any, strategy: Any, teacher: Teacher | None, train: TrainRecipe, engine: Engine) -> None:
    """Recompute, compile and shard the blocks as the recipe says; after this the objective is not copied any more."""
    if train.recompute:
        parts = (part for block in blocks_of(objective) for part in block.modules())
        if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in parts):
            raise RecipeError(
                "recipe.train.recompute: this backbone has BatchNorms, whose running averages would move twice in a "
                "step; leave it off"
            )
        recompute(objective)
    if train.compile:
        for module in (objective, strategy):
            compile_blocks(module)
    if engine.sharded:
        engine.shard(objective)
        if teacher is not None:
            engine.shard(teacher.module)


def make_mover(
    recipe: OptimizerRecipe, modules: list[Any], path: str, engine: Engine, backbone: Any | None = None
) -> Mover:
    """What moves the modules' parameters; those of the `backbone`, if it is among them, by the rules of its layers."""
    scaler = torch.amp.GradScaler(engine.device.type, init_scale=FIRST_SCALE) if engine.precision == "fp16" else None
    return Mover(make_optimizer(recipe, modules, path, backbone), recipe.clip, scaler)


def make_backbone(use: Use, dataset: Dataset, registry: Registry) -> Backbone:
    """The backbone of a recipe, fitted to the data's channels and size; a timm name finds its adapter by itself."""
    path = "recipe.backbone"
    table = {"use": use} if isinstance(use, str) else dict(use) if isinstance(use, Mapping) else {}
    if "timm" not in table and isinstance(table.get("use"), str) and table["use"] not in registry.classes("backbone"):
        table["timm"] = table.pop("use")  # a timm model is named as shortly as anything else
    if "use" not in table:
        if not isinstance(table.get("timm"), str):
            raise RecipeError(f"{path}: give `timm`, the name of a timm model, or `use`, that of a registered backbone")
        table["use"] = adapter_of(table["timm"], registry)
    given = {"channels": dataset.channels, "data_size": list(dataset.size)}
    backbone: Backbone = make(registry, "backbone", table, path, **given)
    if backbone.channels != dataset.channels:
        raise RecipeError(
            f"{path}.channels: the backbone takes {backbone.channels} channels, "
            f"but the images of '{dataset.name}' have {dataset.channels}"
        )
    return backbone


def adapter_of(name: str, registry: Registry) -> str:
    """The registered backbone that adapts the timm model of that name. Raises RecipeError where there is none."""
    try:
        model = skeleton(name)
    except RecipeError as problem:
        raise RecipeError(f"recipe.backbone.timm: {problem}") from None
    adapters = registry.classes("backbone")
    for adapter, cls in adapters.items():
        adapts = getattr(cls, "adapts", None)
        if adapts is not None and adapts(model):
            return adapter
    raise RecipeError(
        f"recipe.backbone.timm: '{name}' is {indefinite(type(model).__name__)}, and no backbone adapter takes that; "
        f"adapters: {', '.join(adapters)}"
    )


def choose_curriculum(masking: MaskingRecipe, strategy: MaskingStrategy) -> Use:
    """The schedule of the factor: the recipe's, or the strategy's own, or 0 where the factor means nothing."""
    if masking.curriculum is not None:
        return masking.curriculum
    return 0.0 if strategy.default_curriculum is None else strategy.default_curriculum


def curriculum_path(masking: MaskingRecipe, strategy: MaskingStrategy) -> str:
    """Where the schedule of the factor stands, for messages: in the recipe, or in the strategy's class."""
    own = masking.curriculum is None and strategy.default_curriculum is not None
    return f"default_curriculum of {titled('strategy', strategy)}" if own else "recipe.masking.curriculum"


def choose_ratio(masking: MaskingRecipe, objective: Objective) -> Use:
    """The share of hidden patches: the recipe's, or what suits the objective."""
    return objective.default_ratio if masking.ratio is None else masking.ratio


def refuse_meaningless(curriculum: CurriculumSchedule, strategy: MaskingStrategy, moments: list[float]) -> None:
    """Refuse a curriculum that a strategy cannot follow; neutral is what it does anyway."""
    if strategy.default_curriculum is None and any(curriculum(progress) for progress in moments):
        theirs = distribution_of(strategy) is not None
        hint = "; if it looks at context.factor, its class has to set default_curriculum" if theirs else ""
        raise RecipeError(
            f"recipe.masking.curriculum: strategy '{strategy.name}' knows no hardness, so a curriculum means nothing "
            f"to it; its dial is the ratio, e.g. --ratio linear:0.5:0.75{hint}"
        )


def check_range(schedule: CurriculumSchedule, path: str, moments: list[float], low: float, high: float) -> None:
    """Refuse a schedule of which a value leaves [low, high] at one of the moments."""
    for progress in moments:
        value = number_from(schedule, progress, path)
        if not low <= value <= high:
            bounds = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
            raise RecipeError(
                f"{path}: must be {bounds}, got {value:g} at progress {progress:g}{_culprit(schedule, low, high)}"
            )


def number_from(schedule: CurriculumSchedule, progress: float, path: str) -> float:
    """What a schedule says at `progress`; whatever is wrong with it begins with the key's path."""
    try:
        with blaming(path):
            return value_of(schedule, progress)
    except ContractError as problem:
        raise PluginError(f"{path}: {problem}") from problem


def _culprit(schedule: CurriculumSchedule, low: float, high: float) -> str:
    """The first option of a schedule that is outside [low, high], as the end of a message, if there is one."""
    kind: type = type(schedule)
    fields = attrs.fields(kind) if attrs.has(kind) else ()
    values = {field.name: getattr(schedule, field.name) for field in fields if field.type in (float, "float")}
    outside = [f"; its {name} is {value:g}" for name, value in values.items() if not low <= value <= high]
    return outside[0] if outside and len(values) > 1 else ""  # a bare number has no options


def points(steps: int) -> list[float]:
    """The progress of every step, or of as many as can be looked at before a long run."""
    count = min(steps, MOST_POINTS)
    return [number / max(1, count - 1) for number in range(count)]


def check_needs(strategy: MaskingStrategy, objective: Objective, dataset: Dataset) -> None:
    """Refuse a strategy or an objective whose needs nothing here meets, and a learner that cannot learn."""
    _refuse_unable(strategy)
    backbone = objective.backbone
    labels = ["labels"] if dataset.classes is not None else []
    for path, who, needs in (
        ("recipe.masking.strategy", f"strategy '{strategy.name}'", strategy.needs),
        ("recipe.objective", f"objective '{objective.name}'", objective.needs),
    ):
        refuse_unlabelled(path, who, needs, dataset)
        missing = unmet(needs, backbone.provides, objective.provides, labels)
        if missing:
            culprit = {"labels": f"data '{dataset.name}'", "patch_loss": f"objective '{objective.name}'"}
            provider = culprit.get(missing[0], f"backbone '{getattr(backbone, 'timm', backbone.name)}'")
            raise RecipeError(f"{path}: {who} needs {missing[0]}, which {provider} does not provide")


def refuse_unlabelled(path: str, who: str, needs: frozenset[str], dataset: Dataset) -> None:
    """Refuse what needs labels where the training images have none, or one class, or some images none."""
    if "labels" not in needs:
        return
    if dataset.classes is None and not why_none(dataset):  # as a lack that is declared, it is told with the others
        return
    if reason := why_unlabelled(dataset):
        raise RecipeError(f"{path}: {who} needs labels, and {reason}")
    if lacking := unlabelled(dataset):
        raise RecipeError(
            f"{path}: {who} needs labels, and {lacking} of {len(dataset.train)} training images have none; leave those "
            "images out (by data.labelled_only = true, where labels are in a table, data.labels)"
        )


def check_ratio(
    ratio: CurriculumSchedule, strategy: MaskingStrategy, objective: Objective, moments: list[float]
) -> tuple[int, int]:
    """Refuse a ratio outside [0, 1), or a constant one that hides everything, or less than the objective needs.

    Returns the least number of patches to hide and to show under a moving ratio, whose count is clamped to that.
    """
    path, patches = "recipe.masking.ratio", math.prod(objective.backbone.grid)
    values = sorted({number_from(ratio, progress, path) for progress in moments})
    if values[0] < 0 or values[-1] >= 1:
        wrong = values[0] if values[0] < 0 else values[-1]
        told = _culprit(ratio, 0.0, math.nextafter(1.0, 0.0))
        raise RecipeError(
            f"{path}: the share of hidden patches must be at least 0 and less than 1, got {wrong:g}{told}"
        )
    try:
        with blaming(path):
            counts = [counted(strategy, value, patches) for value in values]
    except MaskZooError as problem:
        raise RecipeError(f"{path}: {problem}") from problem
    if len(values) > 1:
        return objective.least_hidden, 1
    if not objective.least_hidden <= counts[0] < patches:
        hides = "nothing" if counts[0] <= 0 else "everything"
        least = "at least one must be hidden and one shown" if objective.least_hidden else "at least one must be shown"
        raise RecipeError(
            f"{path}: strategy '{strategy.name}' hides {hides} at ratio {values[0]:g} of {patches} patches; {least}"
        )
    return 0, 0


def make_optimizer(
    recipe: OptimizerRecipe, modules: list[Any], path: str, backbone: Any | None = None
) -> torch.optim.Optimizer:
    """One of timm's optimizers over the modules' trained parameters; no decay on vectors and biases."""
    groups = [group for module in modules for group in parameter_groups(recipe, module, path, backbone)]
    known = list_optimizers()
    if recipe.use not in known:
        raise RecipeError(f"{path}.use: no optimizer named {quoted(recipe.use)}; {nearest(recipe.use, known)}")
    options = _optimizer_options(recipe, path)
    # A step on two small parameters: whatever it needs and lacks, such as a closure, shows before training.
    tried = [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))]
    for parameter in tried:
        parameter.grad = torch.ones_like(parameter)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            create_optimizer_v2([{"params": tried}], opt=recipe.use, lr=0.0, **options).step()
        return create_optimizer_v2(groups, opt=recipe.use, lr=0.0, **options)  # type: ignore[no-any-return]
    except Exception as problem:  # timm's code, and that of libraries that may not be here
        words = " ".join(str(problem).split()) or type(problem).__name__
        if recipe.options:
            raise RecipeError(f"{path}.options: {recipe.use} refuses {quoted(options)}: {words}") from problem
        raise RecipeError(f"{path}.use: the optimizer '{recipe.use}' cannot be used here: {words}") from problem


def settled_betas(recipe: OptimizerRecipe) -> tuple[float, ...] | None:
    """The betas of an optimizer: the recipe's, or MAE's where it takes two; None: its own."""
    if recipe.betas is not None or recipe.use not in list_optimizers():
        return recipe.betas
    return MAE_BETAS if get_optimizer_info(recipe.use).num_betas == len(MAE_BETAS) else None


def _optimizer_options(recipe: OptimizerRecipe, path: str) -> dict[str, Any]:
    """What timm is told of an optimizer beside its rate. Raises RecipeError for betas that it does not take."""
    options, info, betas = dict(recipe.options), get_optimizer_info(recipe.use), settled_betas(recipe)
    for name, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise RecipeError(f"{path}.options: {name} must be a finite number, got {value}")
    for name in ELSEWHERE.keys() & options.keys():
        raise RecipeError(f"{path}.options: {name} cannot be given here; {ELSEWHERE[name]}")
    if not info.has_betas:
        if betas not in (None, MAE_BETAS):
            raise RecipeError(f"{path}.betas: the optimizer '{recipe.use}' has none")
    elif betas is not None:
        if len(betas) != info.num_betas:
            raise RecipeError(f"{path}.betas: the optimizer '{recipe.use}' takes {info.num_betas}, got {list(betas)}")
        options.setdefault("betas", tuple(betas))
    if recipe.use in FUSED:
        options.setdefault("fused", True)
    return options


def parameter_groups(recipe: OptimizerRecipe, module: Any, path: str, backbone: Any | None) -> list[dict[str, Any]]:
    """A module's trained parameters, grouped by weight decay and, with layer decay, by layer of the backbone."""
    place = next((f"{name}." if name else "" for name, part in module.named_modules() if part is backbone), None)
    undecayed: set[str] = set()
    if place is not None:
        undecayed = {place + name for name in backbone.no_weight_decay()}  # type: ignore[union-attr]  # it was found
    if recipe.layer_decay is None:
        groups = param_groups_weight_decay(module, recipe.weight_decay, no_weight_decay_list=undecayed)
        return [group for group in groups if group["params"]]
    if backbone is None:
        raise RecipeError(f"{path}.layer_decay: is for the backbone's layers, and there is none here")
    if place is None:  # a learner whose loss joins the model's: all of it is on top
        groups = param_groups_weight_decay(module, recipe.weight_decay)
        return [group for group in groups if group["params"]]
    if not isinstance(getattr(backbone, "model", None), nn.Module):
        raise RecipeError(f"{path}.layer_decay: needs a timm model, which says what its layers are")
    prefix = f"{place}model."
    inside = {name.removeprefix(prefix) for name in undecayed}
    layers = param_groups_layer_decay(
        backbone.model, recipe.weight_decay, no_weight_decay_list=inside, layer_decay=recipe.layer_decay
    )
    highest = max((group["lr_scale"] for group in layers), default=1.0)  # below 1 where a head that is not trained was
    for group in layers:
        group["lr_scale"] *= recipe.layer_decay / highest  # what is on top is one layer more
    taken = {id(parameter) for group in layers for parameter in group["params"]}
    rest: dict[bool, list[Any]] = {True: [], False: []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and id(parameter) not in taken:
            rest[parameter.ndim > 1 and name not in undecayed].append(parameter)
    tops = [{"params": rest[decayed], "weight_decay": recipe.weight_decay * decayed} for decayed in (False, True)]
    return [group for group in [*layers, *tops] if group["params"]]


def fingerprint(dataset: Dataset) -> str:
    """By what a resumed run knows its training images again: how many, and the names of files where there are any.

    A split that has no files may have a `fingerprint` of its own.
    """
    own = getattr(dataset.train, "fingerprint", None)
    if isinstance(own, str):
        return f"{len(dataset.train)} images, {own}"
    names = "\n".join(below_their_root([os.fspath(file) for file in getattr(dataset.train, "files", ())]))
    return f"{len(dataset.train)} images, {hashlib.blake2b(os.fsencode(names), digest_size=8).hexdigest()}"


def below_their_root(files: Sequence[str]) -> list[str]:
    """Each path from the deepest folder that all are in, as `os.path.relpath` has it, a million of them in a second."""
    if len(set(files)) < 2:
        return ["." for _ in files]  # from the file itself
    split = [file.rpartition(os.sep) for file in files]
    folders = {head + sep for head, sep, _ in split}
    root = os.path.commonpath([folder or os.curdir for folder in folders])
    below = {folder: os.path.relpath(folder or os.curdir, root) + os.sep for folder in folders}
    below = {folder: "" if path == os.curdir + os.sep else path for folder, path in below.items()}
    return [below[head + sep] + name for head, sep, name in split]


def described(dataset: Dataset) -> Any:
    """A data set as a recipe names it; one that somebody made by hand has images, not options."""
    try:
        return rooted(describe(dataset))
    except ContractError:
        return {"use": dataset.name}


def set_up_module(path: str, made: Any, sizes: Any) -> None:
    """Run a plugin's setup; what it finds wrong with the sizes is said with its path."""
    try:
        made.setup(sizes)
    except PluginError as problem:
        raise PluginError(f"{path}: {problem}") from problem.__cause__
    except RecipeError as problem:
        cause = problem.__cause__
        bug = None if cause is None or refuses(cause) else plugin_error(cause, path)
        if bug is not None:  # in a part of a composite
            raise bug from cause
        raise RecipeError(f"{path}.{problem.key}: {problem}" if problem.key else f"{path}: {problem}") from problem
    except MaskZooError as problem:
        raise RecipeError(f"{path}: {problem}") from problem
    except Exception as problem:
        if refuses(problem):
            raise RecipeError(f"{path}: {problem}") from problem
        bug = plugin_error(problem, path)
        if bug is None:
            raise
        raise bug from problem


def _refuse_other_classes(objective: Any, dataset: Dataset) -> None:
    """Refuse an objective that was told another number of classes than the data have."""
    told = getattr(objective, "classes", None)
    if told is not None and dataset.classes is not None and told != len(dataset.classes):
        raise RecipeError(
            f"recipe.objective.classes: the data '{dataset.name}' have {len(dataset.classes)} classes, not {told}; "
            "leave it open"
        )


def _refuse_unable(strategy: MaskingStrategy) -> None:
    """Refuse learners that are none, have no parameter to train, or one whose size only a first step would tell."""
    path = "recipe.masking.strategy"
    learners: Any = strategy.learners()
    if not isinstance(learners, list | tuple) or not all(isinstance(one, Strategy) for one in learners):
        raise ContractError(
            f"{path}: {titled('strategy', strategy)} returned {kind_of(learners)} from learners(); a list of "
            "maskzoo.Strategy is needed"
        )
    if any(nn.parameter.is_lazy(one) for one in strategy.parameters()):
        raise ContractError(
            f"{path}: {titled('strategy', strategy)} has a lazy module, whose parameters have no size before a first "
            "step; give it its size in setup(objective)"
        )
    for learner in learners:
        if not any(parameter.requires_grad for parameter in learner.parameters()):
            raise RecipeError(f"{path}: {titled('strategy', learner)} learns, but has no parameter to train")


def _refuse_lost_parameters(strategy: Any) -> None:
    """Refuse a strategy whose class lost nn.Module's __setattr__: its layers would never be trained, nor saved."""
    kept: Any = nn.Module.__setattr__
    for module in strategy.modules():
        if type(module).__setattr__ is not kept:
            raise RecipeError(
                f"recipe.masking.strategy: class {type(module).__qualname__} ({type(module).__module__}) overrides "
                "nn.Module's __setattr__, so its parameters would be lost; decorate it with maskzoo.define"
            )
