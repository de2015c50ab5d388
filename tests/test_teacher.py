"""The teacher: a moving average that is always runnable, never trained, and survives saving and loading."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from maskzoo import Mask
from maskzoo.backbones.vit import VitBackbone
from maskzoo.objectives.reconstruct import Reconstruct
from maskzoo.teacher import Teacher

DECAYS = [0.5, 0.9, 0.0, 1.0, 0.996]


class Small(nn.Module):
    """Parameters, one of them frozen, floating and integer buffers, and a dropout that eval mode silences."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.dropout = nn.Dropout(0.5)
        self.last = nn.Linear(6, 2)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, values: Tensor) -> Tensor:
        return self.last(self.dropout(self.norm(self.first(values)))) * self.frozen


def small(seed: int = 0) -> Small:
    torch.manual_seed(seed)
    return Small()


def train_a_little(student: nn.Module, seed: int) -> None:
    """Move every parameter and every buffer."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter))
    student.train()(torch.randn(8, 4))


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def objective(seed: int = 0) -> Reconstruct:
    torch.manual_seed(seed)
    options = {"embed_dim": 24, "depth": 1, "num_heads": 2}
    result = Reconstruct(decoder_dim=16, decoder_depth=1)
    result.setup(VitBackbone(options=options, image_size=16, patch_size=4, position="sin-cos"))
    return result


def test_following_averages_every_parameter_by_hand():
    student = small()
    teacher = Teacher(student)
    expected = parameters_of(student)
    for step, decay in enumerate(DECAYS):
        train_a_little(student, step)
        teacher.follow(student, decay)
        new = parameters_of(student)
        expected = {name: decay * old + (1 - decay) * new[name] for name, old in expected.items()}
        for name, parameter in teacher.module.named_parameters():
            torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-5, atol=1e-6)
            assert not torch.equal(parameter, new[name]) or decay == 0.0


def test_a_decay_of_one_keeps_the_teacher_and_of_zero_makes_it_the_student():
    student = small()
    teacher = Teacher(student)
    start = parameters_of(student)
    train_a_little(student, 1)
    teacher.follow(student, 1.0)
    assert_same(parameters_of(teacher.module), start)
    teacher.follow(student, 0.0)
    for name, parameter in teacher.module.named_parameters():
        torch.testing.assert_close(parameter.detach(), parameters_of(student)[name], rtol=0, atol=1e-6)


def test_buffers_are_copied_whatever_the_decay():
    student = small()
    teacher = Teacher(student)
    for step, decay in enumerate([1.0, 0.5, 0.0]):
        train_a_little(student, step)
        assert not torch.equal(teacher.module.norm.running_mean, student.norm.running_mean)
        teacher.follow(student, decay)
        assert_same(dict(teacher.module.named_buffers()), dict(student.named_buffers()))
        assert teacher.module.norm.num_batches_tracked == step + 1
        for mine, theirs in zip(teacher.module.buffers(), student.buffers(), strict=True):
            assert mine.data_ptr() != theirs.data_ptr()


def test_the_student_is_not_touched():
    student = small()
    for parameter in student.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    state = copy.deepcopy(student.state_dict())
    wanted = [parameter.requires_grad for parameter in student.parameters()]
    teacher = Teacher(student)
    for decay in DECAYS:
        teacher.follow(student, decay)
    with torch.no_grad():
        teacher.module(torch.randn(3, 4))
        for parameter in teacher.module.parameters():
            parameter.zero_()
    assert student.training
    assert [parameter.requires_grad for parameter in student.parameters()] == wanted
    assert_same(student.state_dict(), state)
    assert all((p.grad == 1).all() for p in student.parameters() if p.requires_grad)


def test_a_teacher_is_in_eval_mode_whatever_is_asked():
    student = small().train()
    teacher = Teacher(student)
    assert not any(module.training for module in teacher.module.modules())
    assert teacher.train() is teacher
    assert not any(module.training for module in teacher.modules())
    owner = nn.ModuleDict({"student": student, "teacher": teacher})
    owner.train()
    assert student.training
    assert not any(module.training for module in teacher.modules())
    values = torch.randn(5, 4)
    before = copy.deepcopy(dict(teacher.named_buffers()))
    assert torch.equal(teacher.module(values), teacher.module(values))
    assert_same(dict(teacher.named_buffers()), before)
    student.eval()
    assert teacher.train(True).training is False
    assert teacher.eval().training is False


def test_a_new_teacher_says_itself_that_it_is_in_eval_mode():
    assert not Teacher(small()).training


def test_a_teacher_has_no_gradient():
    student = small()
    teacher = Teacher(student)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.module(torch.randn(3, 4)).requires_grad
    loss = student(torch.randn(3, 4)).sum()
    loss.backward()
    teacher.follow(student, 0.5)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.grad is None and parameter.grad_fn is None for parameter in teacher.parameters())


def test_the_averages_are_kept_in_the_copy_itself():
    student = small()
    teacher = Teacher(student)
    for loaded in (False, True):
        if loaded:
            teacher.load_state_dict(Teacher(small(5)).state_dict())
        teacher.follow(student, 0.9)
        pairs = zip(teacher._average.shadow_params, teacher.module.parameters(), strict=True)
        assert all(shadow.data_ptr() == parameter.data_ptr() for shadow, parameter in pairs)
    theirs = {parameter.data_ptr() for parameter in student.parameters()}
    assert all(parameter.data_ptr() not in theirs for parameter in teacher.parameters())


def test_a_loaded_teacher_goes_on_from_the_loaded_values(tmp_path):
    student = small()
    teacher = Teacher(student)
    for step, decay in enumerate([0.5, 0.9]):
        train_a_little(student, step)
        teacher.follow(student, decay)
    torch.save(teacher.state_dict(), tmp_path / "teacher.pt")
    averages = parameters_of(teacher.module)

    fresh = Teacher(small(7))
    fresh.load_state_dict(torch.load(tmp_path / "teacher.pt", weights_only=True))
    assert_same(parameters_of(fresh.module), averages)
    assert_same(fresh.state_dict(), teacher.state_dict())
    for step, decay in enumerate([0.7, 0.3], start=2):
        train_a_little(student, step)
        fresh.follow(student, decay)
        teacher.follow(student, decay)
        new = parameters_of(student)
        averages = {name: decay * old + (1 - decay) * new[name] for name, old in averages.items()}
    assert_same(fresh.state_dict(), teacher.state_dict())
    for name, parameter in fresh.module.named_parameters():
        torch.testing.assert_close(parameter.detach(), averages[name], rtol=1e-5, atol=1e-6)


def test_the_state_dict_is_the_modules_alone():
    teacher = Teacher(small())
    assert set(teacher.state_dict()) == {f"module.{name}" for name in small().state_dict()}


def test_another_student_is_refused():
    teacher = Teacher(small())
    with pytest.raises(ValueError):
        teacher.follow(nn.Linear(4, 2), 0.5)


def test_a_teacher_of_a_whole_objective_follows_and_looks():
    student = objective()
    teacher = Teacher(student)
    images = torch.randn(2, 3, 16, 16)
    mask = Mask.hide_top(torch.rand(2, 16), 12)
    assert torch.equal(teacher.module(images, mask).loss, student.eval()(images, mask).loss)
    old = parameters_of(teacher.module)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    student.train()(images, mask).loss.backward()
    optimizer.step()
    teacher.follow(student, 0.75)
    new = parameters_of(student)
    for name, parameter in teacher.module.named_parameters():
        torch.testing.assert_close(parameter.detach(), 0.75 * old[name] + 0.25 * new[name], rtol=1e-5, atol=1e-6)
    assert torch.equal(teacher.module.backbone.model.pos_embed, student.backbone.model.pos_embed)
    outcome = teacher.module(images, mask)
    assert not outcome.loss.requires_grad
    assert teacher.module.backbone.attention(images).shape == (2, 16)
    assert teacher.module.backbone is not student.backbone
    fresh = Teacher(objective(1))
    fresh.load_state_dict(teacher.state_dict())
    fresh.follow(student, 0.5)
    teacher.follow(student, 0.5)
    assert_same(fresh.state_dict(), teacher.state_dict())


@pytest.mark.parametrize("how", ["deepcopy", "double", "assign"])
def test_a_teacher_that_was_moved_or_copied_still_follows(how: str):
    student = small()
    teacher = Teacher(student)
    if how == "deepcopy":
        teacher = copy.deepcopy(teacher)
    elif how == "double":  # as `.to("cuda")` does
        teacher, student = teacher.double(), student.double()
    else:
        teacher.load_state_dict(Teacher(small(5)).state_dict(), assign=True)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    teacher.follow(student, 0.0)
    for mine, theirs in zip(teacher.module.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(mine.detach(), theirs.detach())
