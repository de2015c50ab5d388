"""Files of weights as methods publish and trainers leave them: where the encoder is found, and what is told of it."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import noise_images, random_batches, random_images, tiny_session
from safetensors.torch import save_file
from torch import Tensor

from maskzoo import RecipeError, Registry, checkpoint
from maskzoo.backbones.vit import sin_cos
from maskzoo.recipe import WeightsRecipe, make
from maskzoo.train import train
from maskzoo.weights import load_weights

REGISTRY = Registry()
State = dict[str, Any]
VIT: dict[str, Any] = {"embed_dim": 16, "depth": 2, "num_heads": 2}
USE: dict[str, dict[str, Any]] = {
    "vit": {"use": "vit", "timm": "vit_tiny_patch16_224", "patch_size": 8, "image_size": 32, "options": VIT},
    "no class token": {
        "use": "vit",
        "timm": "vit_tiny_patch16_224",
        "patch_size": 8,
        "image_size": 32,
        "options": {**VIT, "class_token": False},
    },
    "dinov2": {"use": "vit", "timm": "vit_small_patch14_dinov2", "image_size": 56, "options": VIT},
    "registers": {"use": "vit", "timm": "vit_small_patch14_reg4_dinov2", "image_size": 56, "options": VIT},
    "beit": {"use": "beit", "timm": "beit_base_patch16_224", "patch_size": 8, "image_size": 32, "options": VIT},
    "swin": {
        "use": "swin",
        "timm": "swin_tiny_patch4_window7_224",
        "image_size": 64,
        "window_size": 2,
        "options": {"embed_dim": 12, "depths": [1, 1, 1], "num_heads": [1, 2, 3]},
    },
    "resnet": {"use": "cnn", "timm": "resnet18", "image_size": 64, "options": {"layers": [1, 1, 1, 1]}},
    "convnextv2": {
        "use": "cnn",
        "timm": "convnextv2_atto",
        "image_size": 64,
        "options": {"depths": [1, 1, 1, 1], "dims": [4, 8, 12, 16]},
    },
}


def backbone_of(kind: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    made = make(REGISTRY, "backbone", USE[kind], "backbone")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        table = getattr(made.model, "pos_embed", None)
        if table is not None:  # trained positions tell of which grid they are
            table[:, table.shape[1] - math.prod(made.grid) :] += sin_cos(made.grid, table.shape[2])
    return made.eval()


def below(prefix: str, state: Mapping[str, Any]) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def other(state: Mapping[str, Tensor]) -> State:
    """Weights of the same names and shapes that are others."""
    return {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}


def projector(prefix: str) -> State:
    return {f"{prefix}.{number}.{name}": torch.ones(4) for number in (0, 2) for name in ("weight", "bias")}


def optimizer() -> State:
    return {"state": {0: {"step": 1, "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


def mae(inner: State) -> State:
    decoder = {"decoder_pos_embed": torch.ones(1, 17, 8), "decoder_embed.weight": torch.ones(8, 16)}
    blocks = {f"decoder_blocks.0.{name}": torch.ones(8) for name in ("norm1.weight", "norm1.bias")}
    return {**inner, "mask_token": torch.ones(1, 1, 8), **decoder, **blocks, "decoder_pred.bias": torch.ones(192)}


def mean_pooled(inner: State) -> State:
    """Names of a fine-tuned network whose norm is behind the mean of its tokens."""
    return {f"fc_{name}" if name.startswith("norm.") else name: value for name, value in inner.items()}


def beit_published(inner: State, shared: bool = False) -> State:
    """BEiT's own names: indices are kept in each block; while it is pretrained, all blocks share one table."""
    table = inner["blocks.0.attn.relative_position_bias_table"]
    index = {"blocks.0.attn.relative_position_index": torch.zeros(17, 17, dtype=torch.int64)}
    if not shared:
        renamed = {
            name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: v for name, v in inner.items()
        }
        return {**renamed, **index, "head.weight": torch.ones(3, 16)}
    kept = {name: value for name, value in inner.items() if "relative_position" not in name}
    table = {"rel_pos_bias.relative_position_bias_table": table, "mask_token": torch.ones(1, 1, 16)}
    return {**kept, **table, "lm_head.weight": torch.ones(9, 16), "lm_head.bias": torch.ones(9)}


