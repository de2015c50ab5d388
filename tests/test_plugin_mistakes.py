"""A plugin's mistakes, each told before anything is measured: in one message, with version, file and line."""

# ruff: noqa: E501  (a line for each mistake)
from __future__ import annotations

import copy
import functools
import threading
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
from dark import registry_with
from helpers import noise_images, random_batches, same_state, state_of, tiny_recipe

from maskzoo import ContractError, DataError, MaskZooError, RecipeError, Registry
from maskzoo.build import build
from maskzoo.cost import flops_per_image
from maskzoo.gallery import whole_images
from maskzoo.recipe import make
from maskzoo.train import train

RANKED = """
@define
class Bad(RankedStrategy):
    name = "dark"

    def hardness(self, context):
        hardness = context.noise(name="hardness")
        {body}
"""
PLAIN = """
@define
class Bad(Strategy):
    name = "dark"

    def scores(self, context):
        return context.noise()

{body}
"""
LEARNER = """
@define
class Bad(Strategy):
    name = "dark"
    learning = "{learning}"

    def setup(self, objective):
        self.net = torch.nn.Linear(objective.backbone.token_dim, 1)

    def scores(self, context):
        return self.net(context.student.backbone.tokens(context.images))[..., 0].sigmoid().float()

    def loss(self, context, mask, outcome):
        {body}
"""


def ranked(body: str) -> str:
    return RANKED.format(body=body)


def plain(body: str) -> str:
    return PLAIN.format(body="\n".join(f"    {line}" for line in body.split("\n")))


def learner(body: str, learning: str = "alternate") -> str:
    return LEARNER.format(body=body, learning=learning)


