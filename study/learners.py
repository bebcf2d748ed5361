"""What each algorithm learns from at each step: a learner yields the losses of a step, one for each update."""

from __future__ import annotations

import copy
import random
from typing import TYPE_CHECKING, Any

from study import objectives
from study.sampling import (
    Batch,
    completion_logits,
    encode_answers,
    encode_prompts,
    log_probabilities,
    sample,
    texts,
)
from study.tasks import Item, find_task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from study.settings import TrainSettings

Loss = tuple[Any, dict[str, float]]


def make_learner(settings: TrainSettings, model: Any, tokenizer: Any) -> Learner:
    """Make the learner of the algorithm."""
    kinds: dict[str, type[Learner]] = {
        "sft": Sft,
        "iw-sft": WeightedSft,
        "rft": Rft,
        "rl": Rl,
        "reft": Reft,
        "chord": Chord,
        "sasr": Sasr,
        "ppo": Ppo,
    }
    return kinds[settings.algorithm](settings, model, tokenizer)


class Learner:
    """Questions, the base, and the batches of each step."""

    def __init__(self, settings: TrainSettings, model: Any, tokenizer: Any) -> None:
        self.settings = settings
        self.model = model
        self.tokenizer = tokenizer
        self.task = find_task(settings.task, settings.form, settings.level)
        self.pool = self.task.items("train", settings.train_items, settings.seed)
        self._base: Any = None
        self._start = copy.deepcopy(model) if self.needs_base() else None

    def losses(self, step: int) -> Iterator[Loss]:
        """Yield the losses of a step, each with what is to be logged; an update follows each."""
        raise NotImplementedError

    def needs_base(self) -> bool:
        """Say whether the learner asks the base something while it trains."""
        return False

    def after_update(self, norm: float) -> None:
        """Hear of the gradient norm of an update."""

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs besides the model's and the optimizer's state."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take that state back."""

    def facts(self) -> dict[str, Any]:
        """Return what the manifest says about the data."""
        return {"train_items": len(self.pool)}

    @property
    def base(self) -> Any:
        """The model as it was before the first step, frozen."""
        if self._base is None:
            assert self._start is not None
            self._base = self._start.eval().requires_grad_(requires_grad=False)
        return self._base

    def rng(self, step: int) -> random.Random:
        """Make the random numbers of a step; every arm with one seed meets the same questions."""
        return random.Random(f"{self.settings.seed}/{step}")

    def gold(self, step: int, rows: int) -> Batch:
        """Take questions with their gold answers, in the style asked for."""
        chosen = self.rng(step).choices(self.pool, k=rows)
        answers = [self.task.restyle(item.answer, self.settings.style) for item in chosen]
        return self.encode(chosen, answers)

    def encode(self, items: list[Item], answers: list[str]) -> Batch:
        """Tokenize questions and answers."""
        device = next(self.model.parameters()).device
        return Batch(
            *encode_prompts(self.tokenizer, [item.prompt for item in items], device),
            *encode_answers(self.tokenizer, answers, device),
        )

    def logs(self, model: Any, batch: Batch, copies: int = 1) -> tuple[Tensor, float]:
        """Return the log probability of each token, and the mean entropy of the distributions."""
        import torch

        logits = completion_logits(model, batch, copies)
        with torch.no_grad():
            spread = torch.distributions.Categorical(logits=logits).entropy() * batch.completion_mask
            entropy = float(spread.sum() / batch.completion_mask.sum())
        return log_probabilities(logits, batch), entropy

    def base_logs(self, batch: Batch, copies: int = 1) -> Tensor:
        """Return the log probabilities that the base gives."""
        import torch

        with torch.no_grad():
            return self.logs(self.base, batch, copies)[0]


class Sft(Learner):
    """Supervised fine-tuning on gold answers."""

    def losses(self, step: int) -> Iterator[Loss]:
        """One update on a batch of gold answers."""
        yield self.supervised(step, self.settings.per_device_train_batch_size)

    def supervised(self, step: int, rows: int) -> Loss:
        """Make the loss of a batch of gold answers."""
        batch = self.gold(step, rows)
        now, entropy = self.logs(self.model, batch)
        return objectives.sft_loss(now, batch.completion_mask), {"entropy": entropy}


