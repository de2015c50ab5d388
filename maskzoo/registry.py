"""From a name in a recipe to the class that bears it, whoever brought it.

Every plugin is loaded by itself, under a plugin manager of its own: pluggy's own loader skips a second entry point of
the same name without a word, and one failing import ends the program. Here a broken plugin is remembered with its
reason and hurts nobody until somebody asks for what nobody else provides.
"""

from __future__ import annotations

import functools
import sys
import traceback
import types
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import attrs
import pluggy

from maskzoo import hookspecs
from maskzoo.blame import belongs
from maskzoo.errors import ContractError, MaskZooError, PluginError, RecipeError
from maskzoo.offers import HOOKS as HOOKS
from maskzoo.offers import KINDS as KINDS
from maskzoo.offers import Kind as Kind
from maskzoo.offers import doubts, faults, read_hook, refuse_offer
from maskzoo.words import indefinite as indefinite
from maskzoo.words import nearest as nearest

GROUP = "maskzoo"
OURS = "maskzoo"  # the distribution whose names always win


@attrs.frozen
class Offer:
    """One class that one plugin offers under one name."""

    kind: Kind
    name: str
    cls: type
    plugin: Plugin


@attrs.define(eq=False)
class Plugin:
    """One entry point: where it comes from, and what loading it gave."""

    name: str
    distribution: str
    version: str
    offers: list[Offer] = attrs.field(factory=list)
    problem: str | None = None  # why it could not be loaded

    @property
    def ours(self) -> bool:
        """Whether it comes with MaskZoo itself."""
        return self.distribution == OURS

    @property
    def owner(self) -> str:
        """Distribution, version and entry point, for messages."""
        return f"{self.distribution} {self.version} (entry point '{self.name}')"


class Registry:
    """Names and the classes that bear them, by kind; built-in plugins are looked up before any other is loaded."""

    def __init__(self, points: Iterable[EntryPoint] | None = None) -> None:
        self._points = list(entry_points(group=GROUP) if points is None else points)

    def find(self, kind: Kind, name: str) -> type:
        """The class of that name.

        Raises RecipeError for an unknown name, with the nearest known one and the plugins that could not be loaded,
        PluginError for a name that two third parties claim, and ContractError for a kind that does not exist.
        """
        _refuse_no_kind(kind)
        for offer in self._offers(self._ours):
            if (offer.kind, offer.name) == (kind, name):
                return offer.cls
        claims = [offer for offer in self._offers(self._theirs) if (offer.kind, offer.name) == (kind, name)]
        if len(claims) == 1:
            return claims[0].cls
        if claims:
            owners = " and ".join(sorted(offer.plugin.owner for offer in claims))
            raise PluginError(f"{kind} '{name}' is offered by {owners}; uninstall one of them")
        raise RecipeError(self._unknown(kind, name))

    def classes(self, kind: Kind) -> dict[str, type]:
        """All classes of a kind that can be found without a clash, by name, in alphabetical order."""
        _refuse_no_kind(kind)
        names = sorted({offer.name for offer in self._offers(self.plugins) if offer.kind == kind})
        found = {}
        for name in names:
            try:
                found[name] = self.find(kind, name)
            except PluginError:
                continue  # `maskzoo plugins` tells of the clash
        return found

    def owner(self, kind: Kind, name: str) -> Plugin | None:
        """The plugin from which `find` takes this class."""
        cls = self.find(kind, name)
        return next((offer.plugin for offer in self._offers(self.plugins) if offer.cls is cls), None)

    @property
    def plugins(self) -> list[Plugin]:
        """Every plugin, ours first, broken ones too."""
        return self._ours + self._theirs

    def clashes(self) -> list[str]:
        """One sentence for each name that more than one plugin offers, saying who wins."""
        sentences = []
        offers = self._offers(self.plugins)
        for kind, name in sorted({(offer.kind, offer.name) for offer in offers}):
            owners = [offer.plugin for offer in offers if (offer.kind, offer.name) == (kind, name)]
            if len(owners) < 2:
                continue
            listed = " and ".join(sorted(owner.owner for owner in owners))
            outcome = "the built-in one is used" if any(owner.ours for owner in owners) else "using it is an error"
            sentences.append(f"{kind} '{name}' is offered by {listed}: {outcome}")
        return sentences

    def broken(self) -> list[str]:
        """One sentence for each plugin that could not be loaded."""
        return [f"{plugin.owner} could not be loaded: {plugin.problem}" for plugin in self.plugins if plugin.problem]

    def faulty(self) -> list[str]:
        """One sentence for each fault, or what looks like one, in a class that another distribution offers."""
        return [
            f"{offer.plugin.owner}: {offer.kind} '{offer.name}': {sentence}"
            for offer in self._offers(self._theirs)
            for sentence in (*faults(offer.kind, offer.cls), *doubts(offer.kind, offer.cls))
        ]

    @functools.cached_property
    def _ours(self) -> list[Plugin]:
        return [_load(point) for point in self._points if _distribution(point) == OURS]

    @functools.cached_property
    def _theirs(self) -> list[Plugin]:
        return [_load(point) for point in self._points if _distribution(point) != OURS]

    @staticmethod
    def _offers(plugins: list[Plugin]) -> list[Offer]:
        return [offer for plugin in plugins for offer in plugin.offers]

    def _unknown(self, kind: Kind, name: str) -> str:
        known = list(self.classes(kind))
        return "; ".join([f"no {kind} named '{name}'", nearest(name, known), *self.broken()])


