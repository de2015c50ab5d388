"""Learners that never learn, keys without effect, names that two offer, code that changed: said, and kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from dark import registry_with
from helpers import noise_images, tiny_recipe
from test_plugin_mistakes import learner, plain
from test_registry import plugin as plugin_of
from test_registry import point

from maskzoo import Registry, Strategy
from maskzoo.build import build
from maskzoo.compare.readings import mixed, read_run
from maskzoo.doubts import doubts_of
from maskzoo.provenance import clashes, used
from maskzoo.sources import changes, source_of

LEARNS = "return (context.factor or 1.0) * mask.scores.square().mean()"


def doubts(source: str, strategy="dark", **sections) -> list[str]:
    registry, _ = registry_with(source)
    recipe = tiny_recipe(strategy, **sections)
    return doubts_of(build(recipe, noise_images(), registry, steps_in_epoch=4), recipe, registry)


def test_a_network_without_learning_is_told():
    (sentence,) = doubts(learner(LEARNS, "no"))
    assert "25 parameters and a loss()" in sentence
    assert "maskzoo-dark 0.1 (" in sentence
    (sentence,) = doubts(learner(LEARNS, "no"), {"use": "mix", "parts": ["random", "dark"]})
    assert "learning = 'no'" in sentence


@pytest.mark.slow
def test_a_learner_whose_factor_stays_zero_is_told():
    (sentence,) = doubts(learner("return context.factor * mask.scores.square().mean()"))
    assert "default_curriculum" in sentence
    assert doubts(learner("return mask.scores.square().mean()")) == []  # it does not look at the factor
    declared = learner(LEARNS).replace("learning =", "default_curriculum = 'adversary'\n    learning =")
    assert doubts(declared) == []


@pytest.mark.parametrize(
    ("masking", "key"), [({"optimizer": {"lr": 0.1}}, "masking.optimizer"), ({"strategy_every": 2}, "strategy_every")]
)
@pytest.mark.parametrize("strategy", ["dark", "random"])
@pytest.mark.sampled(1)
def test_keys_without_effect_are_told(strategy: str, masking: dict, key: str):
    source = learner("return mask.scores.square().mean()", "joint")
    (sentence,) = doubts(source, strategy, masking=masking)
    assert sentence.startswith(f"recipe.{'masking.' if '.' not in key else ''}{key} has no effect")
    assert doubts(source.replace("joint", "alternate"), "dark", masking=masking) == []


@pytest.mark.slow
def test_a_decay_without_a_teacher_is_told():
    (sentence,) = doubts(plain("pass"), "random", teacher={"decay": 0.5})
    assert sentence.startswith("recipe.teacher.decay has no effect")
    assert doubts(plain("pass"), "random") == []
    assert doubts(plain("pass"), "attmask", teacher={"decay": 0.5}) == []


@pytest.mark.parametrize("name", sorted(Registry().classes("strategy")))
def test_ours_raise_no_doubts(name: str):
    use = {"use": name, **({"parts": ["random", "attmask"]} if name in ("mix", "union", "switch") else {})}
    use |= {"at": [0.5]} if name == "switch" else {}
    assert doubts(plain("pass"), use) == []


def test_a_clash_with_a_builtin_name_is_told_of_the_names_that_are_used():
    class Mine(Strategy):
        name = "random"

        def scores(self, context):
            return context.noise()

    registry = Registry([*Registry()._points, point("mine", plugin_of(Mine), "maskzoo-mine", "3.1")])
    (sentence,) = clashes({"masking": {"strategy": {"use": "random"}}}, registry)
    assert "maskzoo-mine 3.1" in sentence
    assert "the built-in one is used" in sentence
    assert clashes({"masking": {"strategy": {"use": "block"}}}, registry) == []


def test_other_code_under_the_same_version_is_noticed(tmp_path: Path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "maskzoo_shady.py"
    file.write_text("x = 1\n")
    entry = {"kind": "strategy", "name": "shady", "distribution": "maskzoo-shady", "version": "0.1"}
    entry |= {"module": "maskzoo_shady", "source": source_of("maskzoo_shady", "maskzoo-shady")}
    assert changes({"used": [entry]}) == []
    file.write_text("x = 2\n")
    (clause,) = changes({"used": [entry]})
    assert "'maskzoo-shady' 0.1 has other code" in clause
    assert "maskzoo_shady" not in sys.modules  # nothing was imported
    for odd in ({}, {"used": 3}, {"used": [{"source": 1}]}, {"used": [{**entry, "source": ""}]}):
        assert changes(odd) in ([], [clause])


def test_what_was_used_carries_its_source():
    registry, module = registry_with(plain("pass"))
    (entry,) = used({"masking": {"strategy": {"use": "dark"}}}, registry)
    assert entry["module"] == module.__name__
    (ours,) = used({"masking": {"strategy": {"use": "random"}}}, registry)
    assert "source" not in ours


@pytest.mark.slow
def test_a_run_goes_on_with_other_code_and_says_so(tmp_path: Path, monkeypatch):
    from maskzoo import registry as registry_module
    from maskzoo.cli import main

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    code = "from maskzoo import *\nfrom maskzoo import Strategy, define, hookimpl\n" + plain("pass")
    code += "\n@hookimpl\ndef maskzoo_strategies():\n    return [Bad]\n"
    (tmp_path / "maskzoo_shady.py").write_text(code)
    import maskzoo_shady

    points = [*Registry()._points, point("shady", maskzoo_shady, "maskzoo-shady", "0.1")]
    monkeypatch.setattr(registry_module, "entry_points", lambda group: points)
    command = ["train", "--masker", "dark", "--set", "evaluation=[]", "--set", "train.pictures=0", "--out", "run"]
    command += ["--set", "train.checkpoint_steps=1", "--set", "train.workers=0", "--device", "cpu"]

    def go(*more: str) -> str:
        result = CliRunner().invoke(main, [*command, *more])
        assert result.exit_code == 0, result.output
        return result.output

    go("--set", "train.steps=2")
    (tmp_path / "run" / "checkpoints" / "step-00000002.pt").exists()
    (tmp_path / "maskzoo_shady.py").write_text(code + "\n# other\n")
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    newest.unlink()
    evaluation = tmp_path / "run" / "evaluation.json"
    evaluation.unlink(missing_ok=True)
    assert "has other code now" in " ".join(go("--set", "train.steps=2", "--resume").split())
    assert "has other code now" in (tmp_path / "run" / "warnings.txt").read_text()
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["changed"]
    assert any("has other code" in clause for clause in mixed(read_run(tmp_path / "run")))