MISTAKES = {  # source -> words that the message has besides the plugin's distribution, version, file and line
    "hardness of nothing": (ranked("return None"), "hardness of type NoneType"),
    "hardness of numpy": (ranked("return hardness.numpy()"), "hardness of type ndarray"),
    "hardness of another shape": (ranked("return hardness[:, 1:]"), "[2, 63]"),
    "scores of numpy": (plain("def scores(self, context):\n    return context.noise().numpy()"), "ndarray"),
    "scores in float64": (plain("def scores(self, context):\n    return context.noise().double()"), "float64"),
    "scores of an own mistake": (plain("def scores(self, context):\n    return context.image"), "AttributeError"),
    "an undeclared teacher": (ranked("return context.teacher.backbone"), "declare needs = frozenset({'teacher'})"),
    "undeclared labels": (ranked("return hardness + context.labels.view(-1, 1)"), "frozenset({'labels'})"),
    "a count that is a float": (plain("def count(self, ratio, patches):\n    return ratio * patches"), "whole number"),
    "a count that is nothing": (plain("def count(self, ratio, patches):\n    return None"), "whole number"),
    "a count that raises": (plain("def count(self, ratio, patches):\n    return ratio.x"), "AttributeError"),
    "a tensor for a mask": (plain("def mask(self, context):\n    return context.noise() > 0.5"), "maskzoo.Mask"),
    "nothing for a mask": (plain("def mask(self, context):\n    pass"), "maskzoo.Mask"),
    "scores for a mask": (plain("def mask(self, context):\n    return self.scores(context).numpy()"), "maskzoo.Mask"),
    "a mask of too few": (plain("def mask(self, context):\n    return Mask.hide_top(context.noise(), 3)"), "hid 3 patches"),
    "a mask of one image": (
        plain("def mask(self, context):\n    return Mask.hide_top(context.noise()[:1], context.count)"),
        "[1, 64]",
    ),
    "scores that are no chances": (learner("return mask.scores.mean()").replace(".sigmoid()", ".mul(100)"), "in [0, 1]"),
    "a loss of nothing": (learner("pass"), "nothing (None)"),
    "a loss that is a float": (learner("return 1.0"), "a float"),
    "a loss that is a vector": (learner("return mask.scores.mean(1)"), "its mean"),
    "a loss of numpy": (learner("return mask.scores.detach().mean().numpy()"), "ndarray"),
    "a loss without a graph": (learner("return mask.scores.mean().detach()"), "without a graph"),
    "a loss of whole numbers": (learner("return mask.hidden.sum()"), "floating-point"),
    "a loss of something else": (learner("return context.student.backbone.tokens(context.images).mean()"), "parameters"),
    "a loss that raises": (learner("return mask.score"), "AttributeError"),
    "a metric that is a float": (learner("outcome.metrics['a'] = 1.0\n        return mask.scores.mean()"), "metrics['a']"),
    "a joint loss of nothing": (learner("pass", "joint"), "nothing (None)"),
    "a joint loss that is a vector": (learner("return mask.scores.mean(1)", "joint"), "its mean"),
    "a joint loss of nothing of its own": (
        learner("return outcome.loss * 0", "joint").replace(".float()", ".float().detach()"),
        "never learn",
    ),
    "a loss of other values": (learner("return 0").replace("loss(self, context, mask, outcome)", "loss(self, outcome)"), "loss(context"),
    "no loss": (learner("pass").split("    def loss")[0], "has no loss()"),
    "a misspelt loss": (learner("return mask.scores.mean()").replace("def loss", "def losses"), "is losses() meant?"),
    "no hardness": ("@define\nclass Bad(RankedStrategy):\n    name = 'dark'\n", "has no hardness()"),
    "a misspelt hardness": (ranked("return hardness").replace("def hardness", "def hardnes"), "is hardnes() meant?"),
    "no scores": ("@define\nclass Bad(Strategy):\n    name = 'dark'\n", "has no scores()"),
    "a misspelt way of learning": (learner("return mask.scores.mean()", "alternating"), "did you mean 'alternate'?"),
    "learning that is true": (learner("pass").replace('learning = "alternate"', "learning = True"), "alternate"),
    "a misspelt need": (plain("needs = frozenset({'atention'})"), "did you mean 'attention'?"),
    "a need that is a text": (plain("needs = 'teacher'"), "frozenset({'teacher'})"),
    "needs in a list": (plain("needs = ['teacher']"), "frozenset({'teacher'})"),
    "a need that is set too late": (plain("def __attrs_post_init__(self):\n    self.needs = 'teacher'"), "frozenset"),
    "attrs.define": (plain("x: int = 1").replace("@define", "@attrs.define"), "maskzoo.define"),
    "dataclass": (plain("x: int = 1").replace("@define", "@dataclasses.dataclass"), "maskzoo.define"),
    "a frozen dataclass": (plain("x: int = 1").replace("@define", "@dataclasses.dataclass(eq=False)"), "maskzoo.define"),
    "no base class": ("class Bad:\n    name = 'dark'\n    def scores(self, context):\n        return 1\n", "maskzoo.Strategy"),
    "a module of its own": ("class Bad(torch.nn.Module):\n    name = 'dark'\n    def scores(self, context):\n        return 1\n", "maskzoo.Strategy"),
    "a setup that raises": (plain("def setup(self, objective):\n    self.x = objective.bacbone"), "AttributeError"),
    "a setup that unpacks too much": (plain("def setup(self, objective):\n    a, b, c = objective.backbone.grid"), "ValueError"),
    "a frozen class": (plain("x: int = 1").replace("@define", "@attrs.frozen"), "maskzoo.define"),
    "a count below none": (plain("def count(self, ratio, patches):\n    return -1"), "would hide -1"),
    "a count above all": (plain("def count(self, ratio, patches):\n    return patches + 1"), "would hide 65"),
    "a mask of scores in three dimensions": (
        plain("def mask(self, context):\n    return Mask.hide_top(torch.rand(2, 3, 4), 3)"),
        "[2, 3, 4]",
    ),
    "a learner of nothing": (
        learner("return outcome.loss").replace("torch.nn.Linear(objective.backbone.token_dim, 1)", "abs"),
        "no parameter to train",
    ),
    "a lazy network": (learner("return mask.scores.mean()").replace("Linear(objective.backbone.token_dim,", "LazyLinear("), "lazy"),
    "no list of learners": (plain("def learners(self):\n    pass"), "from learners()"),
    "no list of the active": (plain("def active(self, context):\n    pass"), "from active()"),
    "an end of the program": (ranked("raise SystemExit(3)"), "SystemExit"),
    "a misspelt curriculum": (plain("default_curriculum = 'adversery'"), "did you mean 'adversary'?"),
    "a setup of no values": (plain("def setup(self):\n    pass"), "setup(objective)"),
}  # fmt: skip