def _refuse_no_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ContractError(f"'{kind}' is not a kind of plugin; the kinds are {', '.join(KINDS)}")


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "unknown"


def _load(point: EntryPoint) -> Plugin:
    """Load one entry point; whatever it raises becomes its `problem`, since it is not our code that runs here."""
    version = point.dist.version if point.dist is not None else "?"
    plugin = Plugin(point.name, _distribution(point), version)
    try:
        if isinstance(point, EntryPoint) and EntryPoint.pattern.match(point.value) is None:
            raise PluginError(f"its value '{point.value}' is no module; write a module's name, such as maskzoo_dark")
        module = point.load()
        plugin.offers = _collect(plugin, module)
        _remember_owner(plugin, module)
    except (Exception, SystemExit) as problem:
        plugin.offers = []
        plugin.problem = str(problem) if isinstance(problem, MaskZooError) else _words(problem)
    return plugin


def _words(problem: BaseException) -> str:
    """What a plugin's module has raised, and where in its own code."""
    skipped = ("importlib", "pluggy", "<frozen", "/attr/", __file__)
    frames = [
        frame for frame in traceback.extract_tb(problem.__traceback__) if not any(s in frame.filename for s in skipped)
    ]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(problem).__name__}: {problem}{place}"


def _remember_owner(plugin: Plugin, module: Any) -> None:
    """Say to whom the modules of a plugin belong, so that its bugs are not taken for ours."""
    owner = None if plugin.ours else f"{plugin.distribution} {plugin.version}"
    if isinstance(module, types.ModuleType):
        belongs(module.__name__, owner, getattr(module, "__file__", None))
        belongs(module.__name__.split(".")[0], owner)  # its other modules
    for offer in plugin.offers:
        home = sys.modules.get(offer.cls.__module__)
        belongs(offer.cls.__module__, owner, getattr(home, "__file__", None))


def _collect(plugin: Plugin, module: Any) -> list[Offer]:
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    for hook in dir(module):
        if getattr(getattr(module, hook, None), f"{GROUP}_impl", None) and hook not in HOOKS.values():
            raise PluginError(f"unknown hook '{hook}'; {nearest(hook, HOOKS.values())}")
    manager.register(module, name=plugin.name)
    offers: dict[tuple[Kind, str], Offer] = {}
    for kind, hook in HOOKS.items():
        for cls in read_hook(hook, getattr(manager.hook, hook)):
            name = getattr(cls, "name", None)
            if not isinstance(cls, type) or not isinstance(name, str) or not name:
                raise PluginError(f"{hook}() must return classes with a `name`, got {cls!r}")
            if (kind, name) in offers:
                raise PluginError(f"{hook}() names two classes '{name}': {offers[kind, name].cls} and {cls}")
            refuse_offer(kind, cls)
            offers[kind, name] = Offer(kind, name, cls, plugin)
    if not offers:
        raise PluginError("it offers nothing; a hook returns a list of classes and is marked with @maskzoo.hookimpl")
    return list(offers.values())
