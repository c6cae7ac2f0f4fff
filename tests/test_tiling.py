"""Tiles and slices give what the whole sample gives."""

import pytest
import torch

from hf_vq import DVAE, RQVAE, VQVAE, VQVAE2, MAGVIT2Model, VQModel
from hf_vq.autoencoders.images.tiles import tiled

from .test_autoencoders import SMALL

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
CLOSE_IN_FLOAT64 = {"rtol": 1e-9, "atol": 1e-9}
KERAS = {
    "stage_channels": (8, 16), "kernel_size": 3, "padding": "same", "middle_kernel_size": None,
    "num_residual_layers": 0, "output_kernel_size": 3,
}  # fmt: skip
RITHESH = {
    "stage_channels": (16, 16), "middle_kernel_size": None, "codebook_dim": None, "norm": "batch",
    "residual_form": "rectified", "output_activation": "tanh",
}  # fmt: skip
VQVAES = {
    "sonnet": {}, "kernel 5": {"kernel_size": 5, "middle_kernel_size": 5}, "kernel 3": {"kernel_size": 3},
    "three stages": {"stage_channels": (8, 8, 16), "input_shift": 0.5}, "kernel 2": {"kernel_size": 2},
    "keras": KERAS, "rithesh": RITHESH, "even same": {"kernel_size": 6, "padding": "same"},
}  # fmt: skip
ATTENDING = {
    "down_block_types": ("DownEncoderBlock2D",) * 2 + ("AttnDownEncoderBlock2D",),
    "up_block_types": ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 2,
}
VQMODELS = {
    "plain": {"layers_per_block": 2},
    "no attention": {"mid_block_add_attention": False},
    "attention below": ATTENDING,
    "attention in two levels": {
        "down_block_types": ("DownEncoderBlock2D",) + ("AttnDownEncoderBlock2D",) * 2,
        "up_block_types": ("AttnUpDecoderBlock2D",) * 2 + ("UpDecoderBlock2D",),
    },
    "spatial norm": {"norm_type": "spatial", "block_out_channels": (32, 32, 32), "norm_num_groups": 32},
}


def vqvae(case="sonnet"):
    torch.manual_seed(0)
    model = VQVAE(**{**SMALL, **VQVAES[case]})
    model.train()(torch.rand(4, 1, 32, 32))  # k-means, and running statistics of BatchNorm
    return model.eval()


def vqmodel(case="attention below"):
    torch.manual_seed(0)
    config = {
        "block_out_channels": (8, 16, 16), "down_block_types": ("DownEncoderBlock2D",) * 3, "latent_channels": 4,
        "up_block_types": ("UpDecoderBlock2D",) * 3, "norm_num_groups": 4, "num_vq_embeddings": 64,
    }  # fmt: skip
    model = VQModel(**{**config, **VQMODELS[case]})
    for parameter in model.parameters():  # norms that do something, biases that borders feel
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.3)
    model.quantizer.initialize(model.encode(picture(2, 3, 64, 64)).latents)
    return model.eval()


def picture(batch, channels, height, width):
    """Smooth shapes whose level and contrast change from side to side: tiles have other statistics than the whole."""
    down, across = torch.linspace(0, 9, height)[:, None], torch.linspace(0, 7, width)
    waves = torch.stack([torch.sin(down * (1 + i)) * torch.cos(across * (2 + i)) for i in range(batch * channels)])
    picture = waves * torch.linspace(0, 1, width) + torch.linspace(-0.5, 0.5, height)[:, None]
    return (picture.view(batch, channels, height, width) + 0.05 * torch.randn(batch, channels, height, width)) / 2


def all_four(model, sample, codes):
    latents = model.encode(sample).latents
    return latents, model.decode(latents).sample, model.tokenize(sample), model.detokenize(codes)