def trial(dataset: Any):
    return functools.partial(whole_images, dataset)


def built(registry, strategy: Any = "dark", **sections: Any):
    dataset = noise_images()
    return build(tiny_recipe(strategy, **sections), dataset, registry, steps_in_epoch=4, trial=trial(dataset))


@pytest.mark.parametrize("kind", MISTAKES)
@pytest.mark.sampled(12)
def test_a_maskers_mistake_is_told_before_anything_is_measured(kind: str):
    source, words = MISTAKES[kind]
    registry, module = registry_with(source)
    with pytest.raises(MaskZooError) as caught:
        built(registry)
    message = str(caught.value)
    assert words in message
    assert f"maskzoo-dark 0.1 ({module.__name__}.py:" in message
    assert "\n" not in message


@pytest.mark.parametrize("kind", ["hardness of nothing", "a tensor for a mask", "a loss that is a vector", "no loss", "an undeclared teacher"])  # fmt: skip
@pytest.mark.sampled(1)
def test_cost_tells_the_same_mistakes(kind: str):
    source, words = MISTAKES[kind]
    with pytest.raises(MaskZooError) as caught:
        flops_per_image(tiny_recipe("dark", data="digits"), registry_with(source)[0])
    assert words in str(caught.value)
    assert "maskzoo-dark 0.1 (" in str(caught.value)


def test_a_count_that_is_a_static_method_is_called_as_one():
    built(registry_with(plain("@staticmethod\ndef count(ratio, patches):\n    return int(ratio * patches)"))[0])


@pytest.mark.slow
def test_a_mistake_in_a_late_part_of_a_switch_is_told_too():
    registry, _ = registry_with(ranked("return None"))
    with pytest.raises(MaskZooError, match="hardness of type NoneType"):
        built(registry, {"use": "switch", "parts": ["random", "dark"], "at": [0.5]})


def test_a_mistake_that_a_neutral_beginning_hides_is_told_too():
    registry, _ = registry_with(ranked("return None"))
    with pytest.raises(MaskZooError, match="hardness of type NoneType"):
        built(registry, masking={"curriculum": "linear:0:-0.5"})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("learning", ["joint", "alternate"])
def test_a_sound_learner_passes(learning: str, precision: str):
    registry, _ = registry_with(learner("return (context.factor or 1.0) * mask.scores.square().mean()", learning))
    built(registry, train={"steps": 4, "precision": precision})


@pytest.mark.slow
def test_a_masker_that_makes_its_tensors_on_the_cpu_can_be_counted():
    registry, _ = registry_with(
        plain("def scores(self, context):\n    return torch.zeros(context.images.shape[0], context.patches)")
    )
    costs = flops_per_image(tiny_recipe("dark", data="digits"), registry)
    assert costs.device == "cpu"
    assert costs.model > 0


