"""Losses beside those that a model has: adversarial, perceptual, spectral, mel; each a small class with its paper."""

from hf_vq.losses.adaptive_weight import AdaptiveWeight, LinearRamp
from hf_vq.losses.adversarial import (
    ADVERSARIAL_LOSSES,
    ClippedHingeLoss,
    HingeLoss,
    LeastSquaresLoss,
    NonSaturatingLoss,
    VanillaLoss,
    mean_over_judges,
    together,
)
from hf_vq.losses.balancer import Balancer
from hf_vq.losses.combined_discriminator import DISCRIMINATORS, CombinedDiscriminator
from hf_vq.losses.discriminator import Discriminator, Judgement
from hf_vq.losses.feature_matching import FeatureMatchingLoss
from hf_vq.losses.gradient_penalty import r1_penalty
from hf_vq.losses.lecam import LeCamRegularizer
from hf_vq.losses.mel import MelLoss
from hf_vq.losses.patch_discriminator import PatchDiscriminator
from hf_vq.losses.perceptual import LPIPS, FeatureDistance, load_heads
from hf_vq.losses.period_discriminator import MultiPeriodDiscriminator
from hf_vq.losses.sample_terms import SampleTerm
from hf_vq.losses.spectral import SpectralLoss
from hf_vq.losses.spectral_discriminators import MultiBandDiscriminator, MultiScaleSTFTDiscriminator

__all__ = [
    "ADVERSARIAL_LOSSES",
    "AdaptiveWeight",
    "Balancer",
    "ClippedHingeLoss",
    "CombinedDiscriminator",
    "DISCRIMINATORS",
    "Discriminator",
    "FeatureDistance",
    "FeatureMatchingLoss",
    "HingeLoss",
    "Judgement",
    "LPIPS",
    "LeCamRegularizer",
    "LeastSquaresLoss",
    "LinearRamp",
    "MelLoss",
    "MultiBandDiscriminator",
    "MultiPeriodDiscriminator",
    "MultiScaleSTFTDiscriminator",
    "NonSaturatingLoss",
    "PatchDiscriminator",
    "SampleTerm",
    "SpectralLoss",
    "VanillaLoss",
    "load_heads",
    "mean_over_judges",
    "r1_penalty",
    "together",
]
