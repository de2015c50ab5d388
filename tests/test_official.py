"""Published models, run by MaskZoo: latents, losses, gradients and training steps as their own code computes them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from maskzoo import ContractError, Mask, MaskingContext, official
from maskzoo.backbones.swin import SwinBackbone
from maskzoo.build import make_optimizer
from maskzoo.engine import Engine, Mover
from maskzoo.objectives.reconstruct import Reconstruct, unpatchify
from maskzoo.protocols import Batch
from maskzoo.recipe import OptimizerRecipe
from maskzoo.registry import Registry
from maskzoo.train import Session, train

GOLDEN = Path(__file__).parent / "data" / "golden"
VALUES = {"rtol": 1e-5, "atol": 1e-5}


def golden(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str]]:
    """Everything in the file, its state dict, and its hyper-parameters."""
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        settings = file.metadata() or {}
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    return tensors, state, settings


def load_golden(name: str, kind: str):
    tensors, state, settings = golden(name)
    options = {
        "num_heads": int(settings["num_heads"]),
        "decoder_num_heads": int(settings["decoder_num_heads"]),
        "norm_pix": settings["norm_pix_loss"] == "True",
    }
    objective, strategy = official.load(state, kind, **options)
    return objective, strategy, tensors


def in_order(latent: Tensor, mask: Tensor, ids_restore: Tensor) -> Tensor:
    """A published latent [B, 1 + V, D], whose patches are in shuffled order, with them in order of position."""
    visible = latent.shape[1] - 1
    position_of = ids_restore.argsort(dim=1)[:, :visible]
    order = position_of.argsort(dim=1)
    patches = latent[:, 1:].gather(1, order[..., None].expand(-1, -1, latent.shape[2]))
    return torch.cat([latent[:, :1], patches], dim=1)


def assert_gradients(module: torch.nn.Module, expected: dict[str, Tensor]) -> None:
    """Each parameter's gradient, by the published name, which ends our own."""
    ours = {name.removeprefix("backbone.model."): parameter for name, parameter in module.named_parameters()}
    assert set(expected) <= set(ours)
    trained = {name for name, parameter in ours.items() if parameter.grad is not None}
    assert trained == set(expected)
    for name, reference in expected.items():
        difference = (ours[name].grad - reference).norm() / reference.norm().clamp(min=1e-12)
        assert difference < 1e-4, f"{name}: relative difference {difference:.2e}"


def as_mask(hidden: Tensor) -> Mask:
    return Mask(hidden.bool(), int(hidden[0].sum()))


def test_mae_gives_the_published_latent_prediction_loss_and_every_gradient():
    objective, strategy, tensors = load_golden("mae_a", "mae")
    assert strategy is None
    outcome = objective(tensors["images"], as_mask(tensors["mask"]))
    latent = in_order(tensors["latent"], tensors["mask"], tensors["ids_restore"])
    torch.testing.assert_close(outcome.latent, latent, **VALUES)
    torch.testing.assert_close(outcome.prediction, tensors["pred"], **VALUES)
    torch.testing.assert_close(outcome.loss, tensors["loss"], **VALUES)
    outcome.loss.backward()
    assert_gradients(objective, {k.removeprefix("grad."): v for k, v in tensors.items() if k.startswith("grad.")})


def test_the_target_has_the_published_order_of_pixels():
    objective, _, tensors = load_golden("mae_a", "mae")
    objective.target = "pixels"
    torch.testing.assert_close(objective.targets(tensors["images"]), tensors["target_patches"], **VALUES)


def clmae_context(objective, tensors: dict[str, Tensor], factor: float) -> MaskingContext:
    return MaskingContext.of(objective, tensors["images"], 0.75, factor=factor, step=0)


def test_cl_mae_gives_the_published_tokens_keep_scores_and_hard_mask():
    objective, strategy, tensors = load_golden("clmae_a", "cl-mae")
    context = clmae_context(objective, tensors, 1.0)
    torch.testing.assert_close(objective.backbone.tokens(tensors["images"]), tensors["tokens"], **VALUES)
    torch.testing.assert_close(1 - strategy.scores(context), tensors["masker_keep"], **VALUES)
    mask = strategy.mask(context)
    assert torch.equal(mask.hidden, tensors["hard.mask"].bool())
    assert mask.count == 48


