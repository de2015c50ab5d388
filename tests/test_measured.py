"""What evaluators yield and how it is kept: declared metrics, plain pairs of older plugins, older files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import attrs
import numpy
import pytest
import torch

from maskzoo import Metric, define
from maskzoo.errors import DataError, PluginError
from maskzoo.evaluation import maskzoo_evaluators
from maskzoo.evaluation.measure import measured
from maskzoo.measured import added, entries, names_of, read, without
from maskzoo.metrics import ACCURATE, declared
from maskzoo.plain import json_text


class Seen:
    """As much of an encoder as an evaluator's setting says."""

    pooling = "mean"
    statistics = ((0.5,), (0.25,))


@define
class Foreign:
    """An evaluator of a plugin, which yields what it was told."""

    name: ClassVar[str] = "foreign"

    k: int | tuple[int, ...] = 20
    root: Path = Path("somewhere")
    yields: ClassVar[Any] = ()

    def __call__(self, encoder: Any, dataset: Any) -> Iterator[Any]:
        yield from type(self).yields


def told(yields: Any, **options: Any) -> list[Any]:
    """What is kept of an evaluator that yields that."""
    Foreign.yields = yields
    return measured(Foreign(**options), Seen(), None, when="later", step=3)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------- what is yielded
def test_a_metric_is_kept_as_it_is_declared():
    (found,) = told([Metric("error", 0.3, "lower", "share", "top-1 error")])
    (entry,) = entries({"evaluations": [json.loads(json.dumps(found.plain))]})
    assert entry.metrics == [Metric("error", 0.3, "lower", "share", "top-1 error")]
    assert (entry.use, entry.when, entry.step, entry.pooling) == ("foreign", "later", 3, "mean")
    assert entry.normalisation == {"mean": [0.5], "std": [0.25]}
    assert entry.evaluator == {"use": "foreign", "k": 20, "root": "somewhere"}


@pytest.mark.parametrize("number", [0.5, 1, numpy.float32(0.5), torch.tensor(0.5), numpy.array(2.0), float("nan")])
def test_a_plain_pair_of_an_older_plugin_is_a_metric_of_which_nothing_is_declared(number: Any):
    (found,) = told([("accuracy", number)])
    (metric,) = found.metrics
    assert (metric.name, metric.better, metric.unit, metric.result) == ("accuracy", None, "", True)
    assert metric.value == pytest.approx(float(number), nan_ok=True)


@pytest.mark.parametrize(
    ("yields", "words"),
    [
        ([("a", None)], "'a' as a NoneType"),
        ([("a", "0.5")], "'a' as a str"),
        ([("a", True)], "'a' as a bool"),
        ([("a", torch.zeros(3))], r"'a' as a Tensor of shape \[3\]"),
        ([("a", [0.5])], "'a' as a list"),
        ([("", 0.5)], "no name"),
        ([(3, 0.5)], "no name"),
        ([0.5], "yields a float"),
        ([{"a": 0.5}], "yields a dict"),
        ([("a", 0.5, "higher")], "yields a tuple"),
        ([("a", 0.5), ("a", 0.6)], "yields 'a' twice"),
        ([Metric("a", 0.5), ("a", 0.5)], "yields 'a' twice"),
        ([Metric("a", 87.0, "higher", "share")], "a share of 87"),
    ],
)
def test_what_is_no_metric_is_refused_with_the_evaluators_name(yields: Any, words: str):
    with pytest.raises(PluginError, match=rf"evaluator 'foreign' .*{words}"):
        told(yields)


@pytest.mark.parametrize(("option", "value"), [("better", "up"), ("unit", "%")])
def test_a_declaration_that_means_nothing_is_refused(option: str, value: str):
    with pytest.raises(ValueError, match=option):
        Metric("a", 0.5, **{option: value})


def test_each_of_several_values_of_an_option_is_a_measurement_of_its_own():
    yields = [Metric("top1", 0.1 * k, options={"k": k}) for k in (5, 20)]
    first, second = told(yields, k=(5, 20))
    assert (first.evaluator["k"], second.evaluator["k"]) == (5, 20)
    assert names_of([first, second]) == ["foreign (k 5)", "foreign"]  # 20 is as given
    (alone,) = told(yields[1:])
    assert alone.plain == second.plain


def test_all_built_in_evaluators_of_accuracy_are_known_without_torch():
    names = {cls.name for cls in maskzoo_evaluators()}
    assert set(ACCURATE) | {"reconstruction"} == names
    assert all(
        (declared(use, "top1", 0.5).better, declared(use, "top1", 0.5).unit) == ("higher", "share") for use in ACCURATE
    )
    assert declared("reconstruction", "loss on fixed masks", 0.5).better == "lower"
    assert declared("foreign", "top1", 0.5).better is None


# ------------------------------------------------------------------------------------------------------------ the file
def test_what_was_measured_alike_is_replaced_and_the_rest_stays():
    first, other = (told([("a", 0.1)], k=k)[0] for k in (20, 5))
    held = added(added({}, [first, other], "before"), [attrs.evolve(first, metrics=[Metric("a", 0.2)])])
    assert held["measured"] == ["before"]
    assert [one.metrics[0].value for one in entries(held)] == [0.2, 0.1]
    later = attrs.evolve(first, step=4)
    assert len(entries(added(held, [later]))) == 3
    assert len(entries(added(held, [attrs.evolve(first, when="after")]))) == 3
    assert json.loads(json_text(held)) == held


