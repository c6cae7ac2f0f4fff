"""The discretised mixture of logistics over amplitudes (PixelCNN++, https://arxiv.org/abs/1701.05517, section 2.1).

Amplitudes are `num_levels` equally spaced levels from -1 to 1. A level has the mass of the mixture within half a step
of it; the outermost levels have the tails too. Parameters are (..., 3 * mixtures): logits of the components, their
means, and the logarithms of their scales.
"""

import torch
import torch.nn.functional as F

MARGIN = 0.255  # share of half a step within which a value is at the end: 1 - 0.999 of the paper's code at 256 levels


def mixture_log_prob(
    parameters: torch.Tensor, amplitudes: torch.Tensor, num_levels: int, min_log_scale: float = -7.0
) -> torch.Tensor:
    """Log-probability of amplitudes (https://arxiv.org/abs/1701.05517, eq. 2).

    With a the upper and b the lower end of a step, in scales from the mean, the mass sigmoid(a) - sigmoid(b) is
    computed as sigmoid(a) sigmoid(-b) (1 - exp(b - a)), which loses no digits however small it is.

    Args:
        parameters: (..., 3 * mixtures), computed in float32 or wider.
        amplitudes: (...) in [-1, 1]. Between levels, the mass within half a step of the amplitude.
        num_levels: levels from -1 to 1, at least 2.
        min_log_scale: smaller logarithms of scales count as this.

    Returns:
        (...) nats, at most 0.
    """
    parameters = parameters.to(torch.promote_types(parameters.dtype, torch.float32))
    amplitudes = amplitudes.to(parameters.dtype)[..., None]
    logits, means, log_scales = parameters.chunk(3, dim=-1)
    half_step = 1 / (num_levels - 1)
    precisions = (-log_scales.clamp(min=min_log_scale)).exp()
    upper = precisions * (amplitudes - means + half_step)
    lower = precisions * (amplitudes - means - half_step)
    widths = (2 * half_step * precisions).clamp(min=torch.finfo(parameters.dtype).tiny)
    below_upper, above_lower = F.logsigmoid(upper), F.logsigmoid(-lower)
    inside = below_upper + above_lower + torch.log(-torch.expm1(-widths))
    end = 1 - MARGIN * half_step
    masses = torch.where(amplitudes > end, above_lower, inside)
    masses = torch.where(amplitudes < -end, below_upper, masses)
    return torch.logsumexp(logits.log_softmax(dim=-1) + masses, dim=-1)


def draw_amplitudes(
    parameters: torch.Tensor,
    uniforms: torch.Tensor,
    num_levels: int,
    min_log_scale: float = -7.0,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Draw amplitudes: a component, then its logistic by inverting the cumulative distribution, then the level.

    Args:
        parameters: (batch, 3 * mixtures) float32 or wider.
        uniforms: (2, batch) in [0, 1).
        num_levels: levels from -1 to 1, at least 2.
        min_log_scale: smaller logarithms of scales count as this.
        temperature: divides the logits of the components and multiplies the scales; 0 gives the mean of the most
            probable component.

    Returns:
        (batch,) levels in [-1, 1].
    """
    logits, means, log_scales = parameters.chunk(3, dim=-1)
    if temperature == 0:
        amplitudes = means.gather(-1, logits.argmax(dim=-1, keepdim=True))[:, 0]
    else:
        cumulative = ((logits - logits.amax(dim=-1, keepdim=True)) / temperature).softmax(dim=-1).cumsum(dim=-1)
        component = (cumulative[:, :-1] <= uniforms[0][:, None]).sum(dim=-1, keepdim=True)
        scales = log_scales.gather(-1, component)[:, 0].clamp(min=min_log_scale).exp() * temperature
        amplitudes = means.gather(-1, component)[:, 0] + scales * uniforms[1].clamp(min=2**-25).logit()
    steps = num_levels - 1
    return ((amplitudes.clamp(-1, 1) + 1) / 2 * steps).round() / steps * 2 - 1
