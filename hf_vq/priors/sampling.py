"""From logits to codes: guidance, temperature, top-k, top-p and the draw, plain functions on (batch, codebook_size).

Every filter keeps logits as logits, so that they compose; `sample_codes` is the order in which priors apply them.
"""

import reprlib
from collections.abc import Callable, Sequence
from math import prod

import torch

from hf_vq.arguments import checked
from hf_vq.ranges import Count, Size, TopP, Weight

Generators = torch.Generator | Sequence[torch.Generator] | None


@checked
def check_sampling_options(
    temperature: Weight = 1.0,
    top_k: Size | None = None,
    top_p: TopP | None = None,
    guidance_scale: Weight = 1.0,
    guidance_steps: Count | None = None,
) -> None:
    """Raise a `ValueError` for sampling options out of range.

    Args:
        temperature: 0 (greedy) or more.
        top_k: None, or at least 1; above the codebook size it keeps everything.
        top_p: None, or in (0, 1].
        guidance_scale: 0 (no condition) or more; 1 is no guidance.
        guidance_steps: None, or 0 or more.
    """


def positions_first(code_shape: Sequence[int]) -> torch.Tensor:
    """Drawing order of residual codes (levels, *space): all levels of a position in a row, positions in raster order.

    Returns:
        (levels * positions,) places in the flattened grid.
    """
    return torch.arange(prod(code_shape)).view(code_shape[0], -1).T.flatten()


def guide(conditional: torch.Tensor, unconditional: torch.Tensor, guidance_scale: float) -> torch.Tensor:
    """Classifier-free guidance of logits (https://arxiv.org/abs/2207.12598): 1 is the condition alone, 0 is none."""
    return torch.lerp(unconditional, conditional, guidance_scale)


