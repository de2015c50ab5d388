"""What the README and the recipes say is so."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import torch
from helpers import noise_images, random_images, tiny_objective

from maskzoo import MaskingContext, Recipe, Registry
from maskzoo.build import build
from maskzoo.cli import main
from maskzoo.defaults import packaged
from maskzoo.flags import changed
from maskzoo.meanings import options_of
from maskzoo.recipe import read
from maskzoo.show import known_keys

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").glob("*.toml")])
REGISTRY = Registry()
# Files and folders that a page speaks of as its reader's.
THEIRS = re.compile(r"photos|flowers|imagenet|published|table|runs|decays|with-published|encoder|FOLDER|RUN|OUT|\$")


def test_the_readmes_plugin_is_a_plugin():
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "hookimpl" in block]
    assert len(code.splitlines()) <= 22
    namespace: dict = {}
    exec(code, namespace)
    (cls,) = namespace["maskzoo_strategies"]()
    objective, images = tiny_objective(), random_images()
    mask = cls().mask(MaskingContext.of(objective, images, 0.5, step=0))
    darkness = -torch.nn.functional.avg_pool2d(images.mean(dim=1, keepdim=True), 4).flatten(1)
    assert torch.equal(mask.hidden, darkness >= darkness.sort(dim=1, descending=True).values[:, 31:32])


def test_the_readmes_library_example_runs_as_printed():
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "MaskingContext.stream" in block]
    namespace: dict = {}
    exec(code, namespace)
    assert namespace["contexts"].step == 2
    assert namespace["mask"].count == 12
    assert namespace["outcome"].loss.isfinite()
    assert all(weight.grad is not None for weight in namespace["objective"].parameters() if weight.requires_grad)


@pytest.mark.parametrize("kind", ["strategy", "schedule"])
def test_the_readme_names_every_built_in(kind: str):
    missing = [name for name in Registry().classes(kind) if f"`{name}`" not in README]
    assert not missing


def test_every_file_that_the_readme_points_to_is_there():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.stem)
@pytest.mark.sampled(1)
def test_every_recipe_builds(path: Path):
    text = path.read_text()
    command = rf"maskzoo (train|compare .*--recipe) recipes/{re.escape(path.name)}"
    assert re.search(command, text), "a recipe says how to run it"
    recipe = Recipe.from_plain(read(path))
    session = build(recipe, noise_images(labelled=True), Registry(), steps_in_epoch=3)
    assert session.steps > 0


def test_the_readmes_composite_builds():
    (text,) = [block for block in re.findall(r"```toml\n(.*?)```", README, re.S) if "[masking]" in block]
    recipe = Recipe.from_plain({**packaged("digits"), **tomllib.loads(text)})
    build(recipe, noise_images(), Registry(), steps_in_epoch=3)


# ---------------------------------------------------------------------------------------- commands, options, and names
def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command of MaskZoo that a page shows, behind `maskzoo`."""
    for line in page.read_text().splitlines():
        if match := re.match(r"(?:\s*[$#]\s+|.*-m )(?:torchrun .*-m )?maskzoo ([a-z]+ .*|[a-z]+)$", line):
            yield shlex.split(match[1], comments=True)
    for inline in re.findall(r"`maskzoo ([^`]+)`", page.read_text()):
        yield shlex.split(inline)


def asked(command: click.Command, words: list[str]) -> dict[str, object]:
    """What a command line gives to each parameter; click's error for an option that there is not."""
    context = command.context_class(command, info_name=command.name)
    given, _, _ = command.make_parser(context).parse_args(args=list(words))
    return given


SHOWN = [(page, words) for page in PAGES for words in commands(page)]


def test_the_pages_show_commands():
    assert len(SHOWN) > 40


@pytest.mark.parametrize(("page", "words"), SHOWN, ids=lambda value: value.name if isinstance(value, Path) else "")
def test_every_command_that_is_shown_has_such_options_and_names(page: Path, words: list[str]):
    command = main.commands.get(words[0])
    assert command is not None, f"{page.name}: maskzoo {words[0]}"
    given = asked(command, [word for word in words[1:] if word not in ("[--schedule", "S]")])
    for option, kind in (("masker", "strategy"), ("objective", "objective")):
        name = given.get(option)
        assert name is None or name == "M" or name == "dark" or name in REGISTRY.classes(kind), (page.name, words)
    for setting in given.get("settings") or ():
        if words[0] in ("train", "cost", "compare") and not THEIRS.search(setting):
            changed(None, REGISTRY, (setting,))
    for text in re.findall(r"recipes/[\w.-]+", " ".join(words)):
        assert (ROOT / text).exists(), (page.name, text)