def test_cl_mae_gives_the_published_model_loss_and_gradients():
    objective, strategy, tensors = load_golden("clmae_a", "cl-mae")
    outcome = objective(tensors["images"], strategy.mask(clmae_context(objective, tensors, 1.0)))
    latent = in_order(tensors["hard.latent"], tensors["hard.mask"], tensors["hard.ids_restore"])
    torch.testing.assert_close(outcome.latent, latent, **VALUES)
    torch.testing.assert_close(outcome.prediction, tensors["hard.pred"], **VALUES)
    torch.testing.assert_close(outcome.loss, tensors["hard.loss"], **VALUES)
    outcome.loss.backward()
    expected = {k.removeprefix("hard.grad."): v for k, v in tensors.items() if k.startswith("hard.grad.")}
    assert_gradients(objective, expected)
    assert all(parameter.grad is None for parameter in strategy.parameters())


@pytest.mark.parametrize("factor", [1.0, -0.7])
def test_cl_mae_gives_the_published_masker_losses_and_gradients(factor: float):
    objective, strategy, tensors = load_golden("clmae_a", "cl-mae")
    context = clmae_context(objective, tensors, factor)
    mask = strategy.soft_mask(context)
    outcome = objective(context.images, mask)
    terms = strategy.terms(context, mask, outcome)
    torch.testing.assert_close(torch.stack(list(terms.values())), tensors["soft.losses"], **VALUES)
    loss = strategy.loss(context, mask, outcome)
    torch.testing.assert_close(loss, tensors[f"soft.total[{factor:+.1f}]"], **VALUES)
    loss.backward(inputs=list(strategy.parameters()))
    prefix = f"soft.grad[{factor:+.1f}]."
    expected = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    expected = {k.removeprefix("masking_net."): v for k, v in expected.items()}
    assert expected
    assert_gradients(strategy, expected)
    assert all(parameter.grad is None for parameter in objective.parameters())


def test_cl_mae_trains_four_alternating_steps_as_published():
    objective, strategy, tensors = load_golden("clmae_a", "cl-mae")
    registry = Registry()

    def constant(value: float):
        return registry.find("schedule", "constant")(value=value)

    adamw = OptimizerRecipe(lr=1e-3, weight_decay=0.05, betas=(0.9, 0.95))
    factors = iter(tensors["joint.factors"].tolist())
    session = Session(
        recipe={},
        objective=objective,
        strategy=strategy,
        teacher=None,
        engine=Engine(torch.device("cpu")),
        mover=Mover(make_optimizer(adamw, [objective], "")),
        strategy_mover=Mover(make_optimizer(adamw, [strategy], "")),
        lr=constant(1e-3),
        strategy_lr=constant(1e-3),
        ratio=constant(0.75),
        curriculum=lambda progress: next(factors),
        decay=constant(1.0),
        seed=0,
        steps=4,
        steps_in_epoch=4,
    )
    batches = [Batch(images, None, torch.arange(len(images))) for images in tensors["joint.images"]]
    names = ["loss", "clmae/reconstruction", "clmae/binary", "clmae/kl", "clmae/diversity", "clmae/loss"]
    losses = torch.tensor([[figures[name] for name in names] for figures in train(session, batches)])
    torch.testing.assert_close(losses, tensors["joint.losses"], **VALUES)


# -------------------------------------------------------------------------------------------------------------- SimMIM
def published(objective: Reconstruct) -> dict[str, Tensor]:
    """The state of a Swin with a linear head as SimMIM publishes it: the way back from ours."""
    state = {}
    channels, stride = objective.backbone.channels, objective.backbone.patch_size[0]
    for name, tensor in objective.state_dict().items():
        if name == "backbone.mask_token":
            state["encoder.mask_token"] = tensor.view(1, 1, -1)
        elif name.startswith("decoder_pred."):
            rows = tensor.view(stride, stride, channels, -1).permute(2, 0, 1, 3).reshape(len(tensor), -1)
            ending = name.removeprefix("decoder_pred.")
            state[f"decoder.0.{ending}"] = rows[:, 0] if ending == "bias" else rows[:, :, None, None]
        else:
            inner = name.removeprefix("backbone.model.")
            inner = re.sub(r"layers\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", inner)
            state[f"encoder.{inner}"] = tensor
    return state


def small_swin(size: int, window: int, channels: int = 3, patch: int = 4, **options: Any) -> Reconstruct:
    options = {"embed_dim": 8, "depths": [2, 2, 2], "num_heads": [1, 2, 2], "patch_size": patch, **options}
    objective = Reconstruct(decoder="linear", loss="l1", target="pixels")
    objective.setup(SwinBackbone(image_size=size, window_size=window, channels=channels, options=options))
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return objective


