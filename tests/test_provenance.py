"""What a run keeps of the plugins that it used, for whoever reads its results."""

from __future__ import annotations

from maskzoo.provenance import used
from maskzoo.registry import Registry

REGISTRY = Registry()
RECIPE = {
    "data": {"use": "digits"},
    "objective": {"use": "masksub"},
    "masking": {
        "strategy": {
            "use": "mix",
            "parts": [{"use": "attmask", "curriculum": {"use": "linear", "start": 0.0}}, {"use": "block"}],
        },
        "ratio": {"use": "constant", "value": 0.5},
    },
    "optimizer": {"use": "adamw", "lr": {"use": "cosine"}},
    "evaluation": [{"use": "knn"}, {"use": "knn", "k": 5}],
    "train": {"loggers": [{"use": "tensorboard"}]},
}


def test_every_plugin_of_a_recipe_is_named_once_with_where_it_comes_from():
    found = {(entry["kind"], entry["name"]): entry["distribution"] for entry in used(RECIPE, REGISTRY)}
    assert found == {
        ("dataset", "digits"): "maskzoo",
        ("objective", "masksub"): "maskzoo",
        ("strategy", "mix"): "maskzoo",
        ("strategy", "attmask"): "maskzoo",
        ("strategy", "block"): "maskzoo",
        ("schedule", "linear"): "maskzoo",
        ("schedule", "constant"): "maskzoo",
        ("schedule", "cosine"): "maskzoo",
        ("evaluator", "knn"): "maskzoo",
        ("logger", "tensorboard"): "maskzoo",
    }
    assert len(used(RECIPE, REGISTRY)) == len(found)


def test_papers_travel_with_what_cites_them_and_with_nothing_else():
    papers = {entry["name"]: entry["paper"] for entry in used(RECIPE, REGISTRY) if "paper" in entry}
    assert papers.keys() == {"attmask", "block", "masksub"}
    assert "2203.12719" in papers["attmask"]


def test_a_name_that_is_no_plugin_is_passed_over():
    assert used({"objective": {"use": "never-heard-of"}, "optimizer": {"use": "sgd"}}, REGISTRY) == []
