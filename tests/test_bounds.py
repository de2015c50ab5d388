"""What is too large, too small or no number: refused by its key before anything is built, started or read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import REGISTRY, tiny_session
from test_timm_data import write_folder

from maskzoo import ContractError, DataError, MaskZooError, Recipe, RecipeError, bounds, official
from maskzoo.backbones import adapter
from maskzoo.data.shards import check_ranges
from maskzoo.data.survey import survey
from maskzoo.flags import _set
from maskzoo.recipe import make


@pytest.mark.parametrize(
    ("kind", "use", "key"),
    [
        ("strategy", "clmae:99999999", "depth"),
        ("strategy", {"use": "clmae", "kl_weight": float("nan")}, "kl_weight"),
        ("strategy", {"use": "clmae", "binary_weight": float("inf")}, "binary_weight"),
        ("strategy", {"use": "block", "rounds": 10**9}, "rounds"),
        ("objective", {"use": "reconstruct", "decoder_depth": 10**8}, "decoder_depth"),
        ("objective", {"use": "reconstruct", "decoder_dim": 10**8}, "decoder_dim"),
        ("evaluator", {"use": "finetune", "clip": 0}, "clip"),
        ("evaluator", "knn:99999999", "k"),
        ("evaluator", {"use": "fewshot", "penalty": float("inf")}, "penalty"),
        ("evaluator", {"use": "fewshot", "penalty": 1e-300}, "penalty"),
        ("evaluator", {"use": "linear", "batch_size": 2**62}, "batch_size"),
        ("evaluator", {"use": "attentive", "batch_size": 2**63}, "batch_size"),
        ("dataset", {"use": "folder", "root": ".", "size": 0}, "size"),
        ("dataset", {"use": "folder", "root": ".", "size": [32, -5]}, "size"),
        ("dataset", {"use": "digits", "upsample": 10**7}, "upsample"),
        ("backbone", {"use": "vit", "options": {"depth": 99_999_999}}, "options: depth"),
        ("backbone", {"use": "vit", "options": {"embed_dim": 2**40}}, "options: embed_dim"),
        (
            "backbone",
            {"use": "swin", "timm": "swin_tiny_patch4_window7_224", "options": {"depths": [2, 9999]}},
            "options: depths",
        ),
        ("backbone", {"use": "vit", "options": {"act_layer": "x"}}, "options: .*KeyError"),
        ("backbone", {"use": "vit", "options": {"num_heads": 0}}, "options"),
        ("backbone", {"use": "vit", "image_size": 509, "patch_size": 1}, "image_size: .*259,081 patches"),
        ("backbone", {"use": "vit", "image_size": 2**40}, "image_size"),
    ],
)
def test_an_option_beyond_its_bounds_is_refused_by_its_key(kind: Any, use: Any, key: str):
    with pytest.raises(RecipeError, match=rf"^there\.{key}"):
        make(REGISTRY, kind, use, "there")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        *(("train", key, 10**13) for key in ("epochs", "steps", "batch_size", "accumulate", "workers", "skip")),
        *(("train", key, 10**13) for key in ("checkpoint_steps", "go_back", "pictures")),
        ("train", "workers", 100_000),
        ("optimizer", "betas", [2.0, 3.0]),
        ("optimizer", "clip", float("inf")),
        ("optimizer", "weight_decay", float("inf")),
        ("masking", "strategy_every", 10**13),
    ],
)
def test_a_key_beyond_its_bounds_is_refused(section: str, key: str, value: Any):
    with pytest.raises(RecipeError, match=rf"^recipe\.{section}\.{key}: "):
        Recipe.from_plain({section: {key: value}})


@pytest.mark.parametrize(
    "options", [{"foreach": "x"}, {"weight_decay": 1}, {"lr": 1.0}, {"eps": float("nan")}, {"zzz": 1}], ids=str
)
def test_options_that_an_optimizer_does_not_take_are_refused(options: dict[str, Any]):
    with pytest.raises(RecipeError, match=rf"^recipe\.optimizer\.options: .*{next(iter(options))}"):
        tiny_session("random", optimizer={"options": options})


@pytest.mark.parametrize("curriculum", ["linear:5:0", "linear:0:5"])
@pytest.mark.sampled(1)
def test_a_schedule_out_of_range_names_its_option(curriculum: str):
    option = "start" if curriculum == "linear:5:0" else "end"
    with pytest.raises(RecipeError, match=rf"^recipe\.masking\.curriculum: .*its {option} is 5"):
        tiny_session("attmask", masking={"curriculum": curriculum})


def test_a_decoder_beyond_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bounds, "machine_memory", lambda: 1000)
    with pytest.raises(RecipeError, match=r"^recipe\.objective\.decoder_dim: .*memory"):
        tiny_session("random")


@pytest.mark.parametrize("text", ["train-{0..999999999}.tar", "{0..999}{0..999}.tar", "{0.." + "9" * 5000 + "}.tar"])
def test_a_pattern_of_too_many_shards_is_refused(text: str):
    with pytest.raises(RecipeError, match="more than 100,000 shards"):
        check_ranges(text, "train_split")
    check_ranges("train-{0000..0146}.tar", "train_split")


def test_a_folder_that_cannot_be_listed_is_no_empty_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_folder(tmp_path)
    assert survey(str(tmp_path), (".png",)).count == 12
    with pytest.raises(DataError, match="cannot be listed"):
        survey(str(tmp_path / "gone"), (".png",))


def test_pretrained_weights_that_cannot_be_fetched_are_refused_at_once(monkeypatch: pytest.MonkeyPatch):
    def unreachable(*arguments: Any, **options: Any) -> None:
        raise OSError("no route")

    monkeypatch.setattr(adapter.socket, "create_connection", unreachable)
    monkeypatch.setattr(adapter, "try_to_load_from_cache", lambda *names: None)
    monkeypatch.setattr(adapter.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(adapter.urllib.request, "getproxies", dict)
    with pytest.raises(RecipeError, match=r"^there\.pretrained: .*cannot be reached"):
        make(REGISTRY, "backbone", {"use": "vit", "timm": "vit_tiny_patch16_224", "pretrained": True}, "there")


@pytest.mark.parametrize("value", ["1" + "0" * 30, "[" * 3000])
def test_what_set_cannot_read_is_told_with_its_key(value: str):
    with pytest.raises(MaskZooError, match=r"^recipe\.train\.steps: "):
        _set({}, f"train.steps={value}", REGISTRY)


@pytest.mark.parametrize("number", ["9" * 9, "x", "-1"])
def test_a_published_checkpoint_with_odd_numbers_of_blocks_is_refused(number: str):
    state = {
        "patch_embed.proj.weight": torch.zeros(8, 3, 4, 4),
        "pos_embed": torch.zeros(1, 5, 8),
        "decoder_embed.weight": torch.zeros(8, 8),
        "decoder_pos_embed": torch.zeros(1, 5, 8),
        f"blocks.{number}.norm1.weight": torch.zeros(8),
    }
    with pytest.raises(ContractError, match="does not fit"):
        official.load(state, "mae")
    for odd in ({"pos_embed": torch.zeros(1)}, {"patch_embed.proj.weight": torch.zeros(3)}):
        with pytest.raises(ContractError, match="does not fit"):
            official.load({**state, **odd}, "mae")