def load_simmim() -> tuple[Reconstruct, dict[str, Tensor], Mask]:
    tensors, state, settings = golden("simmim_swin_a")
    options = {
        "num_heads": json.loads(settings["num_heads"]),
        "window_size": int(settings["window_size"]),
        "encoder_stride": int(settings["encoder_stride"]),
    }
    objective, strategy = official.load(state, "simmim-swin", **options)
    assert strategy is None
    step = int(settings["mask_patch_size"]) // int(settings["patch_size"])
    return objective, tensors, as_mask(tensors["mask"][:, ::step, ::step].flatten(1))


def test_simmim_gives_the_published_latent_prediction_loss_and_gradients():
    objective, tensors, mask = load_simmim()
    assert torch.equal(mask.hidden_on((3, 3), 8), tensors["mask"].flatten(1).bool())
    outcome = objective(tensors["images"], mask)
    latent = tensors["latent"].flatten(2).transpose(1, 2)
    torch.testing.assert_close(outcome.latent, latent, **VALUES)
    torch.testing.assert_close(unpatchify(outcome.prediction, (3, 3), (32, 32)), tensors["pred"], **VALUES)
    torch.testing.assert_close(outcome.loss, tensors["loss"], **VALUES)
    outcome.loss.backward()
    ours = {name: parameter.grad for name, parameter in objective.named_parameters()}
    expected = {name.removeprefix("grad."): value for name, value in tensors.items() if name.startswith("grad.")}
    assert len(expected) > 40
    for name, reference in expected.items():
        grad = ours[name.replace("encoder.", "backbone." if name == "encoder.mask_token" else "backbone.model.")]
        assert (grad.view(reference.shape) - reference).norm() / reference.norm() < 1e-4, name


@pytest.mark.parametrize(
    ("size", "window", "more"),
    [
        (64, 4, {}),  # grids of 16, 8 and 4: the last is one window
        (32, 4, {}),  # 8, 4 and 2: the last is cut
        (32, 8, {}),  # one window in the first already
        (32, 12, {}),  # all are cut
        (48, 3, {"channels": 1}),
        (96, 6, {"depths": [1, 3, 2, 1], "num_heads": [2, 2, 4, 4]}),
        (24, 6, {"patch": 2, "depths": [2, 1], "num_heads": [1, 4], "mlp_ratio": 2.0, "embed_dim": 12}),
    ],
)
def test_every_size_of_a_published_swin_is_read_off_its_shapes(size: int, window: int, more: dict[str, Any]):
    original = small_swin(size, window, **more)
    state = published(original)
    state["encoder.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(1)
    loaded, _ = official.load({"model": state}, "simmim-swin")
    assert loaded.backbone.image_size == (size, size)
    assert (loaded.decoder, loaded.loss, loaded.target) == ("linear", "l1", "pixels")
    images = torch.randn(2, loaded.backbone.channels, size, size)
    units = math.prod(loaded.backbone.grid)
    mask = Mask.hide_top(torch.rand(2, units), units // 2)
    with torch.no_grad():
        assert torch.equal(loaded(images, mask).prediction, original(images, mask).prediction)
        assert torch.equal(loaded(images, mask).loss, original(images, mask).loss)


def test_images_of_several_windows_in_every_stage_are_told_by_attention_masks_an_option_or_themselves():
    original = small_swin(64, 2)  # grids of 16, 8 and 4
    state = published(original)
    masked = {
        f"encoder.layers.{stage}.blocks.1.attn_mask": torch.zeros((side // 2) ** 2, 4, 4)
        for stage, side in enumerate((16, 8, 4))
    }
    by_mask, _ = official.load(state | masked, "simmim-swin", window_size=2)
    by_option, _ = official.load(state, "simmim-swin", window_size=2, image_size=64)
    by_images, _ = official.load(state, "simmim-swin", window_size=2)
    assert by_mask.backbone.grid == by_option.backbone.grid == (4, 4)
    assert by_images.backbone.grid == (2, 2)
    images, mask = torch.randn(2, 3, 64, 64), Mask.hide_top(torch.rand(2, 16), 6)
    for loaded in (by_mask, by_option, by_images):
        with torch.no_grad():
            assert torch.equal(loaded(images, mask).prediction, original(images, mask).prediction)
        assert loaded.backbone.grid == (4, 4)
        assert torch.equal(loaded.backbone.tokens(images), original.backbone.tokens(images))


def test_only_images_that_whole_windows_cut_are_fitted_and_only_where_nothing_told_their_size():
    told, _ = official.load(published(small_swin(32, 4)), "simmim-swin")
    untold, _ = official.load(published(small_swin(64, 4)), "simmim-swin")
    for loaded, sizes in ((told, (64, 16)), (untold, (32, 96))):
        for size in sizes:
            units = (size // 16) ** 2
            with pytest.raises(ContractError, match="was built for images"):
                loaded(torch.randn(1, 3, size, size), Mask.hide_top(torch.rand(1, units), 1))
    untold(torch.randn(1, 3, 128, 64), Mask.hide_top(torch.rand(1, 32), 8))
    assert untold.backbone.grid == (8, 4)
    with torch.no_grad():  # and back again
        assert untold.backbone(torch.randn(1, 3, 64, 64)).shape == (1, 16, 32)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_heads": [1, 1, 2, 2]}, r"num_heads is \[1, 1, 2, 4\] there, not \[1, 1, 2, 2\]"),
        ({"window_size": 4}, "window_size is 6 there, not 4"),
        ({"window_size": 7}, "with windows of 7, its stages are of images of 24, 48, 96 pixels a side"),
        ({"encoder_stride": 16}, "encoder_stride is 32 there, not 16"),
        ({"image_size": 192}, "shapes do not fit"),
        ({"norm_pix": True}, "'simmim-swin' has no option norm_pix; its options are num_heads, window_size"),
    ],
)
def test_what_is_said_of_a_swin_must_agree_with_what_is_there(options: dict[str, Any], sentence: str):
    _, state, _ = golden("simmim_swin_a")
    with pytest.raises(ContractError, match=sentence):
        official.load(state, "simmim-swin", **options)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: {}, "lacks encoder.patch_embed.proj.weight"),
        (lambda state: state | {"encoder.absolute_pos_embed": torch.zeros(1)}, "left over"),
        (lambda state: {k: v for k, v in state.items() if k != "encoder.norm.bias"}, "missing"),
        (lambda state: state | {"decoder.0.weight": torch.zeros(768, 64, 1, 1)}, "its decoder gives 768 values"),
    ],
)
def test_a_swin_that_does_not_fit_is_refused_with_a_sentence(change, sentence: str):
    _, state, _ = golden("simmim_swin_a")
    with pytest.raises(ContractError, match=sentence):
        official.load(change(state), "simmim-swin")


