"""Latents <-> codes.

A map, in the order to read it. One training step of "ema" goes through its first two lines:

    base            Quantizer: forward, tokenize, detokenize; latents as rows, and back
    codebook        search, losses and statistics of a learned codebook -> ema, vector: how it moves
      nearest       the one search; nearest_triton is its kernel for GPUs
      lookup        code vectors by index, sums of rows by code
      gradients     straight through, rotation; means without padding
      kmeans        how a codebook starts; distributed draws rows of all processes
      entropy       entropies of soft assignments, for losses
      surgery       resizing, splitting, starting again
    composite       made of quantizers -> residual, product
    finite_scalar, lookup_free, gumbel, index_backpropagation, remapped: a kind each
    registry        make_quantizer: a kind by its name; checks: what constructors refuse
"""

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
