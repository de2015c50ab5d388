"""The wheel, and packages of other people, installed as they would install them."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PLUGINS = {path.stem for path in (ROOT / "plugins").glob("maskzoo_*.py")}
LIBRARIES = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
TWO_STEPS = ["--set", "train.steps=2", "--batch-size", "16", "--set", "evaluation=[]", "--set", "train.pictures=0"]


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command away from the checkout, on a wide terminal, and without what the environment would add."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    environment |= {
        "COLUMNS": "400",
        "OMP_NUM_THREADS": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
    }
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ------------------------------------------------------------------------------------------------------------ the wheel
@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    succeeded(
        run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder),
    )
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed in it, and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    options = ["--quiet", "--no-deps", "--no-index", "--target", folder]
    succeeded(run(sys.executable, "-m", "pip", "install", *options, wheel, cwd=folder))
    return folder


def in_installed(installed: Path, code: str, cwd: Path) -> str:
    """What `code` prints where maskzoo is the installed wheel; `-S` keeps the editable install's .pth file out."""
    begin = f"import sys; sys.path[:0] = {[str(installed), *LIBRARIES]!r}"
    return succeeded(run(sys.executable, "-I", "-S", "-c", f"{begin}\n{code}", cwd=cwd))


@pytest.mark.slow
def test_the_wheel_holds_the_package_the_plugins_and_the_licence_and_nothing_else(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    metadata = f"maskzoo-{PROJECT['version']}.dist-info"
    assert {name.split("/")[0] for name in names} == {"maskzoo", metadata, *(f"{plugin}.py" for plugin in PLUGINS)}
    assert any(name.startswith(f"{metadata}/") and name.endswith("/LICENSE") for name in names)
    assert "maskzoo/recipes/digits.toml" in names  # what `maskzoo train` runs by itself
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "maskzoo").rglob("*.py")}
    assert {name for name in names if name.startswith("maskzoo/") and name.endswith(".py")} == modules


@pytest.mark.slow
def test_the_wheel_tells_type_checkers_that_it_is_typed(wheel: Path):
    assert "Typing :: Typed" in PROJECT["classifiers"]
    assert "maskzoo/py.typed" in zipfile.ZipFile(wheel).namelist()


@pytest.mark.slow
def test_every_plugin_of_the_installed_wheel_loads(installed: Path, tmp_path: Path):
    place = (
        "import maskzoo, importlib.metadata as m; print(maskzoo.__file__, m.distribution('maskzoo').locate_file(''))"
    )
    module, distribution = in_installed(installed, place, tmp_path).split()
    assert Path(module) == installed / "maskzoo" / "__init__.py"
    assert Path(distribution) == installed

    where = "import maskzoo_random; print(maskzoo_random.__file__)"
    output = in_installed(installed, f"{where}\nfrom maskzoo.cli import main; main(['plugins'])", tmp_path)
    first, *table = output.splitlines()
    assert Path(first) == installed / "maskzoo_random.py"
    assert "could not be loaded" not in output
    lines = {line.split()[0]: line.split()[1:] for line in table if line.strip()}
    for name in PROJECT["entry-points"]["maskzoo"]:
        distribution, version, *offers = lines[name]
        assert (distribution, version) == ("maskzoo", PROJECT["version"])
        assert offers, f"plugin '{name}' offers nothing"


@pytest.mark.slow
def test_the_installed_wheel_trains(installed: Path, tmp_path: Path):
    arguments = ["train", "--masker", "clmae", *TWO_STEPS, "--out", "run"]
    in_installed(installed, f"from maskzoo.cli import main; main({arguments!r})", tmp_path)
    assert (tmp_path / "run" / "recipe.toml").exists()


# ------------------------------------------------------------------------------------------------- foreign packages
STRATEGY = '''"""Stripes: hide whole columns of patches."""

from torch import Tensor

from maskzoo import MaskingContext, Strategy, define, hookimpl


@define
class Stripes(Strategy):
    """Hide columns of patches, drawn anew for every image."""

    name = "stripes"
    jitter: float = 0.01

    def scores(self, context: MaskingContext) -> Tensor:
        rows, columns = context.grid
        stripes = context.noise(1, columns).expand(-1, rows, -1).flatten(1)
        return stripes + self.jitter * context.noise()


@hookimpl
def maskzoo_strategies():
    return [Stripes]
'''


