"""Published models, run by MaskZoo: latents, losses, gradients and training steps as their own code computes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from maskzoo import ContractError, Mask, MaskingContext, official
from maskzoo.build import make_optimizer
from maskzoo.engine import Engine, Mover
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
    objective.norm_pix = False
    torch.testing.assert_close(objective.target(tensors["images"]), tensors["target_patches"], **VALUES)


def clmae_context(objective, tensors: dict[str, Tensor], factor: float) -> MaskingContext:
    return MaskingContext.of(objective, tensors["images"], 0.75, factor=factor)


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
