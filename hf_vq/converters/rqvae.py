"""kakaobrain's RQ-VAE."""

import torch

from hf_vq.autoencoders import RQVAE
from hf_vq.converters.base import Plan, Source, add_format, as_before
from hf_vq.converters.convolutional import network_arguments, original_name
from hf_vq.converters.shapes import check_agrees, count, shape_of

ORIGIN = "https://github.com/kakaobrain/rq-vae-transformer"
CODEBOOK = {"embedding.weight": "weight", "cluster_size": "cluster_size_ema", "embedding_sum": "embed_ema"}


def _recognises(source):
    return source.has("quantizer.codebooks.0.weight", "encoder.conv_in.weight", "quant_conv.weight")


@add_format("rqvae", ORIGIN, _recognises)
def plan_rqvae(source: Source) -> Plan:
    tensors, arch = source.tensors, source.config.get("arch", source.config)
    told, network_config = arch.get("hparams") or {}, arch.get("ddconfig") or {}
    network = network_arguments(tensors, network_config)
    stages, num_codebooks = count(tensors, "encoder.down"), max(1, count(tensors, "quantizer.codebooks"))
    rows = [shape_of(tensors, f"quantizer.codebooks.{i}.weight", 2) for i in range(num_codebooks)]
    if len(set(rows)) > 1:
        raise ValueError(f"quantizer.codebooks have the shapes {rows}: levels of different sizes are not supported")
    size, dim = rows[0][0] - 1, rows[0][1]  # the last row pads and is never chosen
    first = tensors["quantizer.codebooks.0.weight"]
    same = num_codebooks > 1 and all(
        torch.equal(first, tensors[f"quantizer.codebooks.{i}.weight"]) for i in range(1, num_codebooks)
    )
    shared = told.get("shared_codebook", same)
    if shared and num_codebooks > 1 and not same:
        raise ValueError("hparams.shared_codebook is true in the config, but the codebooks of the weights differ")
    code_shape, latent_shape = told.get("code_shape"), told.get("latent_shape")
    depth = code_shape[-1] if code_shape else num_codebooks
    if depth != num_codebooks and not (shared and num_codebooks == 1):
        raise ValueError(f"hparams.code_shape is {code_shape} in the config, but there are {num_codebooks} codebooks")
    if code_shape and latent_shape and list(code_shape[:2]) != list(latent_shape[:2]):
        raise ValueError(
            f"hparams.latent_shape {latent_shape} and hparams.code_shape {code_shape} differ in their grid: folding "
            "space into channels is not supported"
        )
    told_sizes = told.get("n_embed", size)
    for told_size in told_sizes if isinstance(told_sizes, list) else [told_sizes]:
        check_agrees({"n_embed": told_size}, "hparams.", n_embed=size)
    check_agrees(told, "hparams.", embed_dim=dim)
    if network["decoder_widths"] != network["widths"] or network["out_channels"] != network["in_channels"]:
        raise ValueError("encoder and decoder must have the same widths and channels")
    level_config = {
        "beta": told.get("latent_loss_weight", 0.25),
        "decay": _first(told.get("decay", 0.99)),
        "restart_threshold": 0.05 if told.get("restart_unused_codes", True) else 0.0,
    }
    arguments = {
        "in_channels": network["in_channels"],
        "block_out_channels": network["widths"],
        "layers_per_block": network["layers_per_block"],
        "attention_stages": network["attention"],
        "mid_block_add_attention": network["mid_block_add_attention"],
        "latent_channels": network["latent_channels"],
        "stem_channels": network["stem_channels"],
        "codebook_size": size,
        "codebook_dim": dim,
        "quantizer_config": {
            "num_levels": depth,
            "shared_codebook": shared,
            "update_each_level": shared,
            "level_config": level_config,
        },
        "reconstruction_loss": told.get("loss_type", "l1"),
    }

    def weight(name, take):
        if not name.startswith("quantizer."):
            return take(original_name(name, stages))
        _, _, level, part = name.split(".", 3)
        if part not in CODEBOOK:
            return None
        sources = range(num_codebooks) if shared else [int(level)]
        found = [take(f"quantizer.codebooks.{index}.{CODEBOOK[part]}") for index in sources]
        return found[0][:-1] if part == "embedding.weight" else found[0]

    return Plan(as_before(RQVAE, arguments), weight, ("loss.", "discriminator."))


def _first(value):
    return value[0] if isinstance(value, list) else value