def dinov2_registers(inner: State) -> State:
    """Facebook's names: positions have a place for the class token, and registers none."""
    state = {name: value for name, value in inner.items() if name not in ("reg_token", "pos_embed", "cls_token")}
    place = torch.full_like(inner["cls_token"], 0.5)
    return {
        "cls_token": inner["cls_token"] - place,
        "pos_embed": torch.cat([place, inner["pos_embed"]], dim=1),
        "register_tokens": inner["reg_token"],
        "mask_token": torch.ones(1, 16),
        **state,
    }


def swin_published(inner: State) -> State:
    """Microsoft's names: patches are merged at the end of a stage, not at the beginning of the next."""
    renamed = {}
    for name, value in inner.items():
        for stage in (1, 2):
            name = name.replace(f"layers.{stage}.downsample", f"layers.{stage - 1}.downsample")
        renamed[name] = value
    return {**renamed, "layers.0.blocks.0.attn.relative_position_index": torch.zeros(4, 4, dtype=torch.int64)}


def convnext_published(inner: State) -> State:
    """Facebook's names, of ConvNeXt V2 and FCMAE."""
    renamed = {}
    for name, value in inner.items():
        name = name.replace("stem.", "downsample_layers.0.")
        name = re.sub(r"stages\.(\d)\.downsample\.", r"downsample_layers.\1.", name)
        name = re.sub(r"stages\.(\d)\.blocks\.", r"stages.\1.", name)
        name = (
            name.replace("conv_dw", "dwconv").replace("mlp.grn.weight", "grn.gamma").replace("mlp.grn.bias", "grn.beta")
        )
        name = name.replace("mlp.fc", "pwconv")
        value = value[None, None, None] if "grn" in name else value
        renamed[name] = value
    return {name: value for name, value in renamed.items() if not name.startswith("head.")}