@pytest.mark.parametrize("page", [page for page in PAGES if page.suffix == ".md"], ids=lambda page: page.name)
def test_every_path_and_key_in_backticks_is_there(page: Path):
    quoted = re.findall(r"`([^`\n]+)`", page.read_text())
    keys = {*known_keys(), *(key.split(".")[0] for key in known_keys())}
    for text in quoted:
        if re.fullmatch(r"(maskzoo|tests|docs|recipes|benchmarks|plugins)/[\w/.*-]+", text):
            assert list(ROOT.glob(text.rstrip("/"))), f"{page.name}: {text}"
        if re.fullmatch(r"(train|optimizer|masking|augment|teacher)\.\w+", text):
            assert text in keys or (ROOT / "maskzoo" / text).exists(), f"{page.name}: {text}"
        if re.fullmatch(r"make [\w-]+", text):
            assert re.search(rf"^{text.split()[1]}:", (ROOT / "Makefile").read_text(), re.M), f"{page.name}: {text}"
        if match := re.fullmatch(r"(backbone|objective|data)\.(\w+)( = .*)?", text):
            kind = "dataset" if match[1] == "data" else match[1]
            known = {option.name for cls in REGISTRY.classes(kind).values() for option in options_of(cls)}
            assert match[2] in known | {"use"}, f"{page.name}: {text}"


def test_every_file_of_the_floor_plan_is_there():
    plan = (ROOT / "docs" / "design.md").read_text().split("## The floor plan")[1].split("```")[1]
    core, plugins = plan.split("\nplugins/")
    named = re.findall(r"\b(\w+\.py)\b", core)
    assert len(named) > 25
    assert not [name for name in named if not (ROOT / "maskzoo" / name).exists()]
    listed = set(re.findall(r"maskzoo_\w+\.py", plugins.split("\n")[0]))
    assert listed == {path.name for path in (ROOT / "plugins").glob("maskzoo_*.py")}
    for path in (ROOT / "maskzoo").iterdir():
        if path.is_dir() and not path.name.startswith("_"):
            assert f"  {path.name}/" in core, path.name


def table(page: str, title: str) -> dict[str, list[str]]:
    """A table of a page below a title, or with such a head: {name: the other cells}; a cell may name several."""
    lines = (ROOT / page).read_text().split(title)[1].split("\n\n")
    (body,) = [block for block in lines[:6] if block.lstrip().startswith("|") or "\n|" in block][:1]
    rows = {}
    for line in body.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        for name in re.findall(r"`([\w-]+)`", cells[0]):
            rows[name] = cells[1:]
    return rows


@pytest.mark.parametrize(
    ("page", "title", "kind"),
    [
        ("README.md", "### Maskers", "strategy"),
        ("README.md", "### Objectives", "objective"),
        ("README.md", "### Schedules", "schedule"),
        ("docs/comparing.md", "| evaluator | measures", "evaluator"),
    ],
)
def test_a_table_names_exactly_what_comes_with_maskzoo(page: str, title: str, kind: str):
    ours = {name for name in REGISTRY.classes(kind) if (owner := REGISTRY.owner(kind, name)) is None or owner.ours}
    assert set(table(page, title)) == ours


def test_the_table_of_maskers_says_which_follow_a_curriculum_and_which_learn():
    for name, (_, curriculum, *learns) in table("README.md", "### Maskers").items():
        cls = REGISTRY.classes("strategy")[name]
        composed = any(option.name == "parts" for option in options_of(cls))
        assert curriculum.startswith("none") == (cls.default_curriculum is None and not composed), name
        if not composed:
            assert bool(learns and learns[0].strip("| ")) == (cls.learning != "no"), name


def test_what_a_page_says_of_the_default_evaluation_is_so():
    said = re.findall(r"`evaluation = (\[[^`]*\])`", (ROOT / "docs" / "comparing.md").read_text())
    assert said
    assert all(tuple(tomllib.loads(f"x = {one}")["x"]) == Recipe().evaluation for one in said)


@pytest.mark.slow
def test_the_readmes_plugin_installs_beside_another_file(tmp_path: Path):
    pytest.importorskip("setuptools")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "hookimpl" in block]
    (project,) = [block for block in re.findall(r"```toml\n(.*?)```", README, re.S) if "entry-points" in block]
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "maskzoo_dark.py").write_text(code)
    (source / "run_experiment.py").write_text("print('mine')\n")
    (source / "pyproject.toml").write_text(project)
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(target)]
    pip = [sys.executable, "-m", "pip", "install", *options, str(source)]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in target.glob("*.py")] == ["maskzoo_dark.py"]
    (points,) = target.glob("*.dist-info/entry_points.txt")
    assert "dark = maskzoo_dark" in points.read_text()
