"""Scores that are not finite, and inputs changed in place: noticed in the step, and never learned from."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from helpers import (
    noise_images,
    random_batches,
    random_images,
    same_state,
    state_of,
    strategy_of,
    tiny_objective,
    tiny_session,
)
from made_up import registry_with, session_with
from programs import small_recipe
from rich.console import Console
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import maskzoo.run
from maskzoo import (
    ContractError,
    Mask,
    MaskingContext,
    MaskZooError,
    Objective,
    Outcome,
    RankedStrategy,
    Recipe,
    Strategy,
    define,
)
from maskzoo.alarms import not_finite
from maskzoo.evaluation.features import WholeImages
from maskzoo.train import LearnerStep, ModelStep, bad_scores, doubt, look, train

OBJECTIVE = tiny_objective()


# ------------------------------------------------------------------------------------------------- made-up bad maskers
def spoiled(scores: Tensor, how: str) -> Tensor:
    scores = scores.clone()
    if how == "all nan":
        scores[:] = math.nan
    else:
        scores[1, 2] = float(how)  # one score of one image
    return scores


@define
class Plain(Strategy):
    name = "plain"
    how: str = "nan"
    steps: tuple[int, ...] = (1,)  # in which the scores are bad

    def scores(self, context: MaskingContext) -> Tensor:
        return spoiled(context.noise(), self.how) if context.step in self.steps else context.noise()

    def after_step(self, context: MaskingContext, mask: Mask, outcome: Outcome) -> None:
        self.heard = [*getattr(self, "heard", []), context.step]


@define
class Ranked(RankedStrategy):
    name = "ranked"
    how: str = "nan"
    steps: tuple[int, ...] = (1,)

    def hardness(self, context: MaskingContext) -> Tensor:
        return spoiled(context.noise(), self.how) if context.step in self.steps else context.noise()


@define
class Own(Strategy):
    """Masks in a way of its own."""

    name = "own"
    how: str = "nan"
    steps: tuple[int, ...] = (1,)

    def mask(self, context: MaskingContext) -> Mask:
        context = context.counted_by(self)
        return Mask.hide_top(spoiled(context.noise(), self.how if context.step in self.steps else "0.5"), context.count)


class Learning(Strategy):
    def setup(self, objective: Objective) -> None:
        self.layer = nn.Linear(1, 1)

    def scores(self, context: MaskingContext) -> Tensor:
        chances = self.layer(context.noise()[..., None])[..., 0].sigmoid()
        return (
            torch.where(spoiled(torch.zeros_like(chances), self.how).isfinite(), chances, float(self.how[-3:]))
            if (context.step in self.steps)
            else chances
        )

    def loss(self, context: MaskingContext, mask: Mask, outcome: Outcome) -> Tensor:
        return (mask.scores.nan_to_num(0.5, 0.5, 0.5) ** 2).mean()  # finite, whatever the scores are


@define
class Joint(Learning):
    name = "joint"
    learning = "joint"
    how: str = "nan"
    steps: tuple[int, ...] = (1,)


@define
class Alternate(Learning):
    name = "alternate"
    learning = "alternate"
    how: str = "nan"
    steps: tuple[int, ...] = (1,)


MADE_UP = [Plain, Ranked, Own, Joint, Alternate]
NAMES = [cls.name for cls in MADE_UP]


def mixed(kind: str, part: Any) -> dict[str, Any]:
    return {"use": kind, "parts": [part, "random"], **({"at": [0.9]} if kind == "switch" else {})}


# ------------------------------------------------------------------------------------------------- scores not finite
@pytest.mark.parametrize(
    ("name", "how"),
    [*((name, "nan") for name in NAMES), ("plain", "inf"), ("ranked", "-inf"), ("joint", "all nan")],
)
@pytest.mark.sampled(1)
def test_a_step_of_bad_scores_is_skipped_and_counted_by_the_maskers_name(name: str, how: str):
    session = session_with(MADE_UP, {"use": name, "how": how})
    before, figures = {}, []
    for line in train(session, random_batches(3)):
        figures.append(line)
        before[int(line["step"])] = state_of(session.objective), state_of(session.strategy)
    assert [line["skipped"] for line in figures] == [0, 1, 0]
    assert figures[1][f"{name}/bad_scores"] >= 1
    assert math.isfinite(figures[1]["loss"])  # which is why nobody saw it
    assert "bad_scores" not in " ".join([*figures[0], *figures[2]])
    for there, then in zip(before[0], before[1], strict=True):
        assert all(torch.equal(there[key], then[key]) for key in there)
    assert not same_state(session.objective, before[1][0])


@pytest.mark.parametrize(("kind", "name"), [("mix", "plain"), ("union", "ranked"), ("switch", "alternate")])
def test_bad_scores_of_a_part_are_told_as_the_parts(kind: str, name: str):
    session = session_with(MADE_UP, mixed("switch", mixed(kind, {"use": name})))
    figures = list(train(session, random_batches(3)))
    assert [line["skipped"] for line in figures] == [0, 1, 0]
    said = not_finite(figures[1])
    assert f"of strategy '{name}/0/0' " in said
    assert f"'{kind}" not in said
    assert "'switch" not in said


def test_nothing_of_a_skipped_step_is_remembered():
    session = session_with(MADE_UP, mixed("union", "attmask") | {"parts": ["plain", "attmask"]}, train={"steps": 3})
    source = train(session, random_batches(3))
    next(source)
    teacher = state_of(session.teacher.module)
    next(source)
    assert same_state(session.teacher.module, teacher)
    next(source)
    assert session.strategy.parts[0].strategy.heard == [0, 2]


@pytest.mark.slow
def test_scores_of_one_micro_batch_are_enough():
    session = session_with(MADE_UP, "plain", train={"steps": 2, "batch_size": 6, "accumulate": 2})
    figures = list(train(session, random_batches(4, count=3)))
    assert [line["skipped"] for line in figures] == [0, 1]


def test_a_joint_loss_that_is_not_finite_is_noticed_where_its_gradient_is():
    session = session_with(MADE_UP, {"use": "joint", "steps": []})
    loss = session.strategy.loss
    session.strategy.loss = lambda *given: loss(*given) + (math.nan if given[0].step == 1 else 0.0)
    figures = list(train(session, random_batches(3)))
    assert [line["skipped"] for line in figures] == [0, 1, 0]
    assert "joint/loss is nan" in not_finite(figures[1])


def test_a_learner_whose_soft_scores_alone_are_bad_rests_and_the_model_moves():
    session = session_with(MADE_UP, {"use": "alternate", "steps": []})
    scores = session.strategy.scores
    session.strategy.soft_mask = lambda context: Mask.soft(spoiled(scores(context), "nan"), 48)
    before = state_of(session.objective), state_of(session.strategy)
    figures = list(train(session, random_batches(2)))
    assert [line["skipped"] for line in figures] == [1, 1]
    assert not same_state(session.objective, before[0])
    assert same_state(session.strategy, before[1])


def run(out: Path, use: Any, **training: Any) -> str:
    console = Console(file=io.StringIO(), width=10_000)
    try:
        recipe = Recipe.from_plain(small_recipe(use, **training))
        maskzoo.run.run(recipe, registry_with(*MADE_UP), console, out)
    except MaskZooError as problem:
        return console.file.getvalue() + str(problem)
    return console.file.getvalue()


@pytest.mark.slow
def test_a_run_says_which_maskers_scores_were_bad(tmp_path: Path):
    said = run(tmp_path / "run", "ranked", steps=3)
    assert "step 1 was skipped: a score of strategy 'ranked' is not finite" in said
    assert "nothing has moved" in said
    assert "a score of strategy 'ranked'" in (tmp_path / "run" / "warnings.txt").read_text()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines] == [0, 1, 0]


@pytest.mark.parametrize("use", ["ranked", "own", "joint", mixed("mix", "plain")], ids=str)
@pytest.mark.sampled(1)
def test_a_run_of_bad_scores_goes_back_and_stops_naming_the_masker(use: Any, tmp_path: Path):
    table = {"use": use} if isinstance(use, str) else use
    where = table if isinstance(use, str) else (table := {**use, "parts": [{"use": "plain"}, "random"]})["parts"][0]
    where["steps"] = list(range(4, 40))
    said = run(tmp_path / "run", table, steps=12, skip=2, go_back=1, checkpoint_steps=2)
    assert "back to step 4, with 0.5 times the learning rate" in said
    name = where["use"] + ("" if isinstance(use, str) else "/0")
    assert said.count(f"the first that went bad is the scores of strategy '{name}'") == 2
    assert said.endswith("look into that strategy, and into what it looks at: a score must be a finite number")


def test_infinity_within_attmasks_hints_is_not_taken_for_a_fault():
    session = tiny_session({"use": "attmask", "hints": 0.5})
    assert [line["skipped"] for line in train(session, random_batches(2))] == [0, 0]


def test_attmask_notices_attention_that_is_not_finite_also_where_it_hints():
    masker = strategy_of({"use": "attmask", "hints": 0.5}, OBJECTIVE)
    masker.hardness = lambda context: spoiled(context.noise(), "nan")
    context = MaskingContext.of(OBJECTIVE, random_images(), 0.5, step=0)
    masker.mask(context)
    assert context.guard.bad_scores["attmask"] > 0
    assert context.guard.doubt().isnan()
    with pytest.raises(ContractError, match="of strategy 'attmask' are not finite"):
        context.guard.refuse_bad_scores()


# -------------------------------------------------------------------------------------------- inputs changed in place
def zeroed(context: MaskingContext) -> None:
    context.images.zero_()


def centred(context: MaskingContext) -> None:
    images = context.images
    images -= images.mean()


def through_a_view(context: MaskingContext) -> None:
    context.images[0, 0].unflatten(0, (4, -1)).mul_(2)


def detached(context: MaskingContext) -> None:
    context.images.detach().clamp_(0, 1)


def written_into(context: MaskingContext) -> None:
    torch.add(context.images, 1, out=context.images)


def in_inference_mode(context: MaskingContext) -> None:
    with torch.inference_mode():
        context.images.flatten(1).add_(1)


def replaced(context: MaskingContext) -> None:
    context.images.data = torch.zeros_like(context.images)


def labels(context: MaskingContext) -> None:
    context.labels.fill_(0)


def index(context: MaskingContext) -> None:
    context.index[0] = 3


def extras(context: MaskingContext) -> None:
    context.extras["parts"].neg_()


WAYS = [zeroed, centred, through_a_view, detached, written_into, in_inference_mode, replaced, labels, index, extras]


def breaking(where: str, way: Callable[[MaskingContext], None], learns: str = "no") -> Any:
    """A masker that changes an input in one of its methods."""

    @define
    class Breaking(Learning if learns != "no" else Plain):
        name = "breaking"
        learning = learns
        how: str = "nan"
        steps: tuple[int, ...] = ()

        def scores(self, context: MaskingContext) -> Tensor:
            if where == "scores":
                way(context)
            return super().scores(context)

        def mask(self, context: MaskingContext) -> Mask:
            mask = super().mask(context)
            if where == "mask":
                way(context)
            return mask

        def soft_mask(self, context: MaskingContext) -> Mask:
            mask = super().soft_mask(context)
            if where == "soft_mask":
                way(context)
            return mask

        def loss(self, context: MaskingContext, mask: Mask, outcome: Outcome) -> Tensor:
            if where == "loss":
                way(context)
            return super().loss(context, mask, outcome)

        def after_step(self, context: MaskingContext, mask: Mask, outcome: Outcome) -> None:
            if where == "after_step":
                way(context)

    return Breaking


def full_batches(steps: int) -> Any:
    for batch in random_batches(steps):
        yield attrs.evolve(batch, labels=torch.arange(6), extras={"parts": torch.ones(6, 2)})


def refused(session: Any, key: str, who: str = "strategy 'breaking'") -> None:
    with pytest.raises(ContractError, match=rf"{who} \(.*\) changed context\.{key}.* in place.*clone"):
        list(train(session, full_batches(2)))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("way", WAYS)
def test_an_input_changed_in_place_is_refused_before_anything_is_learned(way: Callable[[MaskingContext], None]):
    session = session_with([breaking("scores", way)], "breaking")
    before = state_of(session.objective)
    refused(session, way.__name__ if way in (labels, index, extras) else "images")
    assert same_state(session.objective, before)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("where", "learns"),
    [
        ("mask", "no"),
        ("loss", "joint"),
        ("loss", "alternate"),
        ("scores", "alternate"),
        ("soft_mask", "alternate"),
        ("after_step", "no"),
        ("after_step", "alternate"),
    ],
)
def test_whichever_of_its_methods_a_masker_changes_an_input_in(where: str, learns: str):
    refused(session_with([breaking(where, centred, learns)], "breaking"), "images")


@pytest.mark.parametrize(("kind", "where"), [("mix", "scores"), ("union", "after_step"), ("switch", "scores")])
def test_a_part_that_changes_an_input_is_named(kind: str, where: str):
    cls = breaking(where, zeroed)
    del cls.mask  # a part has none of its own
    refused(session_with([cls], {**mixed(kind, "breaking"), "parts": ["breaking", "random"]}), "images")


def test_an_objective_that_changes_an_input_is_named():
    session = tiny_session()
    session.objective.register_forward_pre_hook(lambda module, given: (given[0].mul_(2), *given[1:]))
    refused(session, "images", "objective 'reconstruct'")


@pytest.mark.slow
def test_a_masker_may_do_with_a_copy_what_it_likes():
    @define
    class Careful(Strategy):
        name = "careful"

        def scores(self, context: MaskingContext) -> Tensor:
            images = context.images.clone()
            images -= images.mean()
            context.index.clone().fill_(0)
            return images.flatten(1)[:, : context.patches].contiguous()

    session = session_with([Careful], "careful")
    assert [line["skipped"] for line in train(session, full_batches(2))] == [0, 0]


@pytest.mark.parametrize("values", [0.0, math.nan])
def test_images_made_in_inference_mode_are_watched_too(values: float):
    with torch.inference_mode():
        images = random_images()
        images[0, 0, 0, 0] = values
        context = MaskingContext.of(OBJECTIVE, images, 0.5, step=0)
        strategy_of("random").mask(context)
        with pytest.raises(ContractError, match=r"changed context\.images in place"):
            breaking("scores", centred)().mask(context)


def test_each_context_begins_with_the_inputs_as_they_are():
    images, masker = random_images(), strategy_of("random")
    for step in range(2):  # a buffer that a loop of one's own fills anew for each batch
        images.copy_(random_images(seed=step))
        masker.mask(MaskingContext.of(OBJECTIVE, images, 0.5, step=step))


def test_both_steps_of_a_strategy_are_watched():
    session = tiny_session("clmae")
    context = look(session, next(random_batches(1)))
    ModelStep(session.objective, session.strategy)(context)
    LearnerStep(session.strategy)(context)
    assert context.guard.bad_scores == {"clmae": 0}


# ---------------------------------------------------------------------------------------------------------- evaluators
def measured(encoder: WholeImages, split: Any, evaluator: Callable[[Tensor, Tensor], object]) -> None:
    """Let an evaluator have the features and labels, as a run does."""
    with encoder.reading():
        evaluator(*encoder.features(split))


@pytest.mark.parametrize("what", ["features", "labels"])
def test_an_evaluator_that_changes_what_the_next_is_given_is_told_and_spoils_nothing(what: str):
    split = noise_images(6, labelled=True)
    encoder = WholeImages(tiny_session().objective.backbone, split, (32, 32))
    seen: list[Tensor] = []

    def careless(features: Tensor, labels: Tensor) -> None:
        (features if what == "features" else labels).sub_(1)

    with encoder.remembering():
        measured(encoder, split, lambda features, labels: seen.extend([features.clone(), labels.clone()]))
        with pytest.raises(ContractError, match=f"changed the {what} in place"):
            measured(encoder, split, careless)
        measured(encoder, split, lambda features, labels: seen.extend([features, labels]))
    assert seen[0].equal(seen[2])
    assert seen[1].equal(seen[3])


def test_an_evaluators_own_failure_is_not_hidden_by_what_it_changed():
    split = noise_images(6, labelled=True)
    encoder = WholeImages(tiny_session().objective.backbone, split, (32, 32))
    with encoder.remembering(), pytest.raises(ZeroDivisionError):
        measured(encoder, split, lambda features, labels: labels.zero_().sum().item() / 0)


# ------------------------------------------------------------------------------------------------------- nobody waits
class Reads(TorchDispatchMode):
    """Counts the moments at which a value is read from the device."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(options or {}))


def test_nothing_is_read_from_the_device_to_notice_either():
    session = tiny_session()
    context = look(session, next(random_batches(1)))
    with Reads() as reads:
        context.guard.count("masker", context.noise())
        context.guard.refuse_changed("strategy", session.strategy)
        bad_scores([context])["masker/bad_scores"] + doubt([context])
    assert reads.count == 0
    with reads:
        assert not context.guard.doubt().item()
    assert reads.count == 1
