"""The VQ-VAE of the Keras example and its PixelCNN, from any of Keras's own file formats.

Weights files name layers by their classes or by counters, which users change: what is what is told by order and shape.
"""

import re
from dataclasses import dataclass
from typing import Any

from hf_vq.autoencoders import VQVAE
from hf_vq.converters.base import Plan, Source, add_format, as_before
from hf_vq.priors import PixelCNN, PixelCNNConfig

ORIGIN = "https://keras.io/examples/generative/vq_vae"
TRANSPOSED = "conv2d_transpose"
OPTIMIZERS = ("optimizer/", "optimizer_weights/", "_optimizer/")
KERNEL = re.compile(r"/(kernel(:0)?|vars/0)$")


@dataclass
class Layer:
    """A convolution: the names of its kernel (height, width, a, b) and its bias, and the kernel's shape."""

    kernel: str
    bias: str
    shape: tuple[int, ...]


def _passed_over(source):
    """Names of what a whole saved model holds beside weights: the optimizer's state, and numbers that it tracks."""
    return tuple(name for name, tensor in source.tensors.items() if name.startswith(OPTIMIZERS) or tensor.ndim == 0)


def _layers(source):
    """Convolutions by the path of their group, in the order that Keras counts names."""
    layers = {}
    for name in sorted(set(source.tensors) - set(_passed_over(source)), key=_natural):
        tensor = source.tensors[name]
        if tensor.ndim == 4 and KERNEL.search(name):
            folder, _, leaf = name.rpartition("/")
            bias = f"{folder}/{leaf.replace('kernel', 'bias') if 'kernel' in leaf else '1'}"
            path = folder.removesuffix("/vars")
            layers[path] = Layer(name, bias, tuple(tensor.shape))
    return layers


def _check_kernels(source):
    """A ValueError that names a kernel whose bias is there alone."""
    for name, tensor in source.tensors.items():
        folder, _, leaf = name.rpartition("/")
        kernel = f"{folder}/{'0' if leaf == '1' else leaf.replace('bias', 'kernel')}"
        alone = re.fullmatch(r"bias(:0)?|1", leaf) and tensor.ndim == 1 and kernel not in source.tensors
        if alone and name not in _passed_over(source):
            raise ValueError(f"the checkpoint has no tensor {kernel!r}")


def _natural(name):
    """Sorts conv2d before conv2d_1 before conv2d_2 before conv2d_10."""
    parts = [re.fullmatch(r"(.*?)(?:_(\d+))?", part) for part in name.split("/")]
    return [(part[1], int(part[2] or 0)) for part in parts]


def _codebooks(source):
    passed = _passed_over(source)
    return [name for name, tensor in source.tensors.items() if tensor.ndim == 2 and "/" in name and name not in passed]


def _recognises_vqvae(source):
    layers = _layers(source)
    return len(_codebooks(source)) <= 1 and len(layers) > 1 and any(TRANSPOSED in path for path in layers)


def _recognises_pixelcnn(source):
    layers = _layers(source)
    masked = [layer for layer in layers.values() if layer.shape[0] > 1]
    return not _codebooks(source) and bool(masked) and not any(TRANSPOSED in path for path in layers)


@add_format("keras-vqvae", ORIGIN, _recognises_vqvae)
def plan_vqvae(source: Source) -> Plan:
    _check_kernels(source)
    layers = _layers(source)
    encoder = [layer for path, layer in layers.items() if TRANSPOSED not in path]
    decoder = [layer for path, layer in layers.items() if TRANSPOSED in path]
    codebooks = _codebooks(source)
    if len(codebooks) != 1:
        raise ValueError(f"there must be one matrix, the codebook of the vector quantizer; there are {codebooks}")
    codebook = codebooks[0]
    dim, size = source.tensors[codebook].shape
    if len(encoder) < 2 or len(decoder) != len(encoder):
        raise ValueError(
            "the Keras example has as many transposed convolutions as convolutions, at least two of each; "
            f"{source.path} has {len(decoder)} and {len(encoder)}"
        )
    strided = encoder[:-1] + decoder[:-1]
    kernels = {layer.shape[:2] for layer in strided}
    if len(kernels) > 1 or encoder[-1].shape[:2] != (1, 1):
        raise ValueError(
            f"kernels must have one size, and 1x1 before the codebook; got {[one.shape for one in layers.values()]}"
        )
    arguments = {
        "in_channels": encoder[0].shape[2],
        "hidden_channels": encoder[-2].shape[3],
        "stage_channels": tuple(layer.shape[3] for layer in encoder[:-1]),
        "kernel_size": encoder[0].shape[0],
        "padding": "same",
        "middle_kernel_size": None,
        "num_residual_layers": 0,
        "output_kernel_size": decoder[-1].shape[0],
        "codebook_size": size,
        "codebook_dim": dim,
        "quantizer_type": "vector",
        "quantizer_config": {"restart_threshold": 0.0},
        "input_scale": 0.5,
    }
    places = {"to_latents": encoder[-1], "output": decoder[-1]}
    places |= {f"downsample.{i}.conv": layer for i, layer in enumerate(encoder[:-1])}
    places |= {f"upsample.{i}.conv": layer for i, layer in enumerate(decoder[:-1])}

    def weight(name, take):
        if name == "quantizer.embedding.weight":
            return take(codebook).T
        stem, _, kind = name.rpartition(".")
        if kind == "bias":
            return take(places[stem].bias)
        kernel = take(places[stem].kernel).permute(3, 2, 0, 1)
        if stem == "output":  # a transposed convolution without stride: the kernel turned round
            return kernel.transpose(0, 1).flip(2, 3)
        return kernel

    return Plan(as_before(VQVAE, arguments), weight, _passed_over(source))


