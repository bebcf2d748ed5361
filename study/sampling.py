"""Batched sampling from a causal model, with its own random numbers.

The noise of a sample depends on the seed, its row and its position only. So two models asked the same questions with
one seed meet the same luck, and the difference between their scores is less noisy than the scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class Batch:
    """Prompts and completions as tokens.

    ``prompt`` [rows, p] is padded on the left, ``completion`` [rows, c] on the right; a completion ends with EOS
    unless it ran into the limit.
    """

    prompt: Tensor
    prompt_mask: Tensor
    completion: Tensor
    completion_mask: Tensor


def encode_prompts(tokenizer: Any, prompts: list[str], device: Any) -> tuple[Tensor, Tensor]:
    """Tokenize prompts, padded on the left.

    Returns
    -------
    tuple of Tensor
        Token ids and mask, both [prompts, longest].
    """
    tokenizer.padding_side = "left"
    made = tokenizer(prompts, return_tensors="pt", padding=True)
    return made["input_ids"].to(device), made["attention_mask"].to(device)


def encode_answers(tokenizer: Any, answers: list[str], device: Any) -> tuple[Tensor, Tensor]:
    """Tokenize answers without BOS and with EOS, padded on the right."""
    import torch

    rows = [tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for answer in answers]
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = torch.tensor(row)
        mask[at, : len(row)] = 1
    return ids.to(device), mask.to(device)


def sample(
    model: Any,
    tokenizer: Any,
    prompts: list[str],
    *,
    copies: int = 1,
    limit: int,
    temperature: float = 1.0,
    seed: int = 0,
) -> Batch:
    """Complete prompts.

    Parameters
    ----------
    prompts
        One row each; each is read once, however many completions are asked for.
    copies
        Completions of each prompt; those of one prompt stand together.
    limit
        Most tokens of a completion, EOS included.
    temperature
        0 takes the likeliest token.
    seed
        Of the noise.

    Returns
    -------
    Batch
        With ``len(prompts) * copies`` rows.
    """
    import torch

    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    ids, mask = encode_prompts(tokenizer, prompts, device)
    noise = torch.Generator().manual_seed(seed)
    rows = len(prompts) * copies
    done = torch.zeros(rows, dtype=torch.bool, device=device)
    tokens, masks = [], []
    with torch.no_grad():
        step = model(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=True, logits_to_keep=1)
        cache, logits = step.past_key_values, step.logits[:, -1]
        if copies > 1:
            cache.batch_repeat_interleave(copies)
            logits = logits.repeat_interleave(copies, 0)
            ids, mask = ids.repeat_interleave(copies, 0), mask.repeat_interleave(copies, 0)
        seen = mask
        for at in range(limit):
            token = choose(logits.float(), temperature, noise)
            token = torch.where(done, tokenizer.pad_token_id, token)
            tokens.append(token)
            masks.append(~done)
            done = done | (token == tokenizer.eos_token_id)
            if at + 1 == limit or bool(done.all()):
                break
            seen = torch.cat([seen, torch.ones_like(seen[:, :1])], 1)
            step = model(
                input_ids=token[:, None],
                attention_mask=seen,
                position_ids=seen.sum(1, keepdim=True) - 1,
                past_key_values=cache,
                use_cache=True,
            )
            logits = step.logits[:, -1]
    model.train(was_training)
    return Batch(ids, mask, torch.stack(tokens, 1), torch.stack(masks, 1).long())


def choose(logits: Tensor, temperature: float, noise: Any) -> Tensor:
    """Take a token for each row: the likeliest after adding Gumbel noise, which is an exact sample."""
    import torch

    if temperature == 0:
        return logits.argmax(-1)
    uniform = torch.rand(logits.shape, generator=noise).clamp_(1e-9, 1 - 1e-7).to(logits.device)
    return (logits / temperature - (-uniform.log()).log()).argmax(-1)


def positions(mask: Tensor) -> Tensor:
    """Count positions from the first token that is no padding."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def texts(tokenizer: Any, batch: Batch) -> list[str]:
    """Decode completions, without EOS and padding."""
    return [
        tokenizer.decode(row[keep.bool()], skip_special_tokens=True)
        for row, keep in zip(batch.completion, batch.completion_mask, strict=True)
    ]


def completion_logits(model: Any, batch: Batch, copies: int = 1) -> Tensor:
    """Return the logits that predict each token of the completions.

    Parameters
    ----------
    copies
        Neighbouring rows that share a prompt. Each prompt is then read once and its keys and values are shared; the
        gradient flows through them as if every row had read it.

    Returns
    -------
    Tensor
        [rows, completion length, vocabulary], f32.
    """
    import torch

    prompt, prompt_mask = batch.prompt[::copies], batch.prompt_mask[::copies]
    if copies == 1:
        mask = torch.cat([prompt_mask, batch.completion_mask], 1)
        ids = torch.cat([prompt, batch.completion], 1)
        length = batch.completion.shape[1]
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions(mask),
            use_cache=False,
            logits_to_keep=length + 1,
        )
        return out.logits[:, :-1].float()
    first = model(
        input_ids=prompt,
        attention_mask=prompt_mask,
        position_ids=positions(prompt_mask),
        use_cache=True,
        logits_to_keep=1,
    )
    cache = first.past_key_values
    cache.batch_repeat_interleave(copies)
    head = first.logits[:, -1:].repeat_interleave(copies, 0)
    if batch.completion.shape[1] == 1:
        return head.float()
    mask = torch.cat([batch.prompt_mask, batch.completion_mask], 1)
    rest = model(
        input_ids=batch.completion[:, :-1],
        attention_mask=mask[:, :-1],
        position_ids=positions(mask)[:, prompt.shape[1] : -1],
        past_key_values=cache,
        use_cache=True,
    )
    return torch.cat([head, rest.logits], 1).float()


def log_probabilities(logits: Tensor, batch: Batch) -> Tensor:
    """Return the log probability of each token, [rows, completion length]; 0 at padding."""
    import torch

    chosen = torch.gather(logits, -1, batch.completion[..., None])[..., 0] - logits.logsumexp(-1)
    return chosen * batch.completion_mask