def package(folder: Path, name: str, source: str) -> Path:
    """A project of one file, as a stranger would write it."""
    folder.mkdir()
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(source)
    (folder / "pyproject.toml").write_text(
        f"""
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "2.5"
dependencies = ["maskzoo"]

[project.entry-points.maskzoo]
{module} = "{module}"

[tool.hatch.build.targets.wheel]
include = ["{module}.py"]
"""
    )
    return folder


class Environment:
    """A virtual environment in which all that this interpreter knows is installed too, editable installs included."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        succeeded(run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder))
        self.python = folder / "venv" / "bin" / "python"
        where = run(self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
        # A path in a .pth file does not have its own .pth files read; a line that begins with `import` is run.
        lines = [f"import site; site.addsitedir({library!r})\n" for library in LIBRARIES]
        (Path(where.stdout.strip()) / "what_else_is_installed.pth").write_text("".join(lines))

    def install(self, project: Path) -> None:
        options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
        succeeded(run(self.python, "-m", "pip", "install", *options, project, cwd=self.folder))

    def maskzoo(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        return run(self.python, "-c", "from maskzoo.cli import main; main(prog_name='maskzoo')", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Two packages by strangers: a strategy that works, and one whose import fails."""
    made = Environment(tmp_path_factory.mktemp("strangers"))
    made.install(package(made.folder / "stripes", "stranger-stripes", STRATEGY))
    made.install(package(made.folder / "broken", "stranger-broken", f"import numpi\n{STRATEGY}"))
    return made


@pytest.mark.long
def test_a_foreign_strategy_is_listed_with_its_package(environment: Environment, tmp_path: Path):
    lines = succeeded(environment.maskzoo("plugins", cwd=tmp_path)).splitlines()
    assert ["stranger_stripes", "stranger-stripes", "2.5", "stripes"] in [line.split() for line in lines]
    listed = succeeded(environment.maskzoo("list", "strategies", cwd=tmp_path))
    assert "numpi" not in listed
    (line,) = [line for line in listed.splitlines() if line.split()[:1] == ["stripes"]]
    assert "Hide columns of patches, drawn anew for every image. (stranger-stripes 2.5)" in line
    shown = " ".join(succeeded(environment.maskzoo("show", "stripes", cwd=tmp_path)).split())
    assert "stripes, a strategy" in shown
    assert "jitter float = 0.01" in shown
    assert "stranger-stripes 2.5" in shown


@pytest.mark.long
def test_a_foreign_strategy_trains_next_to_a_broken_one(environment: Environment, tmp_path: Path):
    setting = "masking.strategy.jitter=0.5"
    done = environment.maskzoo("train", "--masker", "stripes", *TWO_STEPS, "--set", setting, cwd=tmp_path)
    succeeded(done)
    assert "Traceback" not in done.stderr
    (run_folder,) = (tmp_path / "runs").iterdir()
    recipe = tomllib.loads((run_folder / "recipe.toml").read_text())
    assert recipe["masking"]["strategy"] == {"use": "stripes", "jitter": 0.5}
    assert "stranger-stripes 2.5" in (run_folder / "environment.json").read_text()
    assert len((run_folder / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.long
def test_a_broken_foreign_package_is_named_with_its_cause_when_a_name_is_missing(
    environment: Environment, tmp_path: Path
):
    done = environment.maskzoo("train", "--masker", "stripe", *TWO_STEPS, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "no strategy named 'stripe'; did you mean 'stripes'?" in done.stderr
    assert "stranger-broken 2.5 (entry point 'stranger_broken') could not be loaded: " in done.stderr
    assert "ModuleNotFoundError: No module named 'numpi'" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_a_broken_foreign_package_changes_nothing_otherwise(environment: Environment, tmp_path: Path):
    done = environment.maskzoo("train", *TWO_STEPS, cwd=tmp_path)
    assert "stranger" not in succeeded(done) + done.stderr
    (line,) = [
        line
        for line in succeeded(environment.maskzoo("plugins", cwd=tmp_path)).splitlines()
        if line.startswith("stranger_broken")
    ]
    assert "could not be loaded: ModuleNotFoundError: No module named 'numpi'" in line
