"""Advantages and losses against numbers worked out by hand."""

import math

import pytest

torch = pytest.importorskip("torch")

from study import objectives  # noqa: E402


def test_grpo_centres_and_scales_each_group():
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    found = objectives.advantages(rewards, 4, "grpo")
    spread = rewards[:4].std()
    assert torch.allclose(found[:4], (rewards[:4] - 0.25) / (spread + 1e-4))
    assert found[4:].abs().max() == 0  # a group of equal rewards teaches nothing


def test_the_other_advantages():
    rewards = torch.tensor([1.0, 0.0, 1.0, 1.0])
    assert objectives.advantages(rewards, 2, "dr_grpo").tolist() == [0.5, -0.5, 0.0, 0.0]
    assert objectives.advantages(rewards, 2, "rloo").tolist() == [1.0, -1.0, 0.0, 0.0]
    whole = objectives.advantages(rewards, 2, "reinforce++")
    assert math.isclose(float(whole.mean()), 0, abs_tol=1e-6)
    assert whole[0] == whole[2] == whole[3] > 0 > whole[1]


def test_mean_size_is_bounded_by_the_deviation():
    """E|A| <= sqrt(Var r), the bound behind "enough is as good as a feast", for the centred advantage."""
    for right in range(9):
        rewards = torch.tensor([1.0] * right + [0.0] * (8 - right))
        size = objectives.advantages(rewards, 8, "dr_grpo").abs().mean()
        assert size <= rewards.std(unbiased=False) + 1e-6


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo", "reinforce++"])
def test_the_gradient_is_the_policy_gradient(kind):
    now = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], requires_grad=True)
    mask = torch.tensor([[1, 1], [1, 0]])
    weight = torch.tensor([2.0, -1.0])
    objectives.policy_loss(now * mask, now.detach() * mask, mask, weight, epsilon=None, kind=kind, limit=4).backward()
    expected = {
        "grpo": [[-0.5, -0.5], [0.5, 0.0]],
        "reinforce++": [[-0.5, -0.5], [0.5, 0.0]],
        "dr_grpo": [[-0.25, -0.25], [0.125, 0.0]],
        "rloo": [[-1.0, -1.0], [0.5, 0.0]],
    }[kind]
    assert torch.allclose(now.grad, torch.tensor(expected))


def test_the_clip_stops_what_has_moved_too_far():
    now = torch.tensor([[0.5]], requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.long)
    objectives.policy_loss(now, torch.zeros(1, 1), mask, torch.ones(1), epsilon=0.2, kind="grpo", limit=1).backward()
    assert now.grad.item() == 0


def test_generalized_advantages_by_hand():
    values = torch.tensor([[0.5, 0.25, 9.0]])
    mask = torch.tensor([[1, 1, 0]])
    found, returns = objectives.generalized_advantages(torch.tensor([1.0]), values * mask, mask, 1.0)
    assert torch.allclose(found, torch.tensor([[0.5, 0.75, 0.0]]))
    assert torch.allclose(returns[:, :2], torch.ones(1, 2))


def test_the_kl_estimate_is_never_negative():
    now, base = torch.randn(4, 3), torch.randn(4, 3)
    assert objectives.kl_penalty(now, base, torch.ones(4, 3)) >= 0
    assert objectives.kl_penalty(now, now, torch.ones(4, 3)) == 0
