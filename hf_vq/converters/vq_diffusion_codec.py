"""microsoft/VQ-Diffusion's image codecs: its PatchVQGAN and taming's, bare, in wrappers or in a whole model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hf_vq.autoencoders import VQModel
from hf_vq.converters.base import Config, Plan, Source, add_format, as_before
from hf_vq.converters.convolutional import network_arguments, original_name, vq_model_arguments
from hf_vq.converters.shapes import check_agrees, count, shape_of
from hf_vq.converters.taming import model_config, plan_gumbel, plan_vqgan

ORIGIN = "https://github.com/microsoft/VQ-Diffusion"
PIXELS = (
    "Pixels are in [-1, 1] here, x / 127.5 - 1 of those in [0, 255], as the original's `PatchVQGAN` makes them. Its "
    "wrappers (`PatchVQVAE` and the `Taming` ones) take x / 255 in [0, 1] and scale that to [-1, 1] themselves: codes "
    "and pictures are the same."
)
CODEC = "content_codec."  # of a whole model
HALVES = ("enc.", "dec.")  # of a wrapper; each has the quantizer
AVERAGED = {
    "embedding.weight": "quantize.embedding",
    "cluster_size": "quantize.cluster_size",
    "embedding_sum": "quantize.embedding_avg",
}


@dataclass
class Codec:
    """An image codec in a checkpoint.

    Attributes:
        source: its tensors alone, under taming's names, with its section of the config.
        prefix: of its names in the checkpoint.
        wrapped: whether a wrapper's halves stand before the rest of them.
    """

    source: Source
    prefix: str
    wrapped: bool

    def name(self, plain: str) -> str:
        """The checkpoint's name of a tensor."""
        decodes = plain.startswith(("decoder.", "post_quant_conv."))
        return self.prefix + (HALVES[decodes] if self.wrapped else "") + plain


def find_codec(source: Source) -> Codec:
    """The image codec of a checkpoint, by its names alone."""
    prefix = CODEC if source.starts(CODEC) else ""
    inner = source.part(prefix)
    wrapped = inner.starts(HALVES[0])
    if wrapped:
        tensors = inner.part(HALVES[1]).tensors | inner.part(HALVES[0]).tensors
        inner.tensors = tensors
    outer = model_config(source.config)
    told = (outer.get("params") or {}).get("content_codec_config") or outer
    inner.config = Config({"model": told}, last=source.config.last)
    return Codec(inner, prefix, wrapped)


def _recognises(source):
    if source.starts("transformer."):  # such a file is a whole model
        return False
    codec = find_codec(source)
    tensors = codec.source.tensors
    quantizer = "quantize.embedding"
    if codec.prefix or codec.wrapped:
        quantizer = next((name for name in QUANTIZERS if name in tensors), quantizer)
    names = ("encoder.conv_in.weight", "quant_conv.weight", "post_quant_conv.weight", quantizer)
    return codec.source.starts("encoder.down.0.block.0.") and source.has(*map(codec.name, names))


@add_format("vqdiffusion-codec", ORIGIN, _recognises, within=("vqdiffusion",), notes=(PIXELS,))
def plan_codec(source: Source) -> Plan:
    codec = find_codec(source)
    found = [plan for name, plan in QUANTIZERS.items() if name in codec.source.tensors]
    if not found:
        raise ValueError(f"there is no codebook: no tensor is one of {', '.join(map(codec.name, QUANTIZERS))}")
    plan = found[0](codec.source)
    ignored = [codec.prefix + beginning for beginning in plan.ignored]
    ignored += [name for name in source.tensors if not name.startswith(codec.prefix)]  # the model around it
    if codec.wrapped:
        copy = codec.prefix + HALVES[1] + "quantize."
        ignored.append(copy)
        for name, tensor in source.part(copy).tensors.items():
            if not torch.equal(tensor, codec.source.tensors.get(f"quantize.{name}", tensor.new_zeros(0))):
                raise ValueError(f"{copy}{name} differs from the encoder's, {codec.name(f'quantize.{name}')}")

    def weight(name: str, take: Callable[[str], Any]) -> Any:
        return plan.weight(name, lambda plain: take(codec.name(plain)))

    return Plan(plan.build, weight, tuple(ignored))


def _plan_patch_vqgan(source):
    tensors, params = source.tensors, model_config(source.config).get("params") or {}
    encoder, decoder = ((params.get(f"{side}_config") or {}).get("params") or {} for side in ("encoder", "decoder"))
    size, dim = shape_of(tensors, "quantize.embedding", 2)
    check_agrees(params, "", n_embed=size, embed_dim=dim, quantizer_type="EMAVQ")
    if params.get("quantizer_dis_type", "euclidean") != "euclidean":
        raise ValueError(f"quantizer_dis_type is {params['quantizer_dis_type']!r}: only 'euclidean' is supported")
    told = {key: value for key, value in encoder.items() if key != "out_ch"}  # which the encoder ignores
    network = network_arguments(tensors, told, "encoder_config.params.")
    check_agrees(
        decoder, "decoder_config.params.", out_ch=network["out_channels"], z_channels=network["latent_channels"],
        num_res_blocks=network["layers_per_block"],
    )  # fmt: skip
    resolution = encoder.get("resolution", 32)
    arguments = {
        **vq_model_arguments(network),
        "sample_size": resolution if isinstance(resolution, int) else resolution[0],
        "num_vq_embeddings": size,
        "vq_embed_dim": dim,
        "quantizer_type": "ema",
        "quantizer_config": {
            "decay": params.get("decay", 0.99),
            "epsilon": 1e-5,
            "beta": 1.0,
            "kmeans_init": False,
            "restart_threshold": 0.0,
        },
    }
    stages = count(tensors, "encoder.down")

    def weight(name, take):
        beginning, _, end = name.partition(".")
        return take(AVERAGED[end] if beginning == "quantize" else original_name(name, stages))

    return Plan(as_before(VQModel, arguments), weight, ("loss.",))


QUANTIZERS = {  # plans by the tensor that tells the quantizer
    "quantize.embedding": _plan_patch_vqgan,
    "quantize.embed.weight": plan_gumbel,
    "quantize.embedding.weight": plan_vqgan,
}
