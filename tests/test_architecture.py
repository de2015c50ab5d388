"""The rules that keep the house in order: who may import whom, what is public, and where random numbers come from."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import maskzoo

ROOT = Path(__file__).parents[1]
CORE = sorted((ROOT / "maskzoo").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").glob("*.py"))

# A module may import from its own level and from those before it.
LEVELS = (
    {
        "mask",
        "errors",
        "seeds",
        "alarms",
        "processes",
        "plain",
        "meanings",
        "memory",
        "signals",
        "marks",
        "records",
        "metrics",
        "measured",
        "inert",
    },
    {"terminal", "blame", "words", "listing", "sources", "guard", "bounds", "bands", "norms"},
    {"protocols"},
    {"hookspecs"},
    {"registry", "offers"},
    {"recipe", "schedules", "checks", "defaults", "backbones", "objectives", "teacher", "testing", "engine"},
    {"train", "data"},
    {"probe"},
    {
        "build",
        "checkpoint",
        "matrix",
        "trained",
        "grids",
        "origins",
        "windows",
        "resizing",
        "fitting",
        "weightfile",
        "weights",
    },
    {
        "official",
        "evaluation",
        "views",
        "pictures",
        "sheet",
        "loggers",
        "diagnosis",
        "folder",
        "flags",
        "provenance",
    },
    {"gallery", "doubts", "display", "measuring", "cost", "preview", "export", "classnames"},
    {"run", "evaluate", "show", "overview"},
    {"compare"},
    {"cli", "__main__"},
)
LEVEL_OF = {name: number for number, names in enumerate(LEVELS) for name in names}

PUBLIC = [
    "Backbone",
    "ContractError",
    "CurriculumSchedule",
    "DataError",
    "Dataset",
    "Encoder",
    "Evaluator",
    "Logger",
    "Mask",
    "MaskZooError",
    "MaskingContext",
    "MaskingStrategy",
    "Metric",
    "Objective",
    "Outcome",
    "Part",
    "PluginError",
    "RankedStrategy",
    "Recipe",
    "RecipeError",
    "Registry",
    "Sample",
    "Session",
    "Split",
    "Strategy",
    "Stream",
    "Teacher",
    "checked_scores",
    "define",
    "hookimpl",
    "official",
    "rounded_down",
]


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


# ------------------------------------------------------------------------------------------------------------- imports
def imports(tree: ast.AST, package: str = "") -> Iterator[tuple[str, str | None]]:
    """(module, name) of every import statement; the name is None for `import module`.

    `package` resolves relative imports.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                yield module, alias.name


def package_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).parent.parts)


def room(path: Path) -> str:
    """The module or package of `maskzoo` that a file belongs to."""
    return path.relative_to(ROOT / "maskzoo").parts[0].removesuffix(".py")


def rooms_entered(path: Path) -> set[str]:
    """The modules and packages of `maskzoo` that a file imports from, public names at their home."""
    entered = set()
    for module, name in imports(tree_of(path), package_of(path)):
        first, _, rest = module.partition(".")
        if first != "maskzoo":
            continue
        inner = rest.split(".")[0] or (name or "")
        entered.add(maskzoo._HOMES.get(inner) or inner)
    return entered - {"", "__version__"}


FACE = ROOT / "maskzoo" / "__init__.py"  # names everything, under TYPE_CHECKING alone: tested below


@pytest.mark.parametrize("path", [path for path in CORE if path != FACE], ids=label)
@pytest.mark.sampled(38)
def test_imports_point_downwards_only(path: Path):
    assert room(path) in LEVEL_OF, f"say in LEVELS where '{room(path)}' belongs"
    tree = tree_of(path)
    if room(path) == "hookspecs":
        tree = ast.Module([node for node in tree.body if not is_type_checking(node)], [])
        assert {module for module, _ in imports(tree)} <= {"__future__", "typing", "pluggy"}
        return
    too_high = {name for name in rooms_entered(path) if LEVEL_OF.get(name, 99) > LEVEL_OF[room(path)]}
    assert not too_high, f"{label(path)} imports from {too_high}, above it"


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def test_the_check_of_levels_sees_every_way_of_importing():
    source = (
        "from maskzoo import checkpoint\n"
        "import maskzoo.run as r\n"
        "from . import train\n"
        "from .data import folder\n"
        "if TYPE_CHECKING:\n    from maskzoo.cli import main\n"
        "def late():\n    from .. import Recipe\n"
    )
    assert list(imports(ast.parse(source), "maskzoo.evaluation")) == [
        ("maskzoo", "checkpoint"),
        ("maskzoo.run", None),
        ("maskzoo.evaluation", "train"),
        ("maskzoo.evaluation.data", "folder"),
        ("maskzoo.cli", "main"),
        ("maskzoo", "Recipe"),
    ]


