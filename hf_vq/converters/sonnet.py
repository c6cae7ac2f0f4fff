"""The VQ-VAE of Sonnet's example, from its variables as .npz."""

from hf_vq.autoencoders import VQVAE
from hf_vq.converters.base import Plan, Source, add_format, as_before
from hf_vq.converters.shapes import count, shape_of

ORIGIN = "https://github.com/google-deepmind/sonnet"
MARK, ENCODER, VALUE = "_vqvae/embeddings", "_encoder/_enc_1/w", "/.ATTRIBUTES/VARIABLE_VALUE"
PLACES = {
    "downsample.0.conv": "_encoder/_enc_1",
    "downsample.1.conv": "_encoder/_enc_2",
    "encoder_middle": "_encoder/_enc_3",
    "to_latents": "_pre_vq_conv1",
    "decoder_middle": "_decoder/_dec_1",
    "upsample.0.conv": "_decoder/_dec_2",
    "upsample.1.conv": "_decoder/_dec_3",
}
EMA = {
    "embedding.weight": "embeddings",
    "cluster_size": "ema_cluster_size/_hidden",
    "embedding_sum": "ema_dw/_hidden",
    "ema_steps": "ema_cluster_size/_counter",
}


def _prefix(source):
    """What stands before the names of the model's variables; None where it is not one."""
    found = {name.partition(mark)[0] for mark in (MARK, ENCODER) for name in source.tensors if mark in name}
    return found.pop() if len(found) == 1 else None


def _recognises(source):
    return _prefix(source) is not None


@add_format("sonnet-vqvae", ORIGIN, _recognises)
def plan_sonnet(source: Source) -> Plan:
    prefix, suffix = _prefix(source) or "", VALUE if any(name.endswith(VALUE) for name in source.tensors) else ""
    inner = Source(source.path, {name.removesuffix(VALUE): tensor for name, tensor in source.tensors.items()})
    tensors, stack = inner.tensors, f"{prefix}_encoder/_residual_stack/_layers"
    dim, size = shape_of(tensors, f"{prefix}{MARK}", 2)
    hidden = shape_of(tensors, f"{prefix}_encoder/_enc_2/w", 4)[3]
    layers, averaged = count(tensors, stack, "/"), f"{prefix}_vqvae/ema_dw/_hidden" in tensors
    kernel, _, in_channels, first = shape_of(tensors, f"{prefix}_encoder/_enc_1/w", 4)
    arguments = {
        "in_channels": in_channels,
        "hidden_channels": hidden,
        "num_residual_layers": layers,
        "residual_channels": shape_of(tensors, f"{stack}/0/0/w", 4)[3] if layers else None,
        "codebook_size": size,
        "codebook_dim": dim,
        "stage_channels": (first, hidden),
        "kernel_size": kernel,
        "padding": "same",
        "middle_kernel_size": shape_of(tensors, f"{prefix}_encoder/_enc_3/w", 4)[0],
        "quantizer_type": "ema" if averaged else "vector",
        "quantizer_config": {
            "restart_threshold": 0.0,
            **({"zero_debias": True, "kmeans_init": False} if averaged else {}),
        },
        "input_scale": 0.5,
    }

    def weight(name, take):
        stem, _, kind = name.rpartition(".")
        if name.startswith("quantizer."):
            tensor = take(f"{prefix}_vqvae/{EMA[name.removeprefix('quantizer.')]}{suffix}")
            return tensor.T if tensor.ndim == 2 else tensor
        if stem in PLACES:
            place = PLACES[stem]
        else:  # such as decoder_residual.layers.0.conv1
            first, _, layer, conv = stem.split(".")
            side = first.removesuffix("_residual")
            place = f"_{side}/_residual_stack/_layers/{layer}/{int(conv[-1]) - 1}"
        tensor = take(f"{prefix}{place}/{'w' if kind == 'weight' else 'b'}{suffix}")
        return tensor.permute(3, 2, 0, 1) if kind == "weight" else tensor

    ignored = ("_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter", "module/_data_variance")
    derived = tuple(
        f"{prefix}_vqvae/{part}" for part in ("ema_cluster_size/average", "ema_dw/average", "ema_dw/_counter")
    )
    return Plan(as_before(VQVAE, arguments), weight, ignored + derived)
