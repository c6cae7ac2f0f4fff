"""Forwards of original projects in plain tensors, under the names of their checkpoints, written from their papers and
configs: what the converters' tests compare with at sizes that no fixture has."""

import math

import torch
import torch.nn.functional as F


class Net:
    """Layers by the original's names; a layer is drawn at its first use, so that one run writes the checkpoint."""

    def __init__(self, seed, weight="weight", bias="bias", dot="."):
        self.tensors, self.generator = {}, torch.Generator().manual_seed(seed)
        self.weight, self.bias, self.dot = weight, bias, dot

    def draw(self, name, *shape, scale=1.0, shift=0.0):
        if name not in self.tensors:
            self.tensors[name] = torch.randn(shape, generator=self.generator) * scale + shift
        return self.tensors[name]

    def conv(self, name, x, width, kernel=3, stride=1, padding=None, bias=True):
        fan_in = x.shape[1] * kernel**2
        weight = self.draw(f"{name}{self.dot}{self.weight}", width, x.shape[1], kernel, kernel, scale=fan_in**-0.5)
        shift = self.draw(f"{name}{self.dot}{self.bias}", width, scale=0.1) if bias else None
        return F.conv2d(x, weight, shift, stride, kernel // 2 if padding is None else padding)

    def transposed(self, name, x, width):
        weight = self.draw(f"{name}.weight", x.shape[1], width, 4, 4, scale=(4 * x.shape[1]) ** -0.5)
        return F.conv_transpose2d(x, weight, self.draw(f"{name}.bias", width, scale=0.1), 2, 1)

    def linear(self, name, x, width, bias=True):
        weight = self.draw(f"{name}.weight", width, x.shape[-1], scale=x.shape[-1] ** -0.5)
        return F.linear(x, weight, self.draw(f"{name}.bias", width, scale=0.1) if bias else None)

    def norm(self, name, x):
        """Of groups in a map, of channels in tokens."""
        width = x.shape[1] if x.ndim == 4 else x.shape[-1]
        scale, shift = self.draw(f"{name}.weight", width, scale=0.2, shift=1), self.draw(f"{name}.bias", width)
        return F.group_norm(x, 32, scale, shift, 1e-6) if x.ndim == 4 else F.layer_norm(x, (width,), scale, shift)

    def codebook(self, name, x, size):
        """Vectors near those of x (batch, dim, height, width), so that many are used."""
        rows = x.movedim(1, -1).flatten(0, -2)
        chosen = rows[torch.randperm(len(rows), generator=self.generator)[:size]]
        return self.tensors.setdefault(name, chosen + 0.1 * torch.randn(chosen.shape, generator=self.generator))


def nearest(x, codebook, score=None):
    """Codes (batch, height, width) and their vectors (batch, dim, height, width)."""
    rows = x.movedim(1, -1)
    codes = (score(rows) if score else -torch.cdist(rows.flatten(0, -2)[None], codebook[None])[0]).argmax(-1)
    codes = codes.view(rows.shape[:-1])
    return codes, codebook[codes].movedim(-1, 1)


# taming and its heirs


def block(net, name, x, width, bias=True):
    hidden = net.conv(f"{name}.conv1", F.silu(net.norm(f"{name}.norm1", x)), width, bias=bias)
    hidden = net.conv(f"{name}.conv2", F.silu(net.norm(f"{name}.norm2", hidden)), width, bias=bias)
    return hidden + (x if x.shape[1] == width else net.conv(f"{name}.nin_shortcut", x, width, 1, bias=bias))


def attention(net, name, x):
    hidden, width = net.norm(f"{name}.norm", x), x.shape[1]
    query, key, value = (net.conv(f"{name}.{part}", hidden, width, 1).flatten(2) for part in "qkv")
    weights = (query.transpose(1, 2) @ key * width**-0.5).softmax(dim=-1)  # (batch, queries, keys)
    return x + net.conv(f"{name}.proj_out", (value @ weights.transpose(1, 2)).view_as(x), width, 1)


def middle(net, parts, x, attends):
    x = block(net, parts[0], x, x.shape[1])
    return block(net, parts[2], attention(net, parts[1], x) if attends else x, x.shape[1])


TAMING = {
    "down": "encoder.down.{}",
    "up": "decoder.up.{}",
    "block": "block",
    "mid": ("mid.block_1", "mid.attn_1", "mid.block_2"),
}
LLAMAGEN = {
    "down": "encoder.conv_blocks.{}",
    "up": "decoder.conv_blocks.{}",
    "block": "res",
    "mid": ("mid.0", "mid.1", "mid.2"),
}


def encode(net, x, ch, factors, blocks, attends, latent, mid=True, names=TAMING):
    x = net.conv("encoder.conv_in", x, ch)
    for level, factor in enumerate(factors):
        name = names["down"].format(level)
        for index in range(blocks):
            x = block(net, f"{name}.{names['block']}.{index}", x, ch * factor)
            x = attention(net, f"{name}.attn.{index}", x) if level in attends else x
        if level + 1 < len(factors):
            x = net.conv(f"{name}.downsample.conv", F.pad(x, (0, 1, 0, 1)), x.shape[1], stride=2, padding=0)
    x = middle(net, [f"encoder.{part}" for part in names["mid"]], x, mid)
    return net.conv("encoder.conv_out", F.silu(net.norm("encoder.norm_out", x)), latent)


def decode(net, x, ch, factors, blocks, attends, channels, mid=True, names=TAMING, coarse_first=False):
    x = net.conv("decoder.conv_in", x, ch * factors[-1])
    x = middle(net, [f"decoder.{part}" for part in names["mid"]], x, mid)
    for level in reversed(range(len(factors))):
        name = names["up"].format(len(factors) - 1 - level if coarse_first else level)
        for index in range(blocks + 1):
            x = block(net, f"{name}.{names['block']}.{index}", x, ch * factors[level])
            x = attention(net, f"{name}.attn.{index}", x) if level in attends else x
        if level:
            x = net.conv(f"{name}.upsample.conv", F.interpolate(x, scale_factor=2), x.shape[1])
    return net.conv("decoder.conv_out", F.silu(net.norm("decoder.norm_out", x)), channels)


def dd(ch, ch_mult, blocks, attn, z, resolution=16, channels=3):
    return {
        "double_z": False, "z_channels": z, "resolution": resolution, "in_channels": channels, "out_ch": channels,
        "ch": ch, "ch_mult": ch_mult, "num_res_blocks": blocks, "attn_resolutions": attn, "dropout": 0.0,
    }  # fmt: skip


def taming(kind, factors, blocks, levels, mid, channels):
    """VQModel, GumbelVQ or IBQ of another shape, on images that are not square."""
    net, image = Net(1), torch.rand(2, channels, 16, 32) * 2 - 1
    size, dim, z = 24, 8, 8 if kind == "GumbelVQ" else 12
    x = net.conv("quant_conv", encode(net, image, 32, factors, blocks, levels, z, mid), dim, 1)
    if kind == "GumbelVQ":
        codebook = net.draw("quantize.embed.weight", size, dim)
        codes, x = nearest(
            x, codebook, lambda rows: net.conv("quantize.proj", rows.movedim(-1, 1), size, 1).movedim(1, -1)
        )
    else:
        codebook = net.codebook("quantize.embedding.weight", x, size)
        codes, x = nearest(x, codebook, (lambda rows: rows @ codebook.T) if kind == "IBQ" else None)
    sample = decode(net, net.conv("post_quant_conv", x, z, 1), 32, factors, blocks, levels, channels, mid)
    config = dd(32, factors, blocks, [16 // 2**level for level in levels], z, channels=channels)
    config |= {} if mid else {"attn_type": "none"}
    params = {"embed_dim": dim, "n_embed": size, "ddconfig": config}
    return net, {"model": {"target": f"some.module.{kind}", "params": params}}, image, codes, sample


def rqvae(depth, shared):
    net, image = Net(2), torch.rand(2, 3, 32, 16) * 2 - 1
    network = (32, [2, 1, 2], 2, [1, 2])
    x = net.conv("quant_conv", encode(net, image, *network, 8), 6, 1)
    total, codes = torch.zeros_like(x), []
    for level in range(depth):
        first = "quantizer.codebooks.0.weight"
        codebook = (
            net.tensors[first]
            if shared and level
            else net.codebook(f"quantizer.codebooks.{level}.weight", x - total, 20)
        )
        found, vectors = nearest(x - total, codebook[:20])
        codes.append(found)
        total = total + vectors
        name = f"quantizer.codebooks.{level}"
        net.tensors[f"{name}.weight"] = torch.cat([codebook[:20], torch.zeros(1, 6)])
        net.tensors |= {f"{name}.cluster_size_ema": torch.ones(20), f"{name}.embed_ema": codebook[:20].clone()}
    sample = decode(net, net.conv("post_quant_conv", total, 8, 1), *network, 3)
    grid = [8, 4]
    hparams = {
        "bottleneck_type": "rq", "embed_dim": 6, "n_embed": 20, "latent_shape": [*grid, 6],
        "code_shape": [*grid, depth], "shared_codebook": shared, "decay": 0.99, "restart_unused_codes": True,
        "loss_type": "mse", "latent_loss_weight": 0.25,
    }  # fmt: skip
    config = {"arch": {"type": "rq-vae", "hparams": hparams, "ddconfig": dd(32, [2, 1, 2], 2, [8, 4], 8)}}
    return net, config, image, torch.stack(codes, dim=1) if depth > 1 else codes[0], sample


def llamagen(encoder, decoder, normalize):
    net, image = Net(3), torch.rand(2, 3, 16, 24) * 2 - 1
    last, blocks, z = [len(encoder) - 1], 2, 10
    x = net.conv("quant_conv", encode(net, image, 32, encoder, blocks, last, z, names=LLAMAGEN), 8, 1)
    codebook = net.codebook("quantize.embedding.weight", x, 20)
    if normalize:
        x, codebook = F.normalize(x, dim=1), F.normalize(codebook, dim=-1)
    codes, x = nearest(x, codebook)
    x = net.conv("post_quant_conv", x, z, 1)
    sample = decode(net, x, 32, decoder, blocks, last, 3, names=LLAMAGEN, coarse_first=True)
    net.tensors["quantize.codebook_used"] = torch.zeros(65536)
    config = {"codebook_size": 20, "codebook_embed_dim": 8, "codebook_l2_norm": normalize, "z_channels": z,
              "encoder_ch_mult": encoder, "decoder_ch_mult": decoder}  # fmt: skip
    return net, config, image, codes, sample


def open_magvit2(factors, blocks):
    net, image, dim = Net(4), torch.rand(2, 3, 16, 24) * 2 - 1, 5
    widths = [32 * factor for factor in factors]

    def chain(name, x, width):
        for index in range(blocks):
            x = block(net, f"{name}.{index}", x, width, bias=False)
        return x

    x = net.conv("encoder.conv_in", image, 32, bias=False)
    for level, width in enumerate(widths):
        x = chain(f"encoder.down.{level}.block", x, width)
        x = net.conv(f"encoder.down.{level}.downsample", x, width, stride=2) if level + 1 < len(widths) else x
    x = F.silu(net.norm("encoder.norm_out", chain("encoder.mid_block", x, widths[-1])))
    bits = (net.conv("encoder.conv_out", x, dim, 1) > 0).long()
    codes, latents = sum(bits[:, i] << i for i in range(dim)), 2.0 * bits - 1
    deviation, mean = (latents.var(dim=(2, 3)) + 1e-6).sqrt(), latents.mean(dim=(2, 3))
    x = chain("decoder.mid_block", net.conv("decoder.conv_in", latents, widths[-1]), widths[-1])
    for level in reversed(range(len(widths))):
        scale = net.linear(f"decoder.adaptive.{level}.gamma", deviation, x.shape[1])
        shift = net.linear(f"decoder.adaptive.{level}.beta", mean, x.shape[1])
        x = scale[:, :, None, None] * F.group_norm(x, 32, eps=1e-6) + shift[:, :, None, None]
        x = chain(f"decoder.up.{level}.block", x, widths[level])
        if level:
            fine = torch.empty(len(x), widths[level], 2 * x.shape[2], 2 * x.shape[3])
            quarters = net.conv(f"decoder.up.{level}.upsample.conv1", x, 4 * widths[level]).chunk(4, dim=1)
            for index, quarter in enumerate(quarters):
                fine[:, :, index // 2 :: 2, index % 2 :: 2] = quarter
            x = fine
    sample = net.conv("decoder.conv_out", F.silu(net.norm("decoder.norm_out", x)), 3)
    config = {key: value for key, value in dd(32, factors, blocks, [], dim).items() if key != "attn_resolutions"}
    params = {"ddconfig": config, "n_embed": 2**dim, "embed_dim": dim, "use_ema": False}
    return net, {"model": {"class_path": "some.VQModel", "init_args": params}}, image, codes, sample


# VQ-VAE-2


def rosinality(channel, layers, inner, dim, size):
    net, image = Net(5), torch.rand(2, 3, 32, 48) * 2 - 1

    def stack(name, x, start):
        for index in range(start, start + layers):
            hidden = F.relu(net.conv(f"{name}.blocks.{index}.conv.1", F.relu(x), inner))
            x = x + net.conv(f"{name}.blocks.{index}.conv.3", hidden, channel, 1)
        return F.relu(x)

    def quantize(level, x):
        codebook = net.codebook(f"quantize_{level}.embed", x, size)
        found = nearest(x, codebook)
        averages = {"embed": codebook.T, "embed_avg": codebook.T * 2, "cluster_size": torch.full((size,), 2.0)}
        net.tensors |= {f"quantize_{level}.{part}": tensor for part, tensor in averages.items()}
        return found

    x = F.relu(net.conv("enc_b.blocks.0", image, channel // 2, 4, 2, 1))
    x = net.conv("enc_b.blocks.4", F.relu(net.conv("enc_b.blocks.2", x, channel, 4, 2, 1)), channel)
    bottom = stack("enc_b", x, 5)
    x = F.relu(net.conv("enc_t.blocks.0", bottom, channel // 2, 4, 2, 1))
    x = stack("enc_t", net.conv("enc_t.blocks.2", x, channel), 3)
    top_codes, top = quantize("t", net.conv("quantize_conv_t", x, dim, 1))
    x = stack("dec_t", net.conv("dec_t.blocks.0", top, channel), 1)
    x = torch.cat([net.transposed(f"dec_t.blocks.{layers + 2}", x, dim), bottom], dim=1)
    bottom_codes, bottom = quantize("b", net.conv("quantize_conv_b", x, dim, 1))
    x = torch.cat([net.transposed("upsample_t", top, dim), bottom], dim=1)
    x = F.relu(
        net.transposed(f"dec.blocks.{layers + 2}", stack("dec", net.conv("dec.blocks.0", x, channel), 1), channel // 2)
    )
    return net, None, image, (top_codes, bottom_codes), net.transposed(f"dec.blocks.{layers + 4}", x, 3)


# VQ-Diffusion


def vq_diffusion(
    kind, codes, times, condition, grid, tables, *, size=11, width=16, heads=4, layers=2, steps=7, hidden=48,
    gelu2=True, conv=False, absolute=False, parameter=False, rows=None, class_absolute=False,
):  # fmt: skip
    """Log-probabilities (batch, size, positions) by microsoft's prior of texts, classes or nothing, and its file.

    Codes are (batch, positions); `tables` is the grid of the positions, `grid` that of the codes; a text is
    (batch, length, dim), a class (batch,) below `rows`, or `rows`, which it does not know.
    """
    net = Net(7)
    root, positions = "transformer.", codes.shape[1]
    x = net.draw(f"{root}content_emb.emb.weight", size + 1, width)[codes]
    if parameter:
        sides = [net.draw(f"{root}content_emb.{n}_emb", 1, s, width)[0] for n, s in zip(AXES, tables, strict=True)]
    else:
        sides = [net.draw(f"{root}content_emb.{n}_emb.weight", s, width) for n, s in zip(AXES, tables, strict=True)]
    x = x + (sides[0][:, None] + sides[1]).flatten(0, 1)[:positions]

    def sinusoids(numbers, most):
        rates = torch.exp(torch.arange(width // 2) * (-math.log(10_000) / (width // 2 - 1)))
        angles = (numbers / most * 4000)[:, None] * rates  # in float32, as there: sines of large angles differ
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    def modulated(name, x, numbers, most, absolute):
        if absolute:
            features = sinusoids(numbers, most)
        else:
            table = net.draw(f"{name}.emb.weight", most, width)
            features = torch.cat([table, table.mean(0, keepdim=True)])[numbers]
        scale, shift = net.linear(f"{name}.linear", F.silu(features), 2 * width)[:, None].chunk(2, dim=-1)
        return F.layer_norm(x, (width,)) * (1 + scale) + shift

    def attend(name, x, context):
        query, key, value = (
            net.linear(f"{name}.{part}", of, width).unflatten(-1, (heads, -1)).transpose(1, 2)
            for part, of in (("query", x), ("key", context), ("value", context))
        )
        weights = (query @ key.transpose(2, 3) * (width // heads) ** -0.5).softmax(dim=-1)
        return net.linear(f"{name}.proj", (weights @ value).transpose(1, 2).flatten(2), width)

    activation = (lambda x: x * torch.sigmoid(1.702 * x)) if gelu2 else F.gelu
    for layer in range(layers):
        name = f"{root}blocks.{layer}"
        normed = modulated(f"{name}.ln1", x, times, steps, absolute)
        x = x + attend(f"{name}.attn{'1' * (kind == 'text')}", normed, normed)
        if kind == "text":
            x = x + attend(f"{name}.attn2", modulated(f"{name}.ln1_1", x, times, steps, absolute), condition)
            net.tensors[f"{name}.attn2.mask"] = torch.ones(1, 1, positions, positions).tril()
        classes = kind == "class"
        normed = (
            modulated(f"{name}.ln2", x, condition, rows, class_absolute) if classes else net.norm(f"{name}.ln2", x)
        )
        if conv:
            image = normed.transpose(1, 2).unflatten(2, grid)
            image = net.conv(f"{name}.mlp.conv2", activation(net.conv(f"{name}.mlp.conv1", image, hidden)), width)
            x = x + image.flatten(2).transpose(1, 2)
        else:
            x = x + net.linear(f"{name}.mlp.2", activation(net.linear(f"{name}.mlp.0", normed, hidden)), width)
    logits = net.linear(f"{root}to_logits.1", net.norm(f"{root}to_logits.0", x), size)
    net.tensors |= vq_diffusion_schedule(steps, size)
    net.tensors |= {"Lt_history": torch.rand(steps), "Lt_count": torch.arange(steps) * 1.0}
    target = {"text": "Text2Image", "class": "Condition2Image", "none": "UnCondition2Image"}[kind]
    params = {
        "attn_type": {"text": "selfcross", "class": "selfcondition", "none": "self"}[kind], "n_layer": layers,
        "content_seq_len": positions, "content_spatial_size": [*grid], "n_embd": width, "n_head": heads,
        "block_activate": "GELU2" if gelu2 else "GELU", "mlp_hidden_times": hidden / width,
        "timestep_type": "adalayernorm_abs" if absolute else "adalayernorm", "attn_pdrop": 0.1, "resid_pdrop": 0.2,
    }  # fmt: skip
    if kind == "text":
        params |= {"condition_seq_len": condition.shape[1], "condition_dim": condition.shape[2]}
    if kind == "class":
        params |= {"class_type": "adalayernorm_abs" if class_absolute else "adalayernorm", "class_number": rows}
    places = {"num_embed": size, "spatial_size": [*tables], "embed_dim": width}
    config = {
        "diffusion_step": steps, "alpha_init_type": "alpha1", "auxiliary_loss_weight": 1e-3, "mask_weight": [0.5, 1],
        "transformer_config": {"target": f"some.{target}Transformer", "params": params},
        "content_emb_config": {"target": "some.DalleMaskImageEmbedding", "params": places},
    }  # fmt: skip
    told = {"diffusion_config": {"target": "some.DiffusionTransformer", "params": config}}
    return net.tensors, {"model": {"target": "some.DALLE", "params": told}}, logits.log_softmax(-1).transpose(1, 2)


AXES = ("height", "width")


def vq_diffusion_schedule(steps, size):
    """The eight buffers: alpha and gamma from 1 to 0 and back in even steps, cumulated and of each step."""
    way = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    alpha, gamma = 0.99999 + way * (0.000009 - 0.99999), 0.000009 + way * (0.99999 - 0.000009)
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    step_alpha = alpha / torch.cat([one, alpha[:-1]])
    step_gamma = 1 - (1 - gamma) / (1 - torch.cat([zero, gamma[:-1]]))
    alpha, gamma = torch.cat([alpha, one]), torch.cat([gamma, zero])
    found = {
        "log_at": step_alpha, "log_bt": (1 - step_alpha - step_gamma) / size, "log_ct": step_gamma,
        "log_1_min_ct": 1 - step_gamma, "log_cumprod_at": alpha, "log_cumprod_bt": (1 - alpha - gamma) / size,
        "log_cumprod_ct": gamma, "log_1_min_cumprod_ct": 1 - gamma,
    }  # fmt: skip
    return {name: rate.log().float() for name, rate in found.items()}
