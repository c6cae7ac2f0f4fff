"""Checkpoints of others, read safely, as models of this package: one file per origin."""

from hf_vq.converters import (  # each registers its formats
    dac,
    dalle,
    diffusers,
    diffusers_vq_diffusion,
    diffusers_vq_diffusion_pipeline,
    encodec,
    keras,
    llamagen,
    llamagen_gpt,
    open_magvit2,
    ritheshkumar,
    rosinality,
    rosinality_pixelsnail,
    rq_transformer,
    rqvae,
    sonnet,
    taming,
    taming_gpt,
    vitvqgan,
    vq_diffusion,
    vq_diffusion_codec,
    wavenet_r9y9,
)
from hf_vq.converters.base import FORMATS
from hf_vq.converters.convert import convert, load_single_file
from hf_vq.converters.discriminators import load_discriminator
from hf_vq.converters.stock_codecs import to_transformers

__all__ = ["FORMATS", "convert", "load_discriminator", "load_single_file", "to_transformers"]