def test_modules_are_found_at_all():
    assert {"mask", "protocols", "registry", "run", "cli", "backbones", "data"} <= {room(path) for path in CORE}
    assert {"maskzoo_random", "maskzoo_clmae", "maskzoo_schedules"} <= {path.stem for path in PLUGINS}


@pytest.mark.parametrize("path", CORE, ids=label)
def test_the_core_imports_no_plugin(path: Path):
    named = {module for module, _ in imports(tree_of(path)) if module.startswith("maskzoo_") or module == "plugins"}
    assert not named


@pytest.mark.parametrize("path", PLUGINS, ids=label)
def test_a_plugin_imports_only_public_names(path: Path):
    for module, name in imports(tree_of(path)):
        first = module.split(".")[0]
        if first == "maskzoo":
            assert module == "maskzoo", f"{label(path)} reaches into {module}"
            assert name in PUBLIC, f"{label(path)} imports maskzoo.{name}, which is not public"
        else:
            allowed = first in {"torch", "timm", "attrs"} or first in sys.stdlib_module_names
            assert allowed, f"{label(path)} imports {module}"


@pytest.mark.parametrize(
    ("library", "rooms"), [("torch_ema", {"teacher"}), ("pluggy", {"hookspecs", "registry"}), ("click", {"cli"})]
)
def test_a_library_stays_in_the_room_it_was_let_into(library: str, rooms: set[str]):
    users = {
        room(path) if path in CORE else path.stem
        for path in [*CORE, *PLUGINS]
        for module, _ in imports(tree_of(path))
        if module.split(".")[0] == library
    }
    assert users == rooms


# -------------------------------------------------------------------------------------------------------------- random
# Functions of torch and methods of tensors that draw from the global generator unless they are given one.
DRAWS = {
    *("rand", "randn", "randint", "randperm", "bernoulli", "multinomial", "normal", "poisson", "binomial"),
    *("bernoulli_", "uniform_", "normal_", "random_", "exponential_", "cauchy_", "log_normal_", "geometric_"),
}
# Those that can be given none.
ALWAYS_GLOBAL = {"rand_like", "randn_like", "randint_like", "gumbel_softmax", "rrelu"}
# Whole modules that draw from generators of their own, or from the global one.
RANDOM_MODULES = ("random", "numpy.random", "torch.distributions")
CONSTANT_INITIALISERS = {"zeros_", "ones_", "constant_", "eye_", "dirac_"}

# Initial weights come from the global generator, which `build` has seeded. (file, function): what it may call.
INITIAL_WEIGHTS: dict[tuple[str, str], set[str]] = {
    ("maskzoo/objectives/decoder.py", "_build_decoder"): {"normal_"},  # called by `setup`
    ("maskzoo/objectives/decoder.py", "initialise"): {"xavier_uniform_"},  # applied by `setup`
    ("maskzoo/backbones/vit.py", "_initialise_as_mae"): {"xavier_uniform_", "normal_"},
    ("maskzoo/backbones/vit.py", "new_mask_token"): {"trunc_normal_"},
}
# The global generator is seeded here, each time under `fork_rng`, for what cannot be given a generator.
SEEDED = {
    "maskzoo/build.py",  # initial weights
    "maskzoo/train.py",  # drop path and dropout
    "maskzoo/data/augment.py",  # torchvision's transforms
    "maskzoo/evaluate.py",  # initial weights of a backbone without a run
    "maskzoo/evaluation/attentive.py",  # initial weights of the probe
    "maskzoo/evaluation/finetune.py",  # initial weights of the classifier; drop path, dropout and mixup
}
PUT_BACK = {  # states that are kept and put back, so that a plugin's draws leave no trace
    ("maskzoo/probe.py", name) for name in ("random", "numpy.random.get_state", "numpy.random.set_state")
}
NUMPY_SEEDED = {"maskzoo/seeds.py"}  # numpy's, for timm's mixup