OBJECTIVE = """
class Bad(torch.nn.Module):
    name = "dark"
    provides = needs = frozenset()
    default_ratio, least_hidden = 0.75, 1

    def setup(self, backbone):
        self.backbone = backbone

    def forward(self, images, mask, labels=None, teacher=None):
        latent = self.backbone(images, mask)
        {body}

    def predict(self, images):
        return None

    def picture(self, images, mask):
        return None
"""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return latent.mean()", "maskzoo.Outcome"),
        ("return Outcome(loss=latent.mean((1, 2)), latent=latent)", "its mean"),
        ("return Outcome(loss=latent.mean().detach(), latent=latent)", "without a graph"),
        ("return Outcome(loss=latent.mean().item(), latent=latent)", "a float"),
        ("return teacher.backbone", "frozenset({'teacher'})"),
        ("return latent.x", "AttributeError"),
    ],
)
def test_an_objectives_mistake_is_told_before_anything_is_measured(body: str, words: str):
    registry, module = registry_with(OBJECTIVE.format(body=body), objectives="Bad")
    with pytest.raises(MaskZooError) as caught:
        built(registry, "random", objective="dark")
    assert words in str(caught.value)
    assert f"maskzoo-dark 0.1 ({module.__name__}.py:" in str(caught.value)


# ------------------------------------------------------------------------------------------------------ leaves no trace
NOSY = """
@define
class Bad(Strategy):
    name = "dark"
    learning = "alternate"

    def setup(self, objective):
        self.net = torch.nn.Sequential(torch.nn.BatchNorm1d(objective.backbone.token_dim), torch.nn.Dropout(0.1))
        self.out = torch.nn.Linear(objective.backbone.token_dim, 1)
        self.asked, self.steps = [], 0
        {more}

    def scores(self, context):
        tokens = context.student.backbone.tokens(context.images)
        self.asked.append(context.images.shape[0])
        self.steps += 1
        np.random.rand()
        torch.rand(1)
        return self.out(self.net(tokens.flatten(0, 1))).view(tokens.shape[:2]).sigmoid().float()

    def loss(self, context, mask, outcome):
        return mask.scores.square().mean()

    def after_step(self, context, mask, outcome):
        self.asked.append("after")
"""


@pytest.mark.parametrize("more", ["", "self.lock = threading.Lock()"])
@pytest.mark.sampled(1)
def test_trying_out_leaves_no_trace(more: str):
    source = "import threading\n" + NOSY.format(more=more)
    registry, _ = registry_with(source)
    dataset = noise_images()
    recipe = tiny_recipe("dark")

    def session_of(**options: Any):
        return build(recipe, dataset, registry, steps_in_epoch=4, **options)

    torch.manual_seed(5)
    without = session_of()
    expected = torch.rand(3)
    torch.manual_seed(5)
    session = session_of(trial=trial(dataset))
    assert torch.equal(torch.rand(3), expected)
    for tried, other in ((session.objective, without.objective), (session.strategy, without.strategy)):
        assert same_state(tried, state_of(other))
        assert all(one.grad is None for one in tried.parameters())
        assert tried.training == other.training
    if not more:
        assert session.strategy.asked == []
    assert session.strategy.steps == 0
    figures = [list(train(one, random_batches(2, count=6))) for one in (without, session)]
    assert figures[0] == figures[1]


@pytest.mark.parametrize("strategy", ["random", "attmask", {"use": "clmae", "depth": 1}, {"use": "mix", "parts": ["random", "attmask"]}])  # fmt: skip
@pytest.mark.sampled(1)
def test_a_run_is_the_same_to_the_bit_whether_or_not_it_was_tried_out(strategy: Any):
    dataset = noise_images()
    registry = registry_with("class Bad(Strategy):\n    name = 'dark'\n")[0]
    recipe = tiny_recipe(strategy)
    sessions = [
        build(recipe, dataset, registry, steps_in_epoch=4, **options) for options in ({}, {"trial": trial(dataset)})
    ]
    figures = [list(train(session, random_batches(3))) for session in sessions]
    assert figures[0] == figures[1]
    assert same_state(sessions[1].objective, state_of(sessions[0].objective))


