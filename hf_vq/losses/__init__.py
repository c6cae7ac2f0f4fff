"""Losses beside those that a model has: adversarial, perceptual, spectral; each a small class with its paper."""

from hf_vq.losses.adaptive_weight import AdaptiveWeight, LinearRamp
from hf_vq.losses.adversarial import ADVERSARIAL_LOSSES, HingeLoss, NonSaturatingLoss, VanillaLoss
from hf_vq.losses.gradient_penalty import r1_penalty
from hf_vq.losses.lecam import LeCamRegularizer
from hf_vq.losses.patch_discriminator import PatchDiscriminator
from hf_vq.losses.perceptual import LPIPS, FeatureDistance, load_heads
from hf_vq.losses.sample_terms import SampleTerm
from hf_vq.losses.spectral import SpectralLoss

__all__ = [
    "ADVERSARIAL_LOSSES",
    "AdaptiveWeight",
    "FeatureDistance",
    "HingeLoss",
    "LPIPS",
    "LeCamRegularizer",
    "LinearRamp",
    "NonSaturatingLoss",
    "PatchDiscriminator",
    "SampleTerm",
    "SpectralLoss",
    "VanillaLoss",
    "load_heads",
    "r1_penalty",
]