class WeightedSft(Learner):
    """SFT in which answers that have become likelier count more: a tighter bound on the reward (2507.12856)."""

    def needs_base(self) -> bool:
        """The weights are ratios to the base."""
        return True

    def losses(self, step: int) -> Iterator[Loss]:
        """One update on a weighted batch of gold answers."""
        batch = self.gold(step, self.settings.per_device_train_batch_size)
        now, entropy = self.logs(self.model, batch)
        weights = objectives.importance_weights(now, self.base_logs(batch), self.settings.weight_clip)
        facts = {"entropy": entropy, "weight_std": float(weights.detach().std())}
        yield objectives.sft_loss(now, batch.completion_mask, weights), facts


class Rft(Learner):
    """Rejection-sampling fine-tuning: SFT on the base's own answers that the verifier accepts."""

    def __init__(self, settings: TrainSettings, model: Any, tokenizer: Any) -> None:
        super().__init__(settings, model, tokenizer)
        self.accepted: list[tuple[Item, str]] = []
        self.sampled = 0
        rows = settings.per_device_train_batch_size
        questions = self.rng(-1).sample(self.pool, min(len(self.pool), 1000))
        group = max(1, rows // settings.rft_samples)
        for at in range(0, len(questions), group):
            part = questions[at : at + group]
            batch = sample(
                model,
                tokenizer,
                [item.prompt for item in part],
                copies=settings.rft_samples,
                limit=settings.max_completion_length,
                temperature=settings.temperature,
                seed=settings.seed * 1_000_003 + at,
            )
            answers = texts(tokenizer, batch)
            asked = [item for item in part for _ in range(settings.rft_samples)]
            self.sampled += len(asked)
            scores = self.task.score_all(asked, answers)
            self.accepted += [
                pair for pair, right in zip(zip(asked, answers, strict=True), scores, strict=True) if right
            ]
        if not self.accepted:
            msg = f"the base answered none of {self.sampled} questions of {settings.task} rightly: RFT has no data"
            raise ValueError(msg)

    def losses(self, step: int) -> Iterator[Loss]:
        """One update on a batch of accepted answers."""
        chosen = self.rng(step).choices(self.accepted, k=self.settings.per_device_train_batch_size)
        batch = self.encode([item for item, _ in chosen], [answer for _, answer in chosen])
        now, entropy = self.logs(self.model, batch)
        yield objectives.sft_loss(now, batch.completion_mask), {"entropy": entropy}

    def facts(self) -> dict[str, Any]:
        """Say how many samples were accepted."""
        return {**super().facts(), "sampled": self.sampled, "accepted": len(self.accepted)}


class Rl(Learner):
    """Reinforcement learning from verified answers."""

    def needs_base(self) -> bool:
        """The base is asked for its samples, or for the KL penalty."""
        return self.settings.nu > 0 or self.settings.beta > 0

    def losses(self, step: int) -> Iterator[Loss]:
        """Sample, judge, and make one loss for each iteration."""
        batch, rewards, facts = self.rollout(step, self.settings.per_device_train_batch_size)
        before: Tensor | None = None
        for _ in range(self.settings.num_iterations):
            loss, before, more = self.policy(batch, rewards, before)
            yield loss, {**facts, **more}

    def rollout(self, step: int, rows: int) -> tuple[Batch, Tensor, dict[str, float]]:
        """Sample completions of this step's questions and judge them."""
        import torch

        told = self.settings
        group = told.num_generations
        questions = self.rng(step).choices(self.pool, k=rows // group)
        foreign = round(told.nu * len(questions))
        parts = [(self.base, questions[:foreign])] if foreign else []
        parts += [(self.model, questions[foreign:])] if foreign < len(questions) else []
        batches = [
            sample(
                model,
                self.tokenizer,
                [item.prompt for item in asked],
                copies=group,
                limit=told.max_completion_length,
                temperature=told.temperature,
                seed=(told.seed * 1_000_003 + step) * 2 + at,
            )
            for at, (model, asked) in enumerate(parts)
        ]
        batch = batches[0] if len(batches) == 1 else self.join(batches)
        asked = [item for item in questions for _ in range(group)]
        rewards = torch.tensor(self.task.score_all(asked, texts(self.tokenizer, batch)), device=batch.prompt.device)
        grouped = rewards.view(-1, group)
        lengths = batch.completion_mask.sum(1).float()
        ended = ((batch.completion == self.tokenizer.eos_token_id) & batch.completion_mask.bool()).any(1)
        facts = {
            "reward": float(rewards.mean()),
            "reward_std": float(rewards.std()),
            "frac_reward_zero_std": float((grouped.std(1) == 0).float().mean()),
            "completions/mean_length": float(lengths.mean()),
            "completions/clipped_ratio": float((~ended).float().mean()),
        }
        return batch, rewards, facts

    def join(self, batches: list[Batch]) -> Batch:
        """Put batches of different lengths under each other."""
        import torch
        from torch.nn.functional import pad

        prompt = max(b.prompt.shape[1] for b in batches)
        longest = max(b.completion.shape[1] for b in batches)
        blank = self.tokenizer.pad_token_id
        wide = [
            (
                pad(b.prompt, (prompt - b.prompt.shape[1], 0), value=blank),
                pad(b.prompt_mask, (prompt - b.prompt_mask.shape[1], 0)),
                pad(b.completion, (0, longest - b.completion.shape[1]), value=blank),
                pad(b.completion_mask, (0, longest - b.completion_mask.shape[1])),
            )
            for b in batches
        ]
        return Batch(*(torch.cat(parts) for parts in zip(*wide, strict=True)))

    def policy(self, batch: Batch, rewards: Tensor, before: Tensor | None) -> tuple[Any, Tensor, dict[str, float]]:
        """Make the policy-gradient loss of a judged batch."""
        told = self.settings
        weight = objectives.advantages(rewards, told.num_generations, told.advantage)
        if told.positives_only:
            weight = weight.clamp(min=0)
        now, entropy = self.logs(self.model, batch, told.num_generations)
        if before is None:
            before = now.detach()
            if told.importance == "clip" and told.nu > 0:
                # The first groups are the base's samples, and are corrected by its probabilities.
                foreign = round(told.nu * (len(rewards) // told.num_generations)) * told.num_generations
                before = before.clone()
                before[:foreign] = self.base_logs(batch, told.num_generations)[:foreign]
        corrected = told.importance == "clip" or told.num_iterations > 1
        loss: Any = objectives.policy_loss(
            now,
            before,
            batch.completion_mask,
            weight,
            epsilon=told.epsilon if corrected else None,
            kind=told.advantage,
            limit=told.max_completion_length,
        )
        facts = {"entropy": entropy, **objectives.moments(weight)}
        if told.beta > 0:
            distance = objectives.kl_penalty(now, self.base_logs(batch, told.num_generations), batch.completion_mask)
            loss = loss + told.beta * distance
            facts["kl"] = float(distance.detach())
        return loss, before, facts


class Reft(Rl):
    """SFT for the first steps, reinforcement learning after them (2401.08967)."""

    def losses(self, step: int) -> Iterator[Loss]:
        """Choose by the step."""
        if step < self.settings.sft_share * self.settings.max_steps:
            batch = self.gold(step, self.settings.per_device_train_batch_size)
            now, entropy = self.logs(self.model, batch)
            yield objectives.sft_loss(now, batch.completion_mask), {"entropy": entropy, "sft": 1.0}
        else:
            yield from super().losses(step)


class Chord(Rl):
    """Both losses at once: the weight of SFT falls along a line, and its tokens are weighted p(1 - p) (2508.11408)."""

    def losses(self, step: int) -> Iterator[Loss]:
        """Half of the batch is gold, half is sampled."""
        told = self.settings
        share = step / max(1, told.max_steps - 1)
        mu = told.mu_start + (told.mu_end - told.mu_start) * share
        half = max(
            told.num_generations, told.per_device_train_batch_size // 2 // told.num_generations * told.num_generations
        )
        gold = self.gold(step, half)
        now, _ = self.logs(self.model, gold)
        weights = objectives.chord_weights(now, gold.completion_mask)
        supervised = -(now * weights).sum() / gold.completion_mask.sum()
        batch, rewards, facts = self.rollout(step, half)
        policy, _, more = self.policy(batch, rewards, None)
        yield mu * supervised + (1 - mu) * policy, {**facts, **more, "mu": mu}


class Sasr(Rl):
    """SFT or RL at each step, by chance in proportion to their last gradient norms (2505.13026)."""

    def __init__(self, settings: TrainSettings, model: Any, tokenizer: Any) -> None:
        super().__init__(settings, model, tokenizer)
        self.norms = {"sft": 1.0, "rl": 1.0}
        self.last = "sft"

    def losses(self, step: int) -> Iterator[Loss]:
        """Draw which of the two."""
        share = self.norms["sft"] / (self.norms["sft"] + self.norms["rl"] + 1e-12)
        first = step < self.settings.sft_share * self.settings.max_steps / 3  # a short start on gold, as in the paper
        if first or random.Random(f"sasr/{self.settings.seed}/{step}").random() < share:
            self.last = "sft"
            batch = self.gold(step, self.settings.per_device_train_batch_size)
            now, entropy = self.logs(self.model, batch)
            yield objectives.sft_loss(now, batch.completion_mask), {"entropy": entropy, "sft": 1.0}
        else:
            self.last = "rl"
            yield from super().losses(step)

    def after_update(self, norm: float) -> None:
        """Remember the norm; one of exactly 0 would never be drawn again."""
        self.norms[self.last] = max(norm, 1e-3)

    def state(self) -> dict[str, Any]:
        """The norms decide the next draw."""
        return {"norms": self.norms}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take the norms back."""
        self.norms = dict(state["norms"])


class Ppo(Rl):
    """PPO with a critic that reads the policy's last hidden state.

    The critic is linear and its gradient stops at the hidden state, so that the weights that are merged are moved by
    the policy's loss alone.
    """

    def __init__(self, settings: TrainSettings, model: Any, tokenizer: Any) -> None:
        import torch

        super().__init__(settings, model, tokenizer)
        weight = next(model.parameters())
        self.head = torch.nn.Linear(model.config.hidden_size, 1, device=weight.device)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)
        self.optimizer = torch.optim.AdamW(self.head.parameters(), lr=settings.value_learning_rate)

    def losses(self, step: int) -> Iterator[Loss]:
        """Sample, estimate advantages token by token, and update as often as asked."""
        import torch

        told = self.settings
        batch, rewards, facts = self.rollout(step, told.per_device_train_batch_size)
        mask = batch.completion_mask
        with torch.no_grad():
            hidden = self.hidden(batch)
            values = self.head(hidden)[..., 0] * mask
        weight, returns = objectives.generalized_advantages(rewards, values, mask, told.gae_lambda)
        kept = weight[mask.bool()]
        weight = (weight - kept.mean()) / (kept.std() + objectives.TINY) * mask
        if told.positives_only:
            weight = weight.clamp(min=0)
        before: Tensor | None = None
        for _ in range(told.num_iterations):
            # The critic first: it has an optimizer of its own, so the loop sees the policy's loss only.
            error = ((self.head(hidden)[..., 0] - returns).square() * mask).sum() / mask.sum()
            self.optimizer.zero_grad()
            error.backward()
            self.optimizer.step()
            now, entropy = self.logs(self.model, batch, told.num_generations)
            before = now.detach() if before is None else before
            loss = objectives.policy_loss(
                now, before, mask, weight, epsilon=told.epsilon, kind="grpo", limit=told.max_completion_length
            )
            more = {"entropy": entropy, "value_loss": float(error.detach()), **objectives.moments(weight[mask.bool()])}
            yield loss, {**facts, **more}

    def hidden(self, batch: Batch) -> Tensor:
        """Return the last hidden state before each token of the completions, [rows, c, hidden]."""
        import torch

        ids = torch.cat([batch.prompt, batch.completion], 1)
        mask = torch.cat([batch.prompt_mask, batch.completion_mask], 1)
        out = self.model.model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
        found: Tensor = out.last_hidden_state[:, batch.prompt.shape[1] - 1 : -1].float()
        return found

    def state(self) -> dict[str, Any]:
        """The critic and its optimizer."""
        return {"head": self.head.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take the critic back."""
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
