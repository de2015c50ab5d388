"""What is hidden, how visible a patch is and how much it counts belong together, however a mask was made."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskzoo import Mask

SCORES = torch.rand(5, 12, generator=torch.Generator().manual_seed(0))
COUNT = 7


def made() -> dict[str, Mask]:
    hard, soft = Mask.hide_top(SCORES, COUNT), Mask.soft(SCORES, COUNT)
    return {
        "hard": hard,
        "soft": soft,
        "without scores": Mask(hard.hidden, COUNT),
        "visibility given": Mask(hard.hidden, COUNT, visibility=1 - SCORES),
        "enlarged": Mask.soft(SCORES, COUNT).enlarge((3, 4), 2),
        "inverted twice": soft.inverted().inverted(),
    }


def chances(mask: Mask) -> Tensor:
    """By how much each patch is hidden."""
    return mask.hidden.float() if mask.visibility is None else 1 - mask.visibility


@pytest.mark.parametrize("how", made())
def test_each_patch_counts_by_how_much_it_is_hidden(how: str):
    mask = made()[how]
    for one in (mask, mask.inverted()):
        torch.testing.assert_close(one.weights, chances(one))
        assert one.count is None or one.hidden.sum(dim=1).tolist() == [one.count] * 5


@pytest.mark.parametrize("how", made())
def test_the_inverse_hides_what_was_shown_and_its_scores_say_so(how: str):
    mask = made()[how]
    inverse = mask.inverted()
    assert inverse.hidden.equal(~mask.hidden)
    torch.testing.assert_close(chances(inverse), 1 - chances(mask))
    if mask.scores is not None:
        assert Mask.hide_top(inverse.scores, inverse.count).hidden.equal(inverse.hidden)
    if mask.visibility is not None and mask.scores is not None:
        torch.testing.assert_close(inverse.visibility, 1 - inverse.scores)
    again = inverse.inverted()
    assert again.hidden.equal(mask.hidden)
    torch.testing.assert_close(again.weights, mask.weights)


def test_weights_that_were_set_do_not_outlive_what_they_weighed():
    mask = Mask(Mask.hide_top(SCORES, COUNT).hidden, COUNT, weights=torch.full((5, 12), 3.0))
    assert mask.inverted().weights.equal((~mask.hidden).float())


def test_a_loss_of_the_inverse_reaches_the_scores():
    scores = SCORES.clone().requires_grad_()
    inverse = Mask.soft(scores, COUNT).inverted()
    (inverse.mean(torch.ones(5, 12) * torch.arange(12)) + inverse.visibility.sum()).backward()
    assert scores.grad.isfinite().all()
    assert scores.grad.abs().sum() > 0


def test_the_mean_of_the_inverse_is_over_what_it_hides():
    values = torch.arange(12.0).expand(5, 12)
    for mask in (Mask.hide_top(SCORES, COUNT), Mask.soft(SCORES, COUNT)):
        by_hand = (values * (1 - chances(mask))).sum() / (1 - chances(mask)).sum()
        torch.testing.assert_close(mask.inverted().mean(values), by_hand)
