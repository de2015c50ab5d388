"""What the README and the recipes say is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from helpers import noise_images, random_images, tiny_objective

from maskzoo import MaskingContext, Recipe, Registry
from maskzoo.build import build
from maskzoo.recipe import read

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


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
@pytest.mark.sampled(3)
def test_every_recipe_builds(path: Path):
    text = path.read_text()
    command = rf"maskzoo (train|compare .*--recipe) recipes/{re.escape(path.name)}"
    assert re.search(command, text), "a recipe says how to run it"
    recipe = Recipe.from_plain(read(path))
    session = build(recipe, noise_images(labelled=True), Registry(), steps_in_epoch=3)
    assert session.steps > 0


def test_the_readmes_composite_builds():
    import tomllib

    (text,) = [block for block in re.findall(r"```toml\n(.*?)```", README, re.S) if "[masking]" in block]
    build(Recipe.from_plain(tomllib.loads(text)), noise_images(), Registry(), steps_in_epoch=3)
