"""Facts about converters at other sizes and options: forwards of the originals, written here, agree with models."""

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from transformers import AutoModel

import hf_vq
from hf_vq.converters import convert

from .original_networks import Net, llamagen, nearest, open_magvit2, rosinality, rqvae, taming

CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def dalle(width, layers, dim, size):
    net, image, gain = Net(6, "w", "b"), torch.rand(2, 3, 16, 24) * 2 - 1, (4 * layers) ** -2

    def group(name, x, out, kernels):
        for index in range(1, layers + 1):
            path, hidden = f"{name}.block_{index}", x
            for place, (kernel, inner) in enumerate(zip(kernels, (*[out // 4] * 3, out), strict=True), 1):
                hidden = net.conv(f"{path}.res_path.conv_{place}", F.relu(hidden), inner, kernel)
            x = (x if x.shape[1] == out else net.conv(f"{path}.id_path", x, out, 1)) + gain * hidden
        return x

    x = net.conv("encoder.blocks.input", 0.8 * (image + 1) / 2 + 0.1, width, 7)
    for index, factor in enumerate((1, 2, 4, 8)):
        x = F.max_pool2d(x, 2) if index else x
        x = group(f"encoder.blocks.group_{index + 1}", x, factor * width, (3, 3, 3, 1))
    codes = net.conv("encoder.blocks.output.conv", F.relu(x), size, 1).argmax(dim=1)
    x = net.conv("decoder.blocks.input", F.one_hot(codes, size).movedim(-1, 1).float(), dim, 1)
    for index, factor in enumerate((8, 4, 2, 1)):
        x = F.interpolate(x, scale_factor=2) if index else x
        x = group(f"decoder.blocks.group_{index + 1}", x, factor * width, (1, 3, 3, 3))
    stats = net.conv("decoder.blocks.output.conv", F.relu(x), 6, 1)
    return net, None, image, codes, ((stats[:, :3].sigmoid() - 0.1) / 0.8).clamp(0, 1) * 2 - 1


def vitvqgan(image_size, patch, heads, head_dim, use_norm):
    net, image = Net(7), torch.rand(2, 3, *image_size) * 2 - 1
    grid = [side // step for side, step in zip(image_size, patch, strict=True)]

    def transformer(side, x, depth):
        for index in range(depth):
            name = f"{side}.transformer.layers.{index}"
            qkv = net.linear(f"{name}.0.fn.to_qkv", net.norm(f"{name}.0.norm", x), 3 * heads * head_dim, bias=False)
            query, key, value = qkv.unflatten(-1, (3, heads, head_dim)).permute(2, 0, 3, 1, 4)
            mixed = (query @ key.transpose(2, 3) * head_dim**-0.5).softmax(-1) @ value
            x = x + net.linear(f"{name}.0.fn.to_out", mixed.transpose(1, 2).flatten(2), x.shape[-1])
            hidden = net.linear(f"{name}.1.fn.net.0", net.norm(f"{name}.1.norm", x), 28).tanh()
            x = x + net.linear(f"{name}.1.fn.net.2", hidden, x.shape[-1])
        return net.norm(f"{side}.transformer.norm", x)

    kernel = net.draw("encoder.to_patch_embedding.0.weight", 16, 3, *patch, scale=0.2)
    x = F.conv2d((image + 1) / 2, kernel, net.draw("encoder.to_patch_embedding.0.bias", 16), patch)
    places = net.draw("encoder.en_pos_embedding", 1, grid[0] * grid[1], 16)
    x = net.linear("pre_quant", transformer("encoder", x.flatten(2).transpose(1, 2) + places, 1), 6)
    x = x.transpose(1, 2).unflatten(2, grid)
    codebook = net.codebook("quantizer.embedding.weight", x, 10)
    codes, x = nearest(*((F.normalize(x, dim=1), F.normalize(codebook, dim=-1)) if use_norm else (x, codebook)))
    places = net.draw("decoder.de_pos_embedding", 1, grid[0] * grid[1], 20)
    x = transformer("decoder", net.linear("post_quant", x.flatten(2).transpose(1, 2), 20) + places, 2)
    kernel = net.draw("decoder.to_pixel.1.weight", 20, 3, *patch, scale=0.2)
    x = F.conv_transpose2d(x.transpose(1, 2).unflatten(2, grid), kernel, net.draw("decoder.to_pixel.1.bias", 3), patch)
    sides = {side: {"dim": dim, "depth": depth, "heads": heads, "mlp_dim": 28, "dim_head": head_dim}
             for side, dim, depth in (("encoder", 16, 1), ("decoder", 20, 2))}  # fmt: skip
    params = {"image_size": image_size, "patch_size": patch, **sides,
              "quantizer": {"embed_dim": 6, "n_embed": 10, "use_norm": use_norm}}  # fmt: skip
    return net, {"model": {"target": "some.ViTVQ", "params": params}}, image, codes, x * 2 - 1


def keras(filters, dim, first):
    """Names count on from an earlier model in the same session; padding "same" adds and crops at the end."""
    net, image = Net(8), torch.rand(2, 1, 24, 32) * 2 - 1

    def layer(name, x, width, transposed=False, kernel=3, stride=2):
        shape = (kernel, kernel, width, x.shape[1]) if transposed else (kernel, kernel, x.shape[1], width)
        weight = net.draw(f"{name}/kernel:0", *shape, scale=(x.shape[1] * kernel) ** -0.5).permute(3, 2, 0, 1)
        bias, height, breadth = net.draw(f"{name}/bias:0", width, scale=0.1), *(stride * side for side in x.shape[2:])
        if transposed:
            full = F.conv_transpose2d(x, weight, bias, stride)
            start = 0 if stride == 2 else 1
            return full[:, :, start : start + height, start : start + breadth]
        return F.conv2d(F.pad(x, (0, 1, 0, 1)) if stride == 2 else x, weight, bias, stride)

    x = image / 2
    for index, width in enumerate(filters):
        x = F.relu(layer(f"encoder/conv2d_{first + index}", x, width))
    x = layer(f"encoder/conv2d_{first + len(filters)}", x, dim, kernel=1, stride=1)
    codebook = net.codebook("vector_quantizer/embeddings_vqvae:0", x, 16)
    codes, x = nearest(x, codebook)
    net.tensors["vector_quantizer/embeddings_vqvae:0"] = codebook.T
    moments = {name: torch.zeros_like(tensor) for name, tensor in net.tensors.items()}  # as after training
    for index, width in enumerate(filters[::-1]):
        x = F.relu(layer(f"decoder/conv2d_transpose_{first + index}", x, width, transposed=True))
    net.tensors |= {f"optimizer_weights/Adam/m/{name}": tensor for name, tensor in moments.items()}
    net.tensors |= {"optimizer_weights/Adam/iter:0": torch.tensor(5), "total_loss_tracker/total:0": torch.tensor(0.1)}
    name = f"decoder/conv2d_transpose_{first + len(filters)}"
    return net, None, image, codes, 2 * layer(name, x, 1, transposed=True, stride=1)


def sonnet(layers):
    net, image = Net(9), torch.rand(2, 1, 16, 24) * 2 - 1

    def layer(name, x, width, kernel=3, stride=1, transposed=False):
        shape = (kernel, kernel, width, x.shape[1]) if transposed else (kernel, kernel, x.shape[1], width)
        weight = net.draw(f"{name}/w", *shape, scale=(x.shape[1] * kernel) ** -0.5).permute(3, 2, 0, 1)
        run, bias = F.conv_transpose2d if transposed else F.conv2d, net.draw(f"{name}/b", width, scale=0.1)
        return run(x, weight, bias, stride, kernel // 2 if stride == 1 else 1)

    def stack(side, x):
        for index in range(layers):
            name = f"{side}/_residual_stack/_layers/{index}"
            x = x + layer(f"{name}/1", F.relu(layer(f"{name}/0", F.relu(x), 5)), 12, kernel=1)
        return F.relu(x)

    x = F.relu(layer("_encoder/_enc_1", image / 2, 6, 4, 2))
    x = F.relu(layer("_encoder/_enc_3", F.relu(layer("_encoder/_enc_2", x, 12, 4, 2)), 12))
    x = layer("_pre_vq_conv1", stack("_encoder", x), 7, kernel=1)
    codebook = net.codebook("_vqvae/embeddings", x, 18)
    codes, x = nearest(x, codebook)
    net.tensors["_vqvae/embeddings"] = codebook.T
    x = layer("_decoder/_dec_2", stack("_decoder", layer("_decoder/_dec_1", x, 12)), 6, 4, 2, transposed=True)
    return net, None, image, codes, 2 * layer("_decoder/_dec_3", F.relu(x), 1, 4, 2, transposed=True)


def ritheshkumar(width, size):
    net, image = Net(10), torch.rand(2, 1, 16, 24) * 2 - 1

    def norm(name, x):
        net.tensors[f"{name}.num_batches_tracked"] = torch.tensor(7)
        mean, variance = (
            net.draw(f"{name}.running_mean", x.shape[1]),
            net.draw(f"{name}.running_var", x.shape[1]).abs_(),
        )
        scale, shift = net.draw(f"{name}.weight", x.shape[1]), net.draw(f"{name}.bias", x.shape[1])
        return F.batch_norm(x, mean, variance, scale, shift)

    def residual(name, x):
        x = F.relu(x)
        hidden = F.relu(norm(f"{name}.block.2", net.conv(f"{name}.block.1", x, width)))
        return x + norm(f"{name}.block.5", net.conv(f"{name}.block.4", hidden, width, 1))

    x = F.relu(norm("encoder.1", net.conv("encoder.0", image, width, 4, 2, 1)))
    x = net.conv("encoder.3", x, width, 4, 2, 1)
    codes, x = nearest(
        *(lambda z: (z, net.codebook("codebook.embedding.weight", z, size)))(
            residual("encoder.5", residual("encoder.4", x))
        )
    )
    x = F.relu(residual("decoder.1", residual("decoder.0", x)))
    x = F.relu(norm("decoder.4", net.transposed("decoder.3", x, width)))
    return net, None, image, codes, net.transposed("decoder.6", x, 1).tanh()


CASES = {
    "taming-vqgan": lambda: taming("VQModel", [2, 1, 3], 2, [1, 2], True, 3),
    "taming-vqgan, grey": lambda: taming("VQModel", [1, 2], 1, [], False, 1),
    "taming-gumbel": lambda: taming("GumbelVQ", [1, 2, 2], 1, [0, 2], True, 3),
    "ibq": lambda: taming("IBQ", [1, 2], 1, [], True, 3),
    "rqvae, three codebooks": lambda: rqvae(3, False),
    "rqvae, shared": lambda: rqvae(2, True),
    "rqvae, one level": lambda: rqvae(1, False),
    "llamagen-vq": lambda: llamagen([1, 2, 1], [2, 1, 3], True),
    "llamagen-vq, not normalised": lambda: llamagen([2, 1], [1, 2], False),
    "open-magvit2": lambda: open_magvit2([1, 2, 3], 2),
    "rosinality-vqvae2": lambda: rosinality(12, 3, 5, 6, 24),
    "rosinality-vqvae2 without residual blocks": lambda: rosinality(8, 0, 5, 4, 24),
    "dalle-dvae": lambda: dalle(8, 2, 64, 40),
    "vitvqgan": lambda: vitvqgan([24, 16], [8, 4], 3, 6, True),
    "vitvqgan, by distance": lambda: vitvqgan([24, 24], [8, 8], 1, 12, False),
    "sonnet-vqvae without residual blocks": lambda: sonnet(0),
    "sonnet-vqvae, three layers": lambda: sonnet(3),
    "ritheshkumar-vqvae, grey": lambda: ritheshkumar(6, 14),
    "keras-vqvae": lambda: keras([6, 10, 14], 5, 8),
}


def write_checkpoint(name, tensors, config, folder):
    """In the file format of the original, and its config where it has one."""
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    if name.startswith("dalle"):
        for half in ("encoder", "decoder"):
            own = {key.partition(".")[2]: tensor for key, tensor in tensors.items() if key.startswith(half)}
            torch.save(own, folder / f"{half}.pkl")
    elif name.startswith("keras"):
        with pytest.importorskip("h5py").File(folder / "weights.h5", "w") as file:
            for key, tensor in tensors.items():
                file[key] = tensor.numpy()
    elif name.startswith("sonnet"):
        np.savez(folder / "variables.npz", **{f"module/{key}": tensor.numpy() for key, tensor in tensors.items()})
    else:
        torch.save({"state_dict": tensors}, folder / "model.ckpt")
    if config:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_other_sizes_give_the_same_codes_and_samples(name, tmp_path):
    net, config, image, codes, sample = CASES[name]()
    write_checkpoint(name, net.tensors, config, tmp_path)
    converted = convert(tmp_path, tmp_path / "out", license="mit")
    for model in (converted, hf_vq.AutoVQModel.from_pretrained(tmp_path / "out")):
        output = model(image)
        torch.testing.assert_close(model.tokenize(image), codes, rtol=0, atol=0)
        torch.testing.assert_close(output.sample, sample, **CLOSE)
        torch.testing.assert_close(model.detokenize(model.tokenize(image)), sample, **CLOSE)
    copy = pickle.loads(pickle.dumps(converted))
    torch.testing.assert_close(copy.tokenize(image), codes, rtol=0, atol=0)
    shapes = tuple(tuple(part.shape[1:]) for part in codes) if converted.hierarchical else tuple(codes.shape[1:])
    assert converted.code_shape(image.shape[1:]) == shapes


def test_integers_stay_integers_in_half_precision(tmp_path):
    model = hf_vq.VQModel(
        block_out_channels=(32,), num_vq_embeddings=600, quantizer_type="remapped", quantizer_config={"num_used": 3}
    )
    model.quantizer.used.copy_(torch.tensor([599, 4, 301]))  # bfloat16 has no 599
    model.save_pretrained(tmp_path)
    face = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert face.dtype == torch.bfloat16
    assert torch.equal(face.autoencoder.quantizer.used, model.quantizer.used)
    assert face.tokenize(torch.rand(1, 3, 4, 4).bfloat16()).max() < 3


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (hf_vq.RQVAE, {"block_out_channels": (), "attention_stages": None}, "block_out_channels"),
        (hf_vq.RQVAE, {"stem_channels": 33}, "stem_channels.*33"),
        (hf_vq.VQModel, {"stem_channels": 0}, "stem_channels.*0"),
        (hf_vq.VQModel, {"decoder_block_out_channels": (40,)}, r"decoder_block_out_channels\[0\].*40"),
        (hf_vq.VQModel, {"quantizer_type": "remapped"}, "num_used.*None"),
        (
            hf_vq.VQModel,
            {"quantizer_type": "remapped", "quantizer_config": {"num_used": 3, "base_config": {"code_dim": 2}}},
            "code_dim.*2",
        ),
        (hf_vq.VQVAE2, {"num_residual_layers": 1.5}, "num_residual_layers.*1.5"),
    ],
)
def test_bad_arguments_are_named(build, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sonnet", lambda weights, _: weights.update({"_encoder/_enc_3/b": torch.ones(2, 2)}), "_enc_3/b"),
        ("sonnet", lambda weights, _: weights.update({"_decoder/_dec_1/w": torch.ones(3)}), "_dec_1/w"),
        ("rosinality", lambda weights, _: weights.pop("dec.blocks.5.weight"), r"dec\.blocks\.5\.weight"),
        ("taming", lambda _, config: config["model"].update(target=7), "target.*7"),
        ("taming", lambda weights, _: weights.update({"quantize.used": torch.tensor([3, 24])}), r"quantize\.used"),
    ],
)
@torch.no_grad()
def test_wrong_checkpoints_name_file_and_key(name, change, message, tmp_path):
    builds = {
        "sonnet": lambda: sonnet(1),
        "rosinality": lambda: rosinality(8, 1, 4, 4, 8),
        "taming": CASES["taming-vqgan, grey"],
    }
    net, config, *_ = builds[name]()
    change(net.tensors, config)
    write_checkpoint(name, net.tensors, config, tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        convert(tmp_path, tmp_path / "out")
    assert str(tmp_path) in str(error.value)
    assert not (tmp_path / "out").exists()