@add_format("keras-pixelcnn", ORIGIN, _recognises_pixelcnn)
def plan_pixelcnn(source: Source) -> Plan:
    _check_kernels(source)
    first, blocks, heads = _parts_of_pixelcnn(source)
    size, width = first.shape[2:]
    config = PixelCNNConfig(
        codebook_size=size,
        gated=False,
        one_hot=True,
        hidden_channels=width,
        num_layers=len(blocks),
        first_kernel_size=first.shape[0],
        kernel_size=blocks[0][1].shape[0] if blocks else 3,
        head_channels=[layer.shape[3] for layer in heads[:-1]],
    )
    if heads[-1].shape[3] != size:
        raise ValueError(f"{heads[-1].kernel} makes {heads[-1].shape[3]} logits, {first.kernel} reads {size} codes")

    def weight(name, take):
        head = re.fullmatch(r"head\.(\d+)\.(\w+)", name)
        if head:
            return _convolution(heads[int(head[1]) // 2], head[2], take)
        masked = re.fullmatch(r"stack\.(first|layers\.(\d+)\.causal)\.(above|left)\.(\w+)", name)
        if masked:
            layer = first if masked[1] == "first" else blocks[int(masked[2])][1]
            if masked[4] == "bias":
                return take(layer.bias)
            kernel, middle = take(layer.kernel).permute(3, 2, 0, 1), layer.shape[0] // 2  # unmasked in the file
            if masked[3] == "above":
                return kernel[:, :, :middle]
            return kernel[:, :, middle : middle + 1, : middle + (masked[1] != "first")]
        block, part, kind = re.fullmatch(r"stack\.layers\.(\d+)\.(input|output)\.(\w+)", name).groups()
        return _convolution(blocks[int(block)][0 if part == "input" else 2], kind, take)

    return Plan(lambda: PixelCNN(config), weight, _passed_over(source))


def _convolution(layer, kind, take):
    return take(layer.bias) if kind == "bias" else take(layer.kernel).permute(3, 2, 0, 1)


def _parts_of_pixelcnn(source):
    """The first layer, the three layers of every residual block, and the 1x1 layers at the end."""
    groups: dict[Any, Any] = {}
    for path, layer in _layers(source).items():
        for folder in ("model_weights/", "layers/", "_layer_checkpoint_dependencies/"):
            path = path.removeprefix(folder)
        parts = path.split("/")
        groups.setdefault(parts[0], []).append(layer)
    blocks, single = [], {}
    for name, layers in groups.items():
        if len(layers) == 3:
            masked = [layer for layer in layers if layer.shape[0] > 1]
            plain = [layer for layer in layers if layer.shape[0] == 1]
            if len(masked) != 1:
                raise ValueError(f"{name} must have one masked and two 1x1 convolutions")
            blocks.append((plain[0], masked[0], plain[1]))
        elif len(layers) == 1:
            single[name] = layers[0]
        else:
            raise ValueError(f"{name} has {len(layers)} convolutions: the Keras example has 1, in a residual block 3")
    first = [name for name, layer in single.items() if layer.shape[0] > 1]
    if len(first) != 1:
        raise ValueError(f"one layer outside the residual blocks must have a kernel above 1x1, got {first}")
    kind = re.sub(r"_\d+$", "", first[0])
    heads = [layer for name, layer in single.items() if name != first[0] and re.sub(r"_\d+$", "", name) == kind]
    last = [layer for name, layer in single.items() if re.sub(r"_\d+$", "", name) != kind]
    if len(last) != 1:
        raise ValueError(f"one plain convolution must make the logits, got {[layer.kernel for layer in last]}")
    return single[first[0]], blocks, heads + last