def test_what_a_run_measured_at_a_moment_can_be_taken_out():
    (found,) = told([("a", 0.1)])
    held = added({}, [attrs.evolve(found, when="before")], "before")
    held = added(held, [attrs.evolve(found, when="after")], "after")
    assert [one.when for one in entries(without(held, "after"))] == ["before"]
    assert without(held, "after")["measured"] == ["before"]


OLDER = {
    "settings": {
        "evaluators": [
            {"use": "knn", "k": [5, 20], "temperature": 0.07, "images": 10000, "metric": "cosine"},
            {"use": "linear", "solver": "sgd", "rates": [0.1, 1.0], "clip": None},
            {"use": "foreign", "k": 3},
            {"use": "foreign", "k": 4},
        ],
        "names": ["knn", "linear", "foreign (k 3, root a/b)", "foreign (k 4)"],
        "features": "mean of patch tokens of the whole image, eval mode",
    },
    "before": {"knn/top1 (k=5)": 0.1, "knn/top1 (k=20)": 0.2},
    "after": {
        "knn/top1 (k=5)": 0.3,
        "knn/top1 (k=20)": 0.4,
        "linear/top1": 0.5,
        "linear/rate": 1.0,
        "foreign (k 3, root a/b)/rate": None,
        "foreign (k 4)/error": 2.5,
    },
    "problems": {"fewshot": "class 'a' has 3 images"},
    "evaluations": [
        {
            "step": 10,
            "data": {"use": "digits"},
            "normalisation": {"mean": [0.5], "std": [0.5]},
            "pooling": "class",
            "evaluator": {"use": "fewshot", "shots": [1, 5], "draws": 5},
            "figures": {"top1 (1 a class)": 0.1, "top1 (1 a class) +-": 0.01, "top1 (5 a class)": None},
            "left_out": 2,
        }
    ],
}


def test_a_file_of_an_older_version_is_read_as_one_of_today(tmp_path: Path):
    (tmp_path / "evaluation.json").write_text(json.dumps(OLDER))
    held = read(tmp_path / "evaluation.json")
    assert held["measured"] == ["before", "after"]
    found = entries(held)
    assert [(one.when, one.use, one.evaluator.get("k")) for one in found if one.own] == [
        *(("before", "knn", 5), ("before", "knn", 20), ("after", "knn", 5), ("after", "knn", 20)),
        *(("after", "linear", None), ("after", "foreign", 3), ("after", "foreign", 4), ("after", "fewshot", None)),
    ]
    named = {(one.when, metric.name, metric.value): metric for one in found for metric in one.metrics}
    assert named["after", "top1", 0.4].better == "higher"
    assert (named["after", "error", 2.5].better, named["after", "error", 2.5].unit) == (None, "")
    assert {metric.name for metric in named.values() if not metric.result} == {"rate", "top1 +-"}
    assert next(one for one in found if one.problem).problem == "class 'a' has 3 images"
    first, second = (one for one in found if one.when == "later")
    assert (first.evaluator["shots"], second.evaluator["shots"]) == ([1], [5])
    assert (first.step, first.pooling, first.left_out) == (10, "class", 2)
    assert math.isnan(second.metrics[0].value)
    assert "clip" not in next(one for one in found if one.use == "linear").evaluator
    (tmp_path / "again.json").write_text(json_text(held))
    assert read(tmp_path / "again.json") == held


def test_a_rate_of_a_foreign_evaluator_is_a_result_like_any_other():
    held = read_as({"after": {"foreign/rate": 0.5, "linear/rate": 1.0}})
    assert [(one.use, one.metrics[0].result) for one in held] == [("foreign", True), ("linear", False)]


def read_as(held: Any) -> list[Any]:
    from maskzoo.measured import migrated

    return entries(migrated(held))


@pytest.mark.parametrize("held", ["[]", "3", "{", '{"after": [1]}', '{"after": {}, "settings": [1]}', '{"after": 3}'])
def test_a_file_that_holds_something_else_is_named(tmp_path: Path, held: str):
    path = tmp_path / "evaluation.json"
    path.write_text(held)
    with pytest.raises(DataError, match=r"evaluation\.json' cannot be read"):
        read(path)


@pytest.mark.parametrize("held", ['{"evaluations": "x"}', '{"measured": {"a": 1}}'])
def test_what_would_be_lost_is_refused_by_who_writes_the_file_again(tmp_path: Path, held: str):
    path = tmp_path / "evaluation.json"
    path.write_text(held)
    read(path)
    with pytest.raises(DataError, match=r"evaluation\.json' cannot be read: '(evaluations|measured)' is no list"):
        read(path, strict=True)


@pytest.mark.parametrize("held", [None, {}, "x", {"evaluator": "knn"}, {"evaluator": {"use": "knn"}, "metrics": 3}])
def test_entries_that_are_no_measurement_have_no_metric(held: Any):
    assert not [metric for one in entries({"evaluations": [held]}) for metric in one.metrics]