def apply_temperature(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Divide logits by a temperature above 0; the largest is moved to 0 first, so that small ones do not overflow."""
    return (logits - logits.amax(dim=-1, keepdim=True)) / temperature


def keep_top_k(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """Set all but the `top_k` largest logits of each row to -inf; of equal ones no more than `top_k` stay."""
    values, indices = logits.topk(min(int(top_k), logits.shape[-1]), dim=-1)
    return torch.full_like(logits, -torch.inf).scatter(-1, indices, values)


def keep_top_p(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the fewest most probable entries that hold `top_p` of the mass (https://arxiv.org/abs/1904.09751)."""
    values, indices = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = values.softmax(dim=-1)
    mass_before = probabilities.cumsum(dim=-1) - probabilities
    beyond = mass_before >= top_p
    beyond[..., 0] = False  # rounding must not remove the most probable entry
    return torch.full_like(logits, -torch.inf).scatter(-1, indices, values.masked_fill(beyond, -torch.inf))


def keep_likeliest(logits: torch.Tensor, top_k: int | None, top_p: float | None) -> torch.Tensor:
    """`keep_top_k`, then `keep_top_p`, where they are asked for."""
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None and top_p < 1:
        logits = keep_top_p(logits, top_p)
    return logits


def lowest(scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The places of the lowest scores (batch, positions) of every row, `counts` (batch, 1) of them and no more."""
    ranks = scores.argsort(dim=1, stable=True).argsort(dim=1)
    return ranks < counts


def draw_uniforms(
    num_draws: int,
    batch_size: int,
    generator: Generators,
    device: torch.device,
) -> torch.Tensor:
    """Draw the randomness of a whole `sample` call at once, with diffusers' rules for generators.

    Args:
        num_draws: draws per item.
        batch_size: number of items.
        generator: None (torch's own), one generator, or one per item, which makes each item independent of the batch.
            A CPU generator serves every device: its numbers are moved there.
        device: where the numbers are needed.

    Returns:
        (num_draws, batch_size) float32 in [0, 1).

    Raises:
        ValueError: the list of generators does not have one per item.
    """
    if isinstance(generator, torch.Generator) or generator is None:
        source = device if generator is None else generator.device
        return torch.rand(num_draws, batch_size, generator=generator, device=source).to(device)
    check_generators(generator, batch_size)
    return torch.stack([draw_uniforms(num_draws, 1, one, device)[:, 0] for one in generator], dim=1)


def check_generators(generator: Generators, batch_size: int) -> None:
    """Raise a `ValueError` for a list of generators that does not have one per item."""
    if isinstance(generator, Sequence) and len(generator) != batch_size:
        raise ValueError(
            f"generator must be one, or one per item: got {len(generator)} for {batch_size} items, "
            f"{reprlib.repr(list(generator))}"
        )


def draw_noise(
    shape: Sequence[int],
    generator: Generators,
    device: torch.device | str | None,
    fill: Callable,
) -> torch.Tensor:
    """Random numbers (batch, ...) float32, with the rules for generators of `draw_uniforms`.

    Args:
        shape: batch first.
        generator: see `draw_uniforms`.
        device: where the numbers are needed.
        fill: a method of tensors that fills them, such as `torch.Tensor.uniform_`.
    """
    if isinstance(generator, torch.Generator) or generator is None:
        source = device if generator is None else generator.device
        return fill(torch.empty(*shape, dtype=torch.float32, device=source), generator=generator).to(device)
    check_generators(generator, shape[0])
    return torch.cat([draw_noise((1, *shape[1:]), one, device, fill) for one in generator])


def draw_by_race(probabilities: torch.Tensor, generator: Generators) -> torch.Tensor:
    """Draw a code for every distribution: each code runs an exponential time over its probability, the first wins.

    On a CPU this draws what `torch.multinomial` does; but a code of probability 0 does not run at all.

    Args:
        probabilities: (batch, ..., codebook_size) float32.
        generator: see `draw_uniforms`.

    Returns:
        (batch, ...) int64.
    """
    times = draw_noise(probabilities.shape, generator, probabilities.device, torch.Tensor.exponential_)
    torch.div(probabilities, times, out=times)  # in place: there is one for every code of every position
    return times.masked_fill_(probabilities == 0, -1.0).argmax(dim=-1)


def truncate(log_probs: torch.Tensor, rate: float) -> torch.Tensor:
    """VQ-Diffusion's truncation (https://arxiv.org/abs/2111.14822, section 5.1): `keep_top_p` of log-probabilities.

    What stays keeps its probability: the sum is then below 1, and a step leaves more masks.
    """
    return torch.where(keep_top_p(log_probs, rate) > -torch.inf, log_probs, -torch.inf)


def draw_gumbel(
    shape: Sequence[int],
    generator: Generators,
    device: torch.device | str | None,
) -> torch.Tensor:
    """Gumbel noise (batch, ...) in float32, whose argmax with logits is a draw; generators as of `draw_uniforms`."""
    noise = draw_noise(shape, generator, device, torch.Tensor.uniform_)
    for _ in range(2):
        noise = noise.add_(1e-30).log_().neg_()  # in place: it is large; the smallest keep 0 and 1 finite
    return noise


def draw_codes(logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Draw one code per row by inverting the cumulative distribution.

    Args:
        logits: (batch, codebook_size); -inf is never drawn.
        uniforms: (batch,) in [0, 1).

    Returns:
        (batch,) int64.
    """
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1)
    total = cumulative[:, -1:]
    # the first entry beyond the threshold; rounding may lift the threshold to the total, which nothing is beyond
    threshold = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    codes = torch.searchsorted(cumulative, threshold, right=True)[:, 0]
    return codes.clamp(max=logits.shape[-1] - 1)  # NaN logits must give a code too: `sample` reports them at its end


def sample_codes(
    logits: torch.Tensor,
    uniforms: torch.Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> torch.Tensor:
    """Choose one code per row: temperature, then top-k, then top-p, then the draw.

    Args:
        logits: (batch, codebook_size) float32 or wider.
        uniforms: (batch,) in [0, 1).
        temperature: 0 is greedy, without randomness.
        top_k: keep that many most probable codes.
        top_p: keep the most probable codes that hold this mass.

    Returns:
        (batch,) int64.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = keep_likeliest(apply_temperature(logits, temperature), top_k, top_p)
    return draw_codes(logits, uniforms)
