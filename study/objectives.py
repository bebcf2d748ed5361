"""Losses and advantages, as plain functions of tensors.

Shapes: ``rows`` completions of ``c`` tokens; the ``g`` completions of one question stand together. Masks are 1 at
tokens of a completion, its EOS included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TINY = 1e-4  # TRL's constant: a group of equal rewards has advantage 0 and not 0/0


def advantages(rewards: Tensor, group: int, kind: str) -> Tensor:
    """Turn rewards into advantages, as each algorithm defines them.

    Parameters
    ----------
    rewards
        [rows].
    group
        Completions of a question.
    kind
        ``grpo``: less the group's mean, by its standard deviation. ``dr_grpo``: less the mean only (2503.20783).
        ``rloo``: less the mean of the others (2402.14740). ``reinforce++``: less the mean of the whole batch, by the
        deviation of the whole batch (2501.03262).

    Returns
    -------
    Tensor
        [rows].
    """
    if kind == "reinforce++":
        return (rewards - rewards.mean()) / (rewards.std() + TINY)
    grouped = rewards.view(-1, group)
    centred = grouped - grouped.mean(1, keepdim=True)
    if kind == "grpo":
        centred = centred / (grouped.std(1, keepdim=True) + TINY)
    elif kind == "rloo":
        centred = centred * group / (group - 1)
    return centred.reshape(-1)


def policy_loss(
    now: Tensor, before: Tensor, mask: Tensor, advantage: Tensor, *, epsilon: float | None, kind: str, limit: int
) -> Tensor:
    """Return the policy-gradient loss.

    Parameters
    ----------
    now, before
        Log probabilities of the tokens, [rows, c]: of the policy, with gradient, and of whoever sampled them.
    advantage
        [rows] or [rows, c].
    epsilon
        Clip range of the ratio; None takes no account of who sampled.
    kind
        ``grpo`` and ``reinforce++`` average over each completion, then over completions; ``dr_grpo`` divides by a
        constant instead, and ``rloo`` takes whole completions.
    limit
        Longest completion that sampling allows: the constant of ``dr_grpo``.
    """
    import torch

    weight = advantage[:, None] if advantage.dim() == 1 else advantage
    # Without correction the ratio is 1 and its gradient that of the log probability, whoever sampled.
    old = now.detach() if epsilon is None else before
    if kind == "rloo":
        ratio = ((now - old) * mask).sum(1, keepdim=True).exp()
    else:
        ratio = (now - old).exp()
    gain = ratio * weight
    if epsilon is not None:
        gain = torch.minimum(gain, ratio.clamp(1 - epsilon, 1 + epsilon) * weight)
    if kind == "rloo":
        return -gain.mean()
    if kind == "dr_grpo":
        return -(gain * mask).sum() / (len(gain) * limit)
    return -((gain * mask).sum(1) / mask.sum(1)).mean()


def kl_penalty(now: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the estimate exp(r) - r - 1 of KL(policy, reference), r = log reference - log policy."""
    distance = reference - now
    return (((distance.exp() - distance - 1) * mask).sum(1) / mask.sum(1)).mean()


def sft_loss(now: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean negative log probability of all tokens, or the mean with a weight for each row."""
    if weights is None:
        return -now.sum() / mask.sum()
    return -(now.sum(1) * weights).sum() / mask.sum()


def importance_weights(now: Tensor, reference: Tensor, clip: float) -> Tensor:
    """Return how much likelier each answer has become than under the base, clipped, with mean 1 (2507.12856).

    The ratio is that of the mean token: whole answers would reach the clip at once.
    """
    lengths = (reference != 0).sum(1).clamp(min=1)
    ratio = ((now.detach() - reference).sum(1) / lengths).exp().clamp(1 / clip, clip)
    return ratio / ratio.mean()


def chord_weights(now: Tensor, mask: Tensor) -> Tensor:
    """Return the token weights p(1 - p) of CHORD (2508.11408): what is certain or hopeless teaches little."""
    probability = now.detach().exp()
    return probability * (1 - probability) * mask


def generalized_advantages(rewards: Tensor, values: Tensor, mask: Tensor, discount: float) -> tuple[Tensor, Tensor]:
    """Spread the reward at the end of each completion over its tokens (GAE, no time discount).

    Parameters
    ----------
    rewards
        [rows], given at the last token.
    values
        [rows, c], the critic's estimates before each token.
    discount
        GAE's lambda.

    Returns
    -------
    tuple of Tensor
        Advantages and returns, [rows, c].
    """
    import torch

    last = mask.sum(1).long() - 1
    earned = torch.zeros_like(values)
    earned[torch.arange(len(values)), last] = rewards
    found = torch.zeros_like(values)
    running = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards)
    for at in reversed(range(values.shape[1])):
        inside = mask[:, at].to(values.dtype)
        error = earned[:, at] + following - values[:, at]
        running = (error + discount * running) * inside
        found[:, at] = running
        following = values[:, at] * inside
    return found, found + values


def moments(values: Tensor) -> dict[str, float]:
    """Describe advantages: mean, deviation, mean magnitude and share of each sign."""
    return {
        "advantage_mean": float(values.mean()),
        "advantage_std": float(values.std(unbiased=False)),
        "advantage_mean_abs": float(values.abs().mean()),
        "advantage_positive": float((values > 0).float().mean()),
        "advantage_negative": float((values < 0).float().mean()),
    }
