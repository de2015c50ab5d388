"""Starting from weights that were learnt before: of a run, of timm, of a paper; what is resized, left out, refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import noise_images, random_batches, random_images, state_of, tiny_objective, tiny_session
from safetensors.torch import load_file, save_file

from maskzoo import RecipeError, checkpoint, official
from maskzoo.backbones.vit import VitBackbone
from maskzoo.build import parameter_groups
from maskzoo.recipe import OptimizerRecipe, WeightsRecipe
from maskzoo.train import train
from maskzoo.weights import load_weights

SMALL: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 2}
GOLDEN = Path(__file__).parent / "data" / "golden"


def vit(size: int | tuple[int, int] = 32, **options: Any) -> VitBackbone:
    return VitBackbone(**{"image_size": size, "patch_size": 8, "options": SMALL, **options})


def timm_vit(classes: int = 7, **options: Any) -> Any:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=classes, **{**SMALL, **options}
    )


def trained(folder: Path, **sections: Any) -> Any:
    """A session that has moved, and left a checkpoint in a run's folder."""
    session = tiny_session(**sections)
    list(train(session, random_batches(2)))
    (folder / "checkpoints").mkdir(parents=True)
    checkpoint.save(session, folder / "checkpoints")
    return session


# -------------------------------------------------------------------------------------------------- where they are from
@pytest.mark.parametrize("named", ["the run", "the checkpoint"])
def test_a_run_goes_on_where_another_ended(named: str, tmp_path: Path):
    before = trained(tmp_path / "run")
    path = tmp_path / "run" if named == "the run" else checkpoint.found(tmp_path / "run" / "checkpoints")[-1]
    after = tiny_session(dataset=noise_images(labelled=True), objective="classify", weights=str(path))
    images = random_images()
    assert torch.equal(after.objective.backbone(images), before.objective.backbone(images))
    assert after.recipe["weights"] == str(path)


def test_the_teacher_starts_from_the_weights_too(tmp_path: Path):
    before = trained(tmp_path / "run")
    after = tiny_session("attmask", weights=str(tmp_path / "run"))
    images = random_images()
    assert torch.equal(after.teacher.module.backbone(images), before.objective.eval().backbone(images))  # type: ignore[union-attr]


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_a_timm_checkpoint_is_taken_without_its_classifier(ending: str, tmp_path: Path):
    model, path = timm_vit(), tmp_path / f"model{ending}"
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, path) if ending == ".safetensors" else torch.save({"state_dict": state}, path)
    backbone = vit()
    load_weights(backbone, WeightsRecipe(str(path), grid=(4, 4)))
    images = random_images()
    torch.testing.assert_close(backbone.eval()(images), model.eval().forward_features(images))


def test_published_mae_weights_are_taken_without_the_decoder(tmp_path: Path):
    tensors = load_file(GOLDEN / "mae_a.safetensors")
    state = {name.removeprefix("state."): value for name, value in tensors.items() if name.startswith("state.")}
    torch.save({"model": state}, tmp_path / "mae.pth")
    expected, _ = official.load(state, "mae", num_heads=4, decoder_num_heads=4)
    width, patch = state["patch_embed.proj.weight"].shape[0], state["patch_embed.proj.weight"].shape[-1]
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    options = {"embed_dim": width, "depth": depth, "num_heads": 4}
    backbone = VitBackbone(image_size=32, patch_size=patch, position="sin-cos", options=options)
    load_weights(backbone, tmp_path / "mae.pth")
    images = random_images()
    torch.testing.assert_close(backbone(images), expected.backbone(images))


# ---------------------------------------------------------------------------------------------------------- other sizes
def test_learned_positions_are_resized_as_timm_does(tmp_path: Path):
    model = timm_vit()
    torch.save(model.state_dict(), tmp_path / "model.pth")
    backbone = vit((48, 64))
    load_weights(backbone, WeightsRecipe(str(tmp_path / "model.pth"), grid=(4, 4)))
    model.set_input_size(img_size=(48, 64))
    images = random_images(height=48, width=64)
    torch.testing.assert_close(backbone.eval()(images), model.eval().forward_features(images))


@pytest.mark.slow
def test_fixed_positions_follow_the_new_size(tmp_path: Path):
    trained(tmp_path / "run")
    larger = noise_images(height=48, width=40)
    fresh, after = tiny_session(dataset=larger), tiny_session(dataset=larger, weights=str(tmp_path / "run"))
    models = fresh.objective.backbone.model, after.objective.backbone.model  # type: ignore[attr-defined]
    assert torch.equal(models[0].pos_embed, models[1].pos_embed)
    assert not torch.equal(models[0].blocks[0].attn.qkv.weight, models[1].blocks[0].attn.qkv.weight)