# name of the form: kind of backbone, file, the part that is to be said (None: found by itself), words that are told
FORMS: dict[str, tuple[str, Callable[[State], Any], str | None, tuple[str, ...]]] = {
    "bare": ("vit", lambda s: s, None, ()),
    "MAE, encoder": ("vit", lambda s: {"model": s}, None, ("taken from 'model' (30 tensors",)),
    "MAE, with decoder": (
        "vit",
        lambda s: {"model": mae(s), "optimizer": optimizer(), "epoch": 3, "args": argparse.Namespace(lr=1)},
        None,
        ("mask_token", "decoder_pos_embed", "decoder_embed", "decoder_blocks (2 tensors)"),
    ),
    "MAE, fine-tuned with mean pooling": (
        "vit",
        lambda s: {
            "model": {
                name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: v for name, v in s.items()
            }
            | {"head.weight": torch.ones(3, 16), "head.bias": torch.ones(3)}
        },
        None,
        ("left out: head (2 tensors)",),
    ),
    "timm's trainer": (
        "vit",
        lambda s: {"epoch": 1, "arch": "vit", "state_dict": s, "state_dict_ema": other(s), "optimizer": optimizer()},
        None,
        ("taken from 'state_dict'", "'state_dict_ema' (30 tensors)"),
    ),
    "its average": (
        "vit",
        lambda s: {"state_dict": other(s), "state_dict_ema": s},
        "state_dict_ema",
        ("taken from 'state_dict_ema'", "'state_dict' (30 tensors)"),
    ),
    "model and model_ema": (
        "vit",
        lambda s: {"model": s, "model_ema": other(s)},
        None,
        ("taken from 'model'", "'model_ema' (30 tensors)"),
    ),
    "SimMIM": (
        "swin",
        lambda s: {
            "model": below("encoder.", swin_published(s))
            | {"encoder.mask_token": torch.ones(1, 1, 12), "decoder.0.weight": torch.ones(768, 48, 1, 1)}
        },
        None,
        ("taken from 'model.encoder'", "mask_token", "decoder"),
    ),
    "I-JEPA": (
        "no class token",
        lambda s: {
            "encoder": below("module.", other(s)),
            "predictor": {"module.predictor_pos_embed": torch.ones(1, 16, 8)},
            "target_encoder": below("module.", s),
            "opt": optimizer(),
            "epoch": 300,
        },
        "target_encoder",
        ("taken from 'target_encoder'", "'encoder' (29 tensors)", "'predictor' (1 tensor)"),
    ),
    "iBOT": (
        "vit",
        lambda s: {
            "student": below("module.backbone.", other(s)) | projector("module.head.mlp"),
            "teacher": below("backbone.", s) | projector("head.mlp"),
            "optimizer": optimizer(),
            "ibot_loss": {"center": torch.ones(1, 4)},
        },
        "teacher",
        ("taken from 'teacher.backbone'", "head (4 tensors)"),
    ),
    "AttMask": (
        "vit",
        lambda s: {
            "student": below("module.backbone.", s) | {"module.backbone.masked_embed": torch.ones(1, 16)},
            "teacher": below("backbone.", other(s)),
        },
        "student",
        ("taken from 'student.module.backbone'", "masked_embed"),
    ),
    "DINO": (
        "vit",
        lambda s: {"teacher": below("backbone.", s) | projector("head.mlp")},
        None,
        ("'teacher.backbone'",),
    ),
    "SparK, encoder": ("resnet", lambda s: {**s, "fc.weight": torch.ones(2, 8)}, None, ("left out: fc",)),
    "SparK, whole": (
        "resnet",
        lambda s: {"module": below("sparse_encoder.sp_cnn.", s) | projector("dense_decoder.dec")},
        None,
        ("taken from 'module.sparse_encoder.sp_cnn'", "dense_decoder (4 tensors)"),
    ),
    "ConvNeXt V2": ("convnextv2", lambda s: {"model": convnext_published(s)}, None, ()),
    "FCMAE, whole": (
        "convnextv2",
        lambda s: {
            "model": below("encoder.", convnext_published(s))
            | {"mask_token": torch.ones(1, 4, 1, 1), "proj.weight": torch.ones(8, 16, 1, 1), "proj.bias": torch.ones(8)}
            | {"decoder.0.dwconv.weight": torch.ones(8, 1, 7, 7), "pred.bias": torch.ones(9)}
        },
        None,
        ("taken from 'model.encoder'", "pred"),
    ),
    "solo-learn": (
        "vit",
        lambda s: {"state_dict": below("backbone.", s) | projector("projector"), "hyper_parameters": {"lr": 0.1}},
        None,
        ("taken from 'state_dict.backbone'", "projector (4 tensors)"),
    ),
    "solo-learn, momentum": (
        "resnet",
        lambda s: {
            "state_dict": below("backbone.", other(s)) | below("momentum_backbone.", s) | projector("projector")
        },
        "momentum_backbone",
        ("taken from 'state_dict.momentum_backbone'", "backbone (", "projector (4 tensors)"),
    ),
    "lightly": (
        "vit",
        lambda s: {"state_dict": below("backbone.vit.", s) | projector("projection_head.layers")},
        None,
        ("taken from 'state_dict.backbone.vit'", "projection_head (4 tensors)"),
    ),
    "Lightning": (
        "vit",
        lambda s: {
            "state_dict": below("model.backbone.", s) | {"criterion.weight": torch.ones(3)},
            "hyper_parameters": {"lr": 0.1},
            "optimizer_states": [optimizer()],
            "pytorch-lightning_version": "2.0",
        },
        None,
        ("taken from 'state_dict.model.backbone'", "criterion"),
    ),
    "DDP": ("vit", lambda s: below("module.", s), None, ("taken from 'module'",)),
    "compiled, in DDP": ("vit", lambda s: {"model": below("module._orig_mod.", s)}, None, ()),
    "FSDP": ("vit", lambda s: below("_fsdp_wrapped_module.", s), None, ()),
    "lost in nets": ("vit", lambda s: {"net": {"student": below("a.b.c.", s)}}, None, ("'net.student.a.b.c'",)),
    "BEiT, fine-tuned": (
        "beit",
        lambda s: {"model": beit_published(s)},
        None,
        ("head", "newly initialised: mask_token"),
    ),
    "BEiT, DeepSpeed": ("beit", lambda s: {"module": beit_published(s), "lr_scheduler": None}, None, ()),
    "DINOv2": ("dinov2", lambda s: {**s, "mask_token": torch.ones(1, 16)}, None, ("left out: mask_token",)),
    "DINOv2, blocks in chunks": (
        "dinov2",
        lambda s: {
            "teacher": below("backbone.", {re.sub(r"^blocks.(\d).", r"blocks.0.\1.", name): s[name] for name in s})
            | projector("dino_head.mlp")
        },
        None,
        ("dino_head (4 tensors)",),
    ),
    "DINOv2 with registers": ("registers", dinov2_registers, None, ("left out: mask_token",)),
    "a head for every task": (
        "vit",
        lambda s: {
            **s,
            "head.weight": torch.ones(2, 16),
            "projector.0.weight": torch.ones(3),
            "fc_norm.bias": torch.ones(16),
        },
        None,
        ("head", "projector", "fc_norm"),
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.sampled(8)
def test_a_published_form_gives_the_features_of_its_encoder(form: str, tmp_path: Path):
    kind, publish, part, told = FORMS[form]
    expected = backbone_of(kind)
    torch.save(publish(expected.model.state_dict()), tmp_path / "weights.pth")
    backbone = backbone_of(kind, seed=1)
    lines = load_weights(backbone, WeightsRecipe(str(tmp_path / "weights.pth"), part))
    images = random_images(2, height=backbone.image_size[0], width=backbone.image_size[1])
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), expected(images), rtol=0, atol=1e-6 if "registers" in form else 0)
    assert all(line.startswith("weights: ") for line in lines)
    assert all(any(words in line for line in lines) for words in told), lines


