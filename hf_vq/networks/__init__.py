"""Layers that autoencoders and priors share."""

from hf_vq.networks.transformer import KeyValueCache, Transformer, check_transformer, init_weights

__all__ = ["KeyValueCache", "Transformer", "check_transformer", "init_weights"]
