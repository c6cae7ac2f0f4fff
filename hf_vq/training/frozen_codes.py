"""Training what decodes while codes stay as they are: tokenized data and priors remain good for the result."""

import torch
from torch.nn.modules.batchnorm import _BatchNorm


def freeze_codes(autoencoder, sample):
    """Leave a gradient only to parameters that decoding reaches and encoding does not, and stop codebook updates.

    Args:
        autoencoder: any whose codebook has started.
        sample: (batch, channels, *space) float in [-1, 1], a small one: both ways are walked once.

    Returns:
        list of the parameters that lost their gradient.

    Raises:
        ValueError: an autoencoder with BatchNorm, whose statistics would move, or without a decoder of its own.
    """
    if any(isinstance(module, _BatchNorm) for module in autoencoder.modules()):
        raise ValueError("freeze_codes=True does not go with BatchNorm, whose statistics move in training")
    encoding = _reached(autoencoder, autoencoder.encode(sample).latents)
    codes = autoencoder.tokenize(sample)
    grids = zip(autoencoder.quantizers, codes if autoencoder.hierarchical else (codes,), strict=True)
    vectors = tuple(quantizer.detokenize(grid).detach().to(autoencoder.dtype) for quantizer, grid in grids)
    decoded = autoencoder.decode(vectors if autoencoder.hierarchical else vectors[0]).sample
    decoding = _reached(autoencoder, decoded) - encoding
    if not decoding:
        raise ValueError(f"freeze_codes=True: {type(autoencoder).__name__} has no parameter that only decodes")
    learning = {name: parameter for name, parameter in autoencoder.named_parameters() if parameter.requires_grad}
    frozen = [parameter.requires_grad_(False) for name, parameter in learning.items() if name not in decoding]
    autoencoder.set_codebook_updates("off")
    return frozen


def _reached(module, outputs):
    """Names of the parameters that outputs, a tensor or a tuple of them, depend on."""
    named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    total = sum(output.float().sum() for output in (outputs if isinstance(outputs, tuple) else (outputs,)))
    if not total.requires_grad:
        return set()
    gradients = torch.autograd.grad(total, tuple(named.values()), allow_unused=True)
    return {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}