# ------------------------------------------------------------------------------------------------------------- refusals
def test_what_does_not_fit_is_named(tmp_path: Path):
    def refused(state: Any, sentence: str) -> None:
        torch.save(state, tmp_path / "model.pth")
        backbone = vit()
        before = state_of(backbone)
        with pytest.raises(RecipeError, match=sentence):
            load_weights(backbone, tmp_path / "model.pth")
        assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())

    whole = timm_vit().state_dict()
    without = {name: value for name, value in whole.items() if "norm1" not in name}
    refused(without, r"recipe\.weights: '.*model\.pth' does not fit this backbone: it lacks model\.blocks\.0\.norm1")
    refused({**whole, "blocks.2.norm1.weight": torch.ones(24)}, r"holds besides model\.blocks\.2\.norm1\.weight;")
    refused({**whole, "norm.weight": torch.ones(23)}, r"holds model\.norm\.weight \[23\], not \[24\]")
    refused(
        timm_vit(embed_dim=48).state_dict(), r"holds model\.cls_token \[1, 1, 48\], not \[1, 1, 24\].* and \d+ more"
    )


@pytest.mark.parametrize(
    ("content", "sentence"), [(None, "there is no"), (b"", "cannot be read"), (b"PK\x03\x04 no zip", "cannot be read")]
)
def test_a_file_that_cannot_be_read_is_said(content: bytes | None, sentence: str, tmp_path: Path):
    path = tmp_path / "model.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=rf"recipe\.weights: .*{sentence}|recipe\.weights: '.*' {sentence}"):
        load_weights(vit(), path)


def test_a_run_without_a_checkpoint_is_said(tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(RecipeError, match="has no checkpoint yet"):
        load_weights(vit(), tmp_path)


def test_a_file_that_would_run_something_is_refused(tmp_path: Path):
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": {"weight": Evil()}}, tmp_path / "model.pth")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_weights(vit(), tmp_path / "model.pth")
    assert not (tmp_path / "ran").exists()


# ---------------------------------------------------------------------------------------------------------- layer decay
def test_each_layer_moves_at_the_rate_of_the_next_times_the_decay():
    objective = tiny_objective()
    groups = parameter_groups(OptimizerRecipe(layer_decay=0.5), objective, "recipe.optimizer", objective.backbone)
    scale = {id(parameter): group.get("lr_scale", 1.0) for group in groups for parameter in group["params"]}
    model = objective.backbone.model
    assert scale[id(model.cls_token)] == scale[id(model.patch_embed.proj.weight)] == 0.125
    assert scale[id(model.blocks[0].mlp.fc1.weight)] == 0.25
    assert scale[id(model.blocks[1].mlp.fc1.weight)] == 0.5
    assert scale[id(model.norm.weight)] == 0.5  # timm counts it to the last block
    assert scale[id(objective.decoder_pred.weight)] == scale[id(objective.mask_token)] == 1.0
    trained = [id(parameter) for parameter in objective.parameters() if parameter.requires_grad]
    assert sorted(scale) == sorted(trained)


def test_what_is_decayed_is_the_same_with_and_without_layer_decay():
    objective = tiny_objective()

    def decayed(layer_decay: float | None) -> dict[int, float]:
        recipe = OptimizerRecipe(layer_decay=layer_decay)
        groups = parameter_groups(recipe, objective, "recipe.optimizer", objective.backbone)
        return {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}

    assert decayed(0.5) == decayed(None)
    assert set(decayed(None).values()) == {0.0, 0.05}


def test_the_rates_are_those_of_the_schedule_times_each_layers():
    session = tiny_session(
        dataset=noise_images(labelled=True),
        objective="classify",
        optimizer={"lr": 0.01, "layer_decay": 0.5},
    )
    session.mover.set_lr(session.lr(0.0))
    rates = sorted({round(group["lr"], 6) for group in session.mover.optimizer.param_groups})
    assert rates == [0.00125, 0.0025, 0.005, 0.01]


@pytest.mark.parametrize("decay", [0.0, 1.5])
def test_a_layer_decay_that_is_none_is_refused(decay: float):
    with pytest.raises(RecipeError, match=r"recipe\.optimizer\.layer_decay: must be"):
        tiny_session(optimizer={"layer_decay": decay})


def test_a_learner_has_no_layers_to_decay():
    with pytest.raises(RecipeError, match=r"recipe\.masking\.optimizer\.layer_decay: is for the backbone's layers"):
        tiny_session("clmae", masking={"optimizer": {"layer_decay": 0.5}})


@pytest.mark.slow
def test_a_head_that_is_not_trained_is_no_layer():
    backbone = {"timm": "convnext_atto", "image_size": 64}  # whose norm lies behind the map of features
    session = tiny_session(
        dataset=noise_images(labelled=True), backbone=backbone, objective="classify", optimizer={"layer_decay": 0.5}
    )
    scales = sorted({group.get("lr_scale", 1.0) for group in session.mover.optimizer.param_groups})
    assert scales[-3:] == [0.25, 0.5, 1.0]


@pytest.mark.parametrize("named", ["", "photos"])
def test_a_folder_that_holds_no_weights_is_refused(named: str, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(RecipeError, match=r"^recipe\.weights: the folder '.*' is neither a run nor a checkpoint$"):
        load_weights(vit(), tmp_path / named)