@torch.no_grad()
def assert_same_as_whole(model, sample, close, **tiling):
    codes = model.tokenize(sample)
    whole = all_four(model, sample, codes)
    model.enable_tiling(**tiling)
    for by_tile, expected in zip(all_four(model, sample, codes), whole, strict=True):
        torch.testing.assert_close(by_tile, expected, **close)  # codes: equal
    model.disable_tiling()
    assert all(torch.equal(again, first) for again, first in zip(all_four(model, sample, codes), whole, strict=True))


def other(name, width=12):
    torch.manual_seed(0)
    model = {
        "VQVAE2": lambda: VQVAE2(1, 8, 1, 4, codebook_size=16, codebook_dim=4),
        "VQVAE2 of three": lambda: VQVAE2(1, 8, 1, 4, codebook_size=16, codebook_dim=4, strides=(2, 2, 2)),
        "residual VQVAE2": lambda: VQVAE2(1, 8, 1, 4, codebook_size=16, codebook_dim=16, residual=True),
        "VQVAE with overlapping shortcut": lambda: VQVAE(
            1, 8, 0, codebook_size=16, codebook_dim=4, shortcut="principal", middle_kernel_size=None, kernel_size=3,
        ),
        "VQVAE with shortcut": lambda: VQVAE(1, 8, 1, codebook_size=16, codebook_dim=4, shortcut=True),
        "DVAE": lambda: DVAE(1, (8, 8, 12), 2, 16, 6),
        "RQVAE": lambda: RQVAE(1, (8, 8, 8), 1, (False, False, True), latent_channels=4, norm_num_groups=4,
                               codebook_size=16, codebook_dim=4),
        "MAGVIT2": lambda: MAGVIT2Model(1, (8, 8, 12), 1, norm_num_groups=4, codebook_size=64),
    }[name]()  # fmt: skip
    model.train()(torch.rand(4, 1, 32, 32))
    if name == "VQVAE with overlapping shortcut":  # which begins without
        for layer in (model.patches.encoder, model.patches.decoder):
            torch.nn.init.normal_(layer.weight, std=0.2)
    return model.eval()


@pytest.mark.parametrize(
    "name",
    [
        "VQVAE with overlapping shortcut",
        "VQVAE2",
        "VQVAE2 of three",
        "residual VQVAE2",
        "VQVAE with shortcut",
        "DVAE",
        "RQVAE",
        "MAGVIT2",
    ],
)
@torch.no_grad()
def test_other_families_in_tiles_agree_with_the_whole(name):
    model, sample = other(name).double(), picture(2, 1, 72, 104).double()  # two codes of 3,744 hang on rounding
    codes = model.tokenize(sample)
    whole = model.detokenize(codes)
    model.enable_tiling(32, exact=name in ("RQVAE", "MAGVIT2"))
    model.enable_slicing()
    tiles = model.tokenize(sample)
    same = zip(codes, tiles, strict=True) if model.hierarchical else [(codes, tiles)]
    assert all(torch.equal(one, other) for one, other in same)
    torch.testing.assert_close(model.detokenize(codes), whole, rtol=1e-4, atol=1e-5)
    if name in ("RQVAE", "MAGVIT2"):  # statistics of patches: near, of the same shape
        model.enable_tiling(32)
        assert model.detokenize(codes).shape == whole.shape


@pytest.mark.parametrize("case", VQVAES)
@pytest.mark.parametrize(("tile", "space"), [(16, (64, 40)), (8, (24, 8)), (32, (32, 96))])
def test_tiles_of_a_vqvae_equal_the_whole(case, tile, space):
    assert_same_as_whole(vqvae(case), torch.rand(2, 1, *space) * 2 - 1, CLOSE, tile_sample_size=tile)


@pytest.mark.parametrize("case", VQMODELS)
def test_exact_tiles_of_a_vqmodel_equal_the_whole(case):
    model = vqmodel(case)
    close = {"rtol": 1e-4, "atol": 1e-4}
    assert_same_as_whole(model, picture(2, 3, 40, 24), close, tile_sample_size=16, exact=True)
    sample = picture(1, 3, 48, 40).double()
    assert_same_as_whole(model.double(), sample, CLOSE_IN_FLOAT64, tile_sample_size=32, exact=True)