def test_a_lock_cannot_be_copied():  # else the case above with a lock would show nothing
    with pytest.raises(TypeError):
        copy.deepcopy(threading.Lock())


# ------------------------------------------------------------------------------------------------------ names and hooks
@pytest.mark.parametrize(
    "name",
    [
        "My Masker+1",
        "a,b",
        "a:b",
        "a@0.5",
        "a/b",
        "../x",
        "-x",
        "5",
        "1e3",
        "true",
        "nan",
        "ä",
        "x" * 80,
        "a.",
        ".hidden",
    ],
)
def test_a_name_that_cannot_be_typed_is_refused_at_load(name: str):
    registry, _ = registry_with(plain("pass").replace('"dark"', repr(name)))
    (sentence,) = registry.broken()
    assert "cannot be used on the command line" in sentence
    assert "maskzoo-dark 0.1" in sentence


@pytest.mark.parametrize("name", ["dark", "Dark", "dark-2", "3d_block", "a.b", "x"])
def test_a_name_that_can_be_typed_is_taken(name: str):
    registry, _ = registry_with(plain("pass").replace('"dark"', repr(name)))
    assert registry.find("strategy", name).name == name


@pytest.mark.parametrize("hook", ["schedules", "backbones", "objectives", "datasets", "evaluators", "loggers"])
def test_a_masker_from_another_hook_is_refused_at_load(hook: str):
    registry, _ = registry_with(plain("pass"), **{hook: "Bad"})
    (sentence,) = registry.broken()
    assert f"maskzoo_{hook}() returned Bad, which is a strategy" in sentence


def test_a_misspelt_hook_is_met_with_the_right_one():
    registry, _ = registry_with(plain("pass"), strategys="Bad")
    (sentence,) = registry.broken()
    assert "unknown hook 'maskzoo_strategys'; did you mean 'maskzoo_strategies'?" in sentence


def test_an_evaluator_and_a_logger_of_other_values_are_told():
    source = """
class Bad:
    name = "dark"
    def __call__(self, encoder):
        yield "a", 1.0

class Log:
    name = "log"
    def start(self, folder, recipe, step): ...
    def log(self, figures): ...
    def image(self, name, path, step): ...
    def close(self, failed=False): ...
"""
    registry, _ = registry_with(source, evaluators="Bad", loggers="Log")
    for kind, name, words in (("evaluator", "dark", "(encoder, dataset)"), ("logger", "log", "log(figures, step)")):
        with pytest.raises(MaskZooError) as caught:
            make(registry, kind, name, "here")
        assert words in str(caught.value)
    assert len(registry.faulty()) == 2


def test_an_option_without_define_is_a_doubt():
    registry, _ = registry_with(plain("depth: int = 3").replace("@define", ""))
    (sentence,) = registry.faulty()
    assert "'depth'" in sentence
    assert "maskzoo.define" in sentence
    built(registry)  # and it trains
    with pytest.raises(RecipeError):
        make(registry, "strategy", {"use": "dark", "depth": 4}, "here")


def test_a_mistake_while_training_is_told_with_the_plugin():
    registry, _ = registry_with(ranked("return None if context.step else hardness"))
    session = built(registry)
    with pytest.raises(ContractError, match=r"maskzoo-dark 0\.1"):
        list(train(session, random_batches(2)))
    assert not session.moved
    assert session.step == 1


@pytest.mark.slow
def test_what_looks_at_side_data_is_no_mistake_where_the_data_are_not_there():
    registry, _ = registry_with(ranked("return context.extras['parts']"))
    with pytest.raises(DataError, match="parts"):
        flops_per_image(tiny_recipe("dark", data="digits"), registry)


def test_an_entry_point_with_a_hyphen_is_told_as_such():
    (sentence,) = Registry([EntryPoint("dark", "maskzoo-dark", "maskzoo")]).broken()
    assert "'maskzoo-dark' is no module" in sentence
