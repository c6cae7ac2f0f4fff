"""Terms of a loss beside those that a model has itself; (batch,) distances of samples from targets."""

from hf_vq.losses.perceptual import LPIPS, FeatureDistance, load_heads
from hf_vq.losses.spectral import SpectralLoss

__all__ = ["LPIPS", "FeatureDistance", "SpectralLoss", "load_heads"]