def test_a_table_that_beit_s_blocks_share_is_that_of_each(tmp_path: Path):
    expected = backbone_of("beit")
    state = expected.model.state_dict()
    with torch.no_grad():
        for name, value in state.items():
            if name.endswith("relative_position_bias_table"):
                value.copy_(state["blocks.0.attn.relative_position_bias_table"])
    torch.save({"model": beit_published(state, shared=True)}, tmp_path / "w.pth")
    backbone = backbone_of("beit", seed=1)
    load_weights(backbone, tmp_path / "w.pth")
    images = random_images(2)
    with torch.no_grad():
        assert torch.equal(backbone(images), expected(images))


@pytest.mark.parametrize("channels", [1, 2, 4, 12])
def test_weights_for_three_channels_are_refused_and_adapted_as_timm_does_where_that_is_asked_for(
    channels: int, tmp_path: Path
):
    state = backbone_of("vit").model.state_dict()
    torch.save(state, tmp_path / "w.pth")
    backbone = make(REGISTRY, "backbone", {**USE["vit"], "channels": channels}, "backbone")
    with pytest.raises(RecipeError, match=rf"weights\.channels = 'adapt' makes weights for {channels} channels"):
        load_weights(backbone, tmp_path / "w.pth")
    (told,) = load_weights(backbone, WeightsRecipe(str(tmp_path / "w.pth"), channels="adapt"))
    assert f"for {channels}: model.patch_embed.proj.weight" in told
    kernel, given = backbone.model.patch_embed.proj.weight, state["patch_embed.proj.weight"]
    expected = given.sum(1, keepdim=True) if channels == 1 else given.repeat(1, 4, 1, 1)[:, :channels] * 3 / channels
    torch.testing.assert_close(kernel, expected)


@pytest.mark.parametrize(
    ("adapter", "name", "size", "other"),
    [("vit", "eva02_tiny_patch14_224", 28, (28, 112)), ("beit", "beit_base_patch16_224", 32, (32, 128))],
)
def test_a_norm_behind_the_pooling_is_not_missed_where_the_grid_is_what_is_not_known(
    adapter: str, name: str, size: int, other: tuple[int, int], tmp_path: Path
):
    torch.manual_seed(0)
    options = {"embed_dim": 24, "depth": 1, "num_heads": 2}
    state = timm.create_model(name, img_size=other, **options).state_dict()
    state = {one: torch.randn_like(value) if value.is_floating_point() else value for one, value in state.items()}
    torch.save(state, tmp_path / "w.pth")
    use = {"use": adapter, "timm": name, "image_size": size, "options": options}
    backbone = make(REGISTRY, "backbone", use, "backbone")
    with pytest.raises(RecipeError, match=r"does not tell where its positions lie.* 2 x 8"):
        load_weights(backbone, tmp_path / "w.pth")
    told = load_weights(backbone, WeightsRecipe(str(tmp_path / "w.pth"), grid=(2, 8)))
    assert any("2 x 8 were resized to 2 x 2" in one for one in told)


