"""Latents <-> codes."""

from hf_vq.quantizers.base import Quantizer, QuantizerOutput
from hf_vq.quantizers.ema import EMAVectorQuantizer
from hf_vq.quantizers.finite_scalar import FiniteScalarQuantizer
from hf_vq.quantizers.gradients import masked_mse, straight_through
from hf_vq.quantizers.gumbel import GumbelQuantizer
from hf_vq.quantizers.index_backpropagation import IndexBackpropagationQuantizer
from hf_vq.quantizers.lookup_free import LookupFreeQuantizer
from hf_vq.quantizers.nearest import nearest_codes
from hf_vq.quantizers.product import ProductQuantizer
from hf_vq.quantizers.registry import QUANTIZERS, make_quantizer
from hf_vq.quantizers.remapped import RemappedQuantizer
from hf_vq.quantizers.residual import ResidualQuantizer
from hf_vq.quantizers.vector import VectorQuantizer

__all__ = [
    "EMAVectorQuantizer",
    "FiniteScalarQuantizer",
    "GumbelQuantizer",
    "IndexBackpropagationQuantizer",
    "LookupFreeQuantizer",
    "ProductQuantizer",
    "QUANTIZERS",
    "Quantizer",
    "QuantizerOutput",
    "RemappedQuantizer",
    "ResidualQuantizer",
    "VectorQuantizer",
    "make_quantizer",
    "masked_mse",
    "nearest_codes",
    "straight_through",
]
