"""Whose bug an exception is: a plugin's with its distribution, version, file and line, or ours."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner
from dark import HEAD, registry_with

from maskzoo import PluginError, RecipeError, Registry
from maskzoo.blame import at_fault, blaming, distribution_of, message_of, owner_of, plugin_error
from maskzoo.cli import Commands

DARK = """
class Bad(Strategy):
    name = "dark"

    def scores(self, context):
        return context.image
"""


def raised_by(call) -> BaseException:
    try:
        call()
    except Exception as problem:
        return problem
    raise AssertionError("nothing was raised")


def test_what_a_plugin_raises_is_its_own_with_version_file_and_line():
    registry, module = registry_with(DARK)
    strategy = registry.find("strategy", "dark")()
    place = f"maskzoo-dark 0.1 ({module.__name__}.py:"
    problem = raised_by(lambda: strategy.scores(None))
    line = HEAD.lstrip().count("\n") + 6
    assert at_fault(problem) == f"{place}{line})"
    error = plugin_error(problem, "recipe.masking.strategy")
    assert str(error).startswith(f"recipe.masking.strategy: {place}{line}): AttributeError: ")
    assert owner_of(strategy).startswith(place)
    assert distribution_of(strategy) == "maskzoo-dark 0.1"


def test_what_torch_raises_for_a_plugin_is_the_plugins():
    registry, _ = registry_with(DARK.replace("context.image", "torch.zeros(2) @ torch.zeros(3)"))
    problem = raised_by(lambda: registry.find("strategy", "dark")().scores(None))
    assert at_fault(problem).startswith("maskzoo-dark 0.1 (")


def test_what_ours_raise_is_nobodys_fault():
    registry = Registry()
    problem = raised_by(lambda: registry.find("strategy", "attmask")().scores(None))
    assert at_fault(problem) is None
    assert plugin_error(problem) is None
    assert distribution_of(registry.find("strategy", "attmask")) is None


def test_a_message_to_the_user_stays_one():
    registry, _ = registry_with(DARK.replace("return context.image", "raise RecipeError('too dark')"))
    strategy = registry.find("strategy", "dark")()
    with pytest.raises(RecipeError, match=r"^too dark$"), blaming():
        strategy.scores(None)


def test_a_bug_in_a_worker_is_found_in_the_text_of_its_traceback():
    registry, module = registry_with(DARK)
    registry.find("strategy", "dark")
    text = (
        "Caught KeyError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        f'  File "{module.__file__}", line 7, in x\nKeyError: 3'
    )
    assert at_fault(RuntimeError(text)) == f"maskzoo-dark 0.1 ({module.__name__}.py:7)"
    assert str(plugin_error(RuntimeError(text))).endswith("KeyError: 3")


@click.group(cls=Commands)
def program() -> None:
    """A program like ours."""


def outcome_of(call, monkeypatch, traceback: str = ""):
    monkeypatch.setenv("MASKZOO_TRACEBACK", traceback)
    program.command(name="go")(call)
    return CliRunner().invoke(program, ["go"])


def test_the_command_line_says_a_plugins_bug_in_one_line(monkeypatch):
    registry, _ = registry_with(DARK)
    strategy = registry.find("strategy", "dark")()
    result = outcome_of(lambda: strategy.scores(None), monkeypatch)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert "maskzoo-dark 0.1" in result.output
    assert "MASKZOO_TRACEBACK" in result.output
    assert "Traceback" in outcome_of(lambda: strategy.scores(None), monkeypatch, traceback="1").output


def test_a_bug_of_ours_keeps_its_traceback_and_asks_for_a_report(monkeypatch):
    result = outcome_of(lambda: Registry().find("strategy", "attmask")().scores(None), monkeypatch)
    assert isinstance(result.exception, AttributeError)
    assert "please report" in "".join(result.exception.__notes__)


def test_a_mistake_of_the_user_is_no_bug():
    assert message_of(RecipeError("recipe.x: no")) == "recipe.x: no"
    assert "MASKZOO_TRACEBACK" not in message_of(PluginError("two of one name"))