def test_another_width_is_not_taken_for_another_number_of_channels(tmp_path: Path):
    state = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, **{**VIT, "embed_dim": 48}
    ).state_dict()
    assert "adapt" not in refusal(state, tmp_path)


# ----------------------------------------------------------------------------------------------------- which of several
def refusal(content: Any, tmp_path: Path, kind: str = "vit", part: str | None = None) -> str:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(RecipeError) as caught:
        load_weights(backbone_of(kind), WeightsRecipe(str(tmp_path / "weights.pth"), part))
    assert str(caught.value).startswith(f"recipe.weights: '{tmp_path / 'weights.pth'}' ")
    return str(caught.value)


def test_where_several_parts_fit_they_are_listed_with_the_key_that_chooses(tmp_path: Path):
    state = backbone_of("vit").model.state_dict()
    both = {"student": below("module.backbone.", state), "teacher": below("backbone.", state), "x": torch.ones(1)}
    told = refusal(both, tmp_path)
    assert "holds 'student.module.backbone' (30 tensors, 9,968 numbers), 'teacher.backbone' (30 tensors," in told
    assert told.endswith("say which, e.g. weights.part = 'student.module.backbone'")


def test_a_table_inside_of_itself_is_read_once(tmp_path: Path):
    held: State = {"model": backbone_of("vit").model.state_dict()}
    held["again"] = held
    torch.save(held, tmp_path / "w.pth")
    assert "taken from 'model'" in load_weights(backbone_of("vit", 1), tmp_path / "w.pth")[0]


def test_what_wraps_a_network_is_not_told_as_its_name(tmp_path: Path):
    state = backbone_of("vit").model.state_dict()
    both = {**below("module.base_encoder.", state), **below("module.momentum_encoder.", other(state))}
    torch.save({"state_dict": {**both, "module.queue": torch.ones(3)}}, tmp_path / "w.pth")
    lines = load_weights(backbone_of("vit", 1), WeightsRecipe(str(tmp_path / "w.pth"), "momentum_encoder"))
    assert lines[1:] == ["weights: left out: base_encoder (30 tensors), queue"]


def test_a_token_that_this_backbone_does_not_have_is_named_and_no_grid_asked_for(tmp_path: Path):
    options = {"img_size": 32, "patch_size": 8, **VIT}
    told = refusal(timm.create_model("deit_tiny_distilled_patch16_224", **options).state_dict(), tmp_path)
    assert "holds besides model.dist_token" in told


def test_a_part_that_is_not_there_is_said_with_those_that_are(tmp_path: Path):
    state = backbone_of("vit").model.state_dict()
    told = refusal({"encoder": state, "opt": optimizer()}, tmp_path, part="target_encoder")
    assert "holds no part 'target_encoder' that fits this backbone. It holds 'encoder' (30 tensors" in told


def test_a_file_of_another_network_is_told_with_what_it_holds_and_what_is_wanted(tmp_path: Path):
    told = refusal({"model": backbone_of("resnet").model.state_dict(), "epoch": 1}, tmp_path)
    assert "holds nothing that fits this backbone. It holds 'model' (" in told
    assert "first conv1.weight, bn1.weight, bn1.bias and" in told
    assert "The backbone wants 30 tensors, 9,968 numbers: width 16, 3 channels, 8 x 8 pixels, blocks" in told


def test_names_of_transformers_are_told_as_such(tmp_path: Path):
    state = {"vit.embeddings.patch_embeddings.projection.weight": torch.ones(4, 3, 8, 8), "vit.x.bias": torch.ones(2)}
    assert refusal(state, tmp_path).endswith("timm's are wanted; timm has many of the same weights")


def test_a_wider_network_is_told_by_its_width(tmp_path: Path):
    wide = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=2)
    told = refusal({"teacher": below("backbone.", wide.state_dict())}, tmp_path)
    assert "does not fit this backbone: its part 'teacher.backbone' " in told
    assert "it seems to be of width 24, 3 channels, 8 x 8 pixels, blocks or stages: 3" in told
    assert told.endswith("the backbone is of width 16, 3 channels, 8 x 8 pixels, blocks or stages: 2")