def test_default_tiles_of_a_vqmodel_come_near_the_whole():
    model, sample = vqmodel(), picture(1, 3, 96, 96)
    codes = model.tokenize(sample)
    whole = model.detokenize(codes)
    model.enable_tiling(48)
    error = (model.detokenize(codes) - whole).abs().mean() / whole.std()
    assert 1e-3 < error < 0.2
    assert 0.5 < (model.tokenize(sample) == codes).float().mean() < 1  # chance: 1/64


@pytest.mark.parametrize("make", [vqvae, vqmodel])
def test_halo_is_as_wide_as_it_must_be_and_no_wider(make):
    """NaN in one place reaches outputs up to the halo and not beyond (in float64: Winograd's would spread further)."""
    for part in make().double().local_parts():
        for norm in part.each(torch.nn.GroupNorm):
            norm.forward = lambda hidden: hidden
        unit, start = part.unit, part.halo + part.unit
        sample = torch.zeros(1, part.each(torch.nn.Conv2d)[0].in_channels, 2 * start + unit, unit).double()
        sample[:, :, start : start + unit] = float("nan")
        rows = part.function(sample).isnan().any(dim=3).any(dim=1)[0].nonzero() * part.stride_out / part.stride_in
        end = rows.max() + part.stride_out / part.stride_in
        reach = max(start - rows.min(), end - start - unit)
        assert part.halo - unit < reach <= part.halo


@pytest.mark.parametrize("make", [vqvae, vqmodel])
@pytest.mark.parametrize("tiling", [{}, {"tile_sample_size": 16, "exact": True}])
def test_slices_equal_the_batch_and_run_one_by_one(make, tiling):
    model = make()
    sample, sizes = picture(3, model.config.in_channels, 32, 24), []
    if tiling:
        model.enable_tiling(**tiling)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    codes = model.tokenize(sample)
    whole = all_four(model, sample, codes)
    assert set(sizes) == {3}
    model.enable_slicing()
    sizes.clear()
    for sliced, expected in zip(all_four(model, sample, codes), whole, strict=True):
        torch.testing.assert_close(sliced, expected, **CLOSE)
    assert set(sizes) == {1}
    model.disable_slicing()
    assert torch.equal(model.encode(sample).latents, whole[0])


def test_a_tile_never_sees_more_than_core_and_halo():
    sizes, sample = [], torch.rand(1, 1, 40, 20)

    def double(tile):
        sizes.append(tuple(tile.shape[2:]))
        return tile.repeat_interleave(2, 2).repeat_interleave(2, 3)

    assert torch.equal(tiled(double, sample, core=8, halo=4, scale_up=2), double(sample))
    assert max(sizes[:-1]) == (16, 16)
    assert len(sizes) == 5 * 3 + 1


def test_gradients_through_tiles_equal_those_of_the_whole():
    model, gradients = vqvae(), []
    sample = picture(1, 1, 48, 32).requires_grad_()
    for tiling in (False, True):
        if tiling:
            model.enable_tiling(16)
        gradients.append(torch.autograd.grad(model(sample).loss, [sample, *model.parameters()]))
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("exact", [False, True])
def test_gradients_flow_through_tiles_of_a_vqmodel(exact):
    model = vqmodel()
    model.enable_tiling(16, exact=exact)
    model.train()(picture(1, 3, 32, 32)).loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_bad_arguments_are_named():
    for size in (0, -8, 30, 16.0):
        with pytest.raises(ValueError, match=rf"tile_sample_size.*multiple of 4.*{size}"):
            vqvae().enable_tiling(size)
    model = vqvae("rithesh").train()
    model.enable_tiling(16)
    with pytest.raises(ValueError, match="BatchNorm"):
        model(torch.rand(1, 1, 32, 32))
    with pytest.raises(ValueError, match="attention"):
        VQModel(block_out_channels=(32,)).enable_tiling(32)