@pytest.mark.parametrize(
    ("kind", "option"), [("mae", "masker_heads"), ("mae", "window_size"), ("cl-mae", "image_size")]
)
def test_an_option_of_another_kind_is_an_error_that_names_it(kind: str, option: str):
    _, state, _ = golden("mae_a")
    with pytest.raises(ContractError, match=f"'{kind}' has no option {option}; its options are num_heads"):
        official.load(state, kind, **{option: 4})


def test_an_unknown_kind_is_refused_with_those_that_are_known():
    with pytest.raises(ContractError, match="no published kind 'simmim'; known: mae, cl-mae, simmim-swin"):
        official.load({}, "simmim")


def test_a_state_dict_under_model_is_found():
    _, state, _ = golden("mae_a")
    objective, _ = official.load({"model": state, "epoch": 800}, "mae", num_heads=4, decoder_num_heads=4)
    assert torch.equal(objective.mask_token, state["mask_token"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: {k: v for k, v in state.items() if "decoder" not in k}, "encoder alone"),
        (lambda state: {}, "lacks patch_embed.proj.weight"),
        (lambda state: state | {"head.weight": torch.zeros(1)}, "left over"),
        (lambda state: {k: v for k, v in state.items() if k != "norm.bias"}, "missing"),
        (lambda state: state | {"mask_token": torch.zeros(1, 1, 5)}, "shapes do not fit"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_with_a_sentence(change, sentence: str):
    _, state, _ = golden("mae_a")
    with pytest.raises(ContractError, match=sentence):
        official.load(change(state), "mae", num_heads=4, decoder_num_heads=4)


@pytest.mark.parametrize(("sides", "told"), [((3, 15), "no square window"), ((4, 4), "no square"), ((3, 27), "2 x 14")])
def test_windows_that_are_no_squares_are_refused(sides: tuple[int, int], told: str):
    state = published(small_swin(64, 4))
    drawn = torch.Generator().manual_seed(0)
    smooth = torch.cartesian_prod(torch.arange(sides[0]).sin(), torch.arange(sides[1]).mul(0.3).cos())
    for name in [name for name in state if name.endswith("bias_table")]:
        table = torch.randn(len(smooth), state[name].shape[1], generator=drawn)
        state[name] = smooth @ torch.randn(2, state[name].shape[1], generator=drawn) if "2 x" in told else table
    with pytest.raises(ContractError, match=f"relative positions of its stage 0 are of .*{told}.*windows are square"):
        official.load(state, "simmim-swin")