def dotted(node: ast.expr) -> str:
    """`a.b.c` as text; what is not a plain name at the root is an `@`: a method of some value."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return "@"


class Draws(ast.NodeVisitor):
    """Collects the draws from a global generator as "function: call"."""

    def __init__(self, source: str, path: str) -> None:
        self.path, self.found, self.functions = path, [], ["module"]
        self.names: dict[str, str] = {}  # local name -> full name
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self.names[alias.asname or alias.name.split(".")[0]] = alias.name if alias.asname else ""
                    self._module(alias.name)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    self.names[alias.asname or alias.name] = full
                    self._module(full)
        self.visit(tree)

    def _module(self, name: str) -> None:
        if (self.path, name) in PUT_BACK:
            return
        if name.startswith(RANDOM_MODULES) and name.split(".")[0] in {"random", "numpy", "torch"}:
            self.found.append(f"import: {name}")

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.functions.append(node.name)
        self.generic_visit(node)
        self.functions.pop()

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        root, dot, rest = dotted(node.func).partition(".")
        name = (self.names.get(root) or root) + dot + rest
        *where, called = name.split(".")
        if name.startswith("numpy.random.") and self.path in NUMPY_SEEDED:
            return
        if (self.path, name) in PUT_BACK:
            return
        if name.startswith(("numpy.random.", "torch.random.")) and called not in {"fork_rng", "manual_seed"}:
            self.found.append(f"{self.functions[-1]}: {name}")
        elif called == "manual_seed":
            if self.path not in SEEDED and not name.startswith("@") and where[-1:] in (["torch"], ["random"]):
                self.found.append(f"{self.functions[-1]}: {name}")
        elif where[-1:] == ["init"]:  # torch.nn.init
            if called not in CONSTANT_INITIALISERS and not self._initial(called):
                self.found.append(f"{self.functions[-1]}: {name}")
        elif called in ALWAYS_GLOBAL or (called in DRAWS and not self._given_one(node)):
            if not self._initial(called):
                self.found.append(f"{self.functions[-1]}: {name}")
        elif called in {"train_test_split", "shuffle"} and not any(key.arg == "random_state" for key in node.keywords):
            self.found.append(f"{self.functions[-1]}: {name}")

    @staticmethod
    def _given_one(node: ast.Call) -> bool:
        given = [key.value for key in node.keywords if key.arg == "generator"]
        return bool(given) and not (isinstance(given[0], ast.Constant) and given[0].value is None)

    def _initial(self, called: str) -> bool:
        """Whether this place makes initial weights: a plugin's or objective's `setup`, or one that is named above."""
        part = self.path.startswith(("plugins/", "maskzoo/objectives/"))
        in_setup = part and "setup" in self.functions and called.endswith("_")
        return in_setup or called in INITIAL_WEIGHTS.get((self.path, self.functions[-1]), set())


@pytest.mark.parametrize("path", [*CORE, *PLUGINS], ids=label)
@pytest.mark.sampled(41)
def test_nothing_draws_from_a_global_generator(path: Path):
    assert Draws(path.read_text(encoding="utf-8"), label(path)).found == []


@pytest.mark.parametrize(
    "draw",
    [
        "import torch\ndef scores(c):\n    return torch.rand(3)",
        "import torch\ndef scores(c):\n    return torch.rand(3, generator=None)",
        "from torch import randperm as shuffled\nx = shuffled(3)",
        "import torch as t\nx = t.rand_like(y)",
        "def scores(c):\n    return c.images.new_empty(3).uniform_()",
        "def scores(c):\n    return c.images[0].bernoulli()",
        "def scores(self):\n    self.token.normal_(std=0.02)",
        "from torch import nn\ndef scores(self):\n    nn.init.normal_(self.token)",
        "import numpy as np\nx = np.random.rand(3)",
        "import numpy as np\nx = np.random.default_rng(0)",
        "from numpy.random import default_rng",
        "import random",
        "from random import choice",
        "import torch\ntorch.manual_seed(0)",
        "from torch.distributions import Bernoulli",
        "from sklearn.model_selection import train_test_split\ntrain_test_split(x)",
    ],
)
def test_the_check_of_draws_sees_each_kind_of_them(draw: str):
    assert Draws(draw, "plugins/maskzoo_new.py").found


@pytest.mark.parametrize(
    "fine",
    [
        "import torch\nx = torch.rand(3, generator=stream(0, 'role'))",
        "import torch\nx = torch.Generator().manual_seed(3)",
        "from torch import nn\ndef setup(self, objective):\n    nn.init.normal_(self.token, std=0.02)",
        "import torch\ndef setup(self, objective):\n    self.token = torch.empty(3).normal_(std=0.02)",
        "from torch import nn\ndef anywhere(layer):\n    nn.init.zeros_(layer.bias)",
        "from torch.nn.functional import normalize\nx = normalize(y)",
    ],
)
def test_the_check_of_draws_lets_streams_and_initial_weights_be(fine: str):
    assert Draws(fine, "plugins/maskzoo_new.py").found == []


# ------------------------------------------------------------------------------------------------- plugins and surface
def test_entry_points_name_every_plugin_and_nothing_that_is_not_there():
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["maskzoo"]
    assert {module for module in points.values() if module.startswith("maskzoo_")} == {path.stem for path in PLUGINS}
    for module in points.values():
        if not module.startswith("maskzoo_"):
            assert (ROOT / module.replace(".", "/") / "__init__.py").exists(), module


@pytest.mark.parametrize("path", [*CORE, *PLUGINS], ids=label)
def test_every_module_begins_with_a_docstring(path: Path):
    assert (ast.get_docstring(tree_of(path)) or "").strip()


def test_files_in_plugins_cannot_shadow_another_module():
    # The folder lands on sys.path in an editable install.
    assert all(path.name.startswith("maskzoo_") for path in (ROOT / "plugins").iterdir() if path.suffix == ".py")
    assert not (ROOT / "plugins" / "__init__.py").exists()


def test_the_public_names_are_these():
    assert maskzoo.__all__ == PUBLIC


def test_every_public_name_resolves_to_the_one_of_that_name():
    for name in PUBLIC:
        assert getattr(getattr(maskzoo, name), "__name__", "").split(".")[-1] in {name, "HookimplMarker", ""}, name
    assert dir(maskzoo) == sorted(PUBLIC)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = maskzoo.Nonsense


def test_homes_agree_with_what_type_checkers_see():
    tree = tree_of(FACE)
    others = {module for module, _ in imports(ast.Module([n for n in tree.body if not is_type_checking(n)], []))}
    assert others == {"__future__", "importlib", "typing"}
    (guarded,) = [node for node in tree.body if is_type_checking(node)]
    seen = {name: module.removeprefix("maskzoo").removeprefix(".") for module, name in imports(guarded)}
    assert seen == maskzoo._HOMES
    assert set(seen) == set(PUBLIC)
    aliases = [alias for node in ast.walk(guarded) if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert all(alias.asname == alias.name for alias in aliases)  # else mypy does not take it for exported


def test_the_version_is_that_of_the_distribution():
    assert maskzoo.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def loaded_after(code: str, *modules: str) -> set[str]:
    """Which of these modules a fresh interpreter has imported after `code`."""
    script = f"import sys\n{code}\nprint(*(set(sys.argv[1:]) & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script, *modules], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def test_importing_maskzoo_imports_no_torch():
    assert loaded_after("import maskzoo", "torch", "timm", "pluggy", "attrs", "click") == set()


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]):
    code = f"from maskzoo.cli import main\nmain({arguments}, standalone_mode=False)"
    assert loaded_after(code, "torch", "torchvision", "timm", "matplotlib", "numpy", "sklearn", "rich") == set()