def test_an_encoder_without_class_token_says_which_backbone_takes_it(tmp_path: Path):
    told = refusal({"target_encoder": below("module.", backbone_of("no class token").model.state_dict())}, tmp_path)
    assert "its part 'target_encoder' lacks model.cls_token" in told
    assert told.endswith("backbone.options.class_token = false makes a backbone without a class token")


def test_what_would_change_features_is_not_left_out(tmp_path: Path):
    state = backbone_of("vit").model.state_dict()
    for name in ("reg_token", "norm_pre.weight", "rel_pos_bias.relative_position_bias_table", "blocks.0.ls1.gamma"):
        assert "holds besides" in refusal({**state, name: torch.ones(4, 4)}, tmp_path), name


# -------------------------------------------------------------------------------------------------------- what is told
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_number_formats_become_float32_and_are_told(dtype: torch.dtype, tmp_path: Path):
    state = {name: value.to(dtype) for name, value in backbone_of("vit").model.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    backbone = backbone_of("vit", seed=1)
    lines = load_weights(backbone, tmp_path / "w.safetensors")
    assert lines == [f"weights: {str(dtype).removeprefix('torch.')} became float32"]
    assert torch.equal(backbone.model.norm.weight, state["norm.weight"].float())
    assert backbone.model.norm.weight.dtype == torch.float32


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value: float, tmp_path: Path):
    state = backbone_of("vit").model.state_dict()
    state["blocks.1.norm1.weight"][0] = value
    assert "values that are not finite (NaN or infinite) in model.blocks.1.norm1.weight" in refusal(state, tmp_path)


def test_whole_numbers_are_no_weights(tmp_path: Path):
    state = backbone_of("vit").model.state_dict()
    state["norm.weight"] = torch.ones(16, dtype=torch.int8)
    assert "holds torch.int8 in model.norm.weight" in refusal(state, tmp_path)


@pytest.mark.parametrize(
    "odd",
    [lambda t: t.to_sparse(), lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), lambda t: t.to("meta")],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_without_plain_numbers_are_refused(odd: Any, tmp_path: Path):
    state = backbone_of("vit").model.state_dict()
    state["norm.weight"] = odd(state["norm.weight"])
    assert "without plain numbers (sparse, quantised or empty ones): model.norm.weight" in refusal(state, tmp_path)


@pytest.mark.slow
def test_counts_of_batches_that_are_not_there_change_nothing(tmp_path: Path):
    expected = backbone_of("resnet")
    state = {name: v for name, v in expected.model.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pth")
    backbone = backbone_of("resnet", seed=1)
    assert load_weights(backbone, tmp_path / "w.pth") == []
    images = random_images(2, height=64, width=64)
    with torch.no_grad():
        assert torch.equal(backbone(images), expected(images))


def test_which_of_several_parts_is_asked_before_which_grid(tmp_path: Path):
    state = backbone_of("vit").model.state_dict()
    state["pos_embed"] = torch.randn(state["pos_embed"].shape, generator=torch.Generator().manual_seed(0))
    assert "say which, e.g. weights.part = 'encoder'" in refusal({"encoder": state, "target_encoder": state}, tmp_path)
    told = refusal({"encoder": state, "target_encoder": state}, tmp_path, part="target_encoder")
    assert "4 x 4, 2 x 8 or 8 x 2" in told


@pytest.mark.slow
def test_a_run_gives_its_teacher_where_that_is_asked_for(tmp_path: Path):
    session = tiny_session("attmask", dataset=noise_images())
    list(train(session, random_batches(2)))
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    checkpoint.save(session, tmp_path / "run" / "checkpoints")
    images = random_images(2)
    for part, module in ((None, session.objective), ("teacher", session.teacher.module)):  # type: ignore[union-attr]
        after = tiny_session(weights={"file": str(tmp_path / "run"), **({"part": part} if part else {})})
        with torch.no_grad():
            assert torch.equal(after.objective.eval().backbone(images), module.eval().backbone(images))
