"""A code depends on all codes before it in drawing order, as far as its network reaches."""

import json

import pytest
import torch
from transformers import AutoConfig

from hf_vq.priors import PRIORS, AutoregressivePrior, PixelSNAIL, PixelSNAILConfig
from hf_vq.priors.inputs import map_tensors

from .. import test_priors
from ..prior_families import VARIANTS

GRID = (4, 5)
SNAIL = {"codebook_size": 11, "hidden_channels": 16, "residual_channels": 6, "num_attention_heads": 4, "num_blocks": 1}


@torch.no_grad()
def seen(prior, codes, conditions):
    """Whether the logits of a step (second axis) depend on the code of another (first axis), in drawing order."""
    prior, places = prior.double(), prior.drawing_places(tuple(codes.shape[1:]))
    codes = codes.double() if codes.is_floating_point() else codes
    conditions = {
        name: map_tensors(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, value)
        for name, value in prior.check_conditions(conditions, 1, tuple(codes.shape[1:])).items()
    }
    others = prior.tokens.others(codes.flatten(1))
    logits = prior.predict(codes, **conditions)
    moved = torch.zeros(len(places), len(places), dtype=torch.bool)
    for step, place in enumerate(places):
        changed = codes.clone().flatten(1)
        changed[:, place] = others[:, place]
        different = prior.predict(changed.view_as(codes), **conditions) != logits
        moved[step] = different.flatten(1, -2)[0, places].any(-1)
    return moved


def all_before(prior, shape):
    size = torch.Size(shape).numel()
    return torch.ones(size, size, dtype=torch.bool).triu(1)


def steps_before(prior, shape):
    """Of levels that are delayed, those of a step are drawn together."""
    places = torch.Size(shape[1:]).numel()
    order = prior.code_order(shape)
    steps = order // places + order % places
    return steps[:, None] < steps


def within_reach(prior, shape):
    distance = all_before(prior, shape).cumsum(1)
    return (distance > 0) & (distance <= prior.stack.receptive_field)


def left_or_within_reach(prior, shape):
    """All but the plain PixelCNN's blind spot: what is above, but further right than its kernels go by then."""
    row, column = torch.cartesian_prod(*map(torch.arange, shape)).unbind(1)
    above, right = row - row[:, None], column[:, None] - column
    reach = prior.config.kernel_size // 2 * above
    return all_before(prior, shape) & ((right < 0) | (above > 0) & (right <= reach))


WHOLE = ("gpt classes", "gpt permuted", "rq both", "rq classes", "decoder llamagen", "decoder class and text",
         "decoder residual", "decoder video")  # fmt: skip
CASES = {
    **dict.fromkeys(WHOLE, all_before),
    **dict.fromkeys((name for name in VARIANTS if "pixelsnail" in name and "cut" not in name), all_before),
    "decoder delayed": steps_before,
    **dict.fromkeys(("wavenet plain", "wavenet one layer", "waveforms plain"), within_reach),
}
DEEP = {  # stacks of kernels, deep enough for their grid
    "pixelcnn gated": (lambda: test_priors.make_prior(num_layers=7), all_before),
    "pixelcnn plain": (
        lambda: test_priors.make_prior("plain", num_layers=6, first_kernel_size=3),
        left_or_within_reach,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_code_depends_on_those_that_its_network_reaches(name):
    prior, codes, conditions = VARIANTS[name](batch_size=1)
    shape = tuple(codes.shape[1:])
    assert torch.equal(seen(prior, codes, conditions), CASES[name](prior, shape))


@pytest.mark.parametrize("name", DEEP)
def test_every_code_depends_on_those_that_a_deep_stack_reaches(name):
    make, expected = DEEP[name]
    prior = make()
    assert torch.equal(seen(prior, torch.randint(11, (1, *GRID)), {}), expected(prior, GRID))


def test_every_family_of_autoregressive_priors_is_looked_at():
    looked_at = {type(VARIANTS[name](batch_size=1)[0]) for name in CASES} | {type(make()) for make, _ in DEEP.values()}
    assert looked_at == {prior for prior in PRIORS.values() if issubclass(prior, AutoregressivePrior)}


# PixelSNAIL: new ones see the ends of rows, those of earlier folders and of rosinality do not


def snail(**options):
    torch.manual_seed(0)
    return PixelSNAIL(PixelSNAILConfig(**{**SNAIL, **options})).eval()


@pytest.mark.parametrize("grid", [GRID, (1, 6), (6, 1), (2, 9), (3, 2)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "num_residual_layers": 1},
        {"kernel_size": 7},
        {"attention": False},
        {"attention": False, "kernel_size": 3, "num_residual_layers": 6},
    ],
    ids=str,
)
def test_a_new_pixelsnail_sees_every_earlier_code_of_every_grid(options, grid):
    prior = snail(**options)
    assert torch.equal(seen(prior, torch.randint(11, (1, *grid)), {}), all_before(prior, grid))


def test_an_earlier_pixelsnail_keeps_its_cuts():
    prior = snail(num_blocks=2, sees_row_ends=False)
    moved, wanted = seen(prior, torch.randint(11, (1, *GRID)), {}), all_before(prior, GRID)
    assert (wanted & ~moved).nonzero().tolist() == [[4, 5], [4, 6], [9, 10], [9, 11], [14, 15], [14, 16]]


def test_a_folder_that_lacks_the_option_is_of_before(tmp_path):
    snail().save_pretrained(tmp_path / "new")
    snail(sees_row_ends=False).save_pretrained(tmp_path / "old")
    for name in ("new", "old"):
        assert PixelSNAIL.from_pretrained(tmp_path / name).config.sees_row_ends == (name == "new")
    path = tmp_path / "old/config.json"
    saved = json.loads(path.read_text())
    del saved["sees_row_ends"]
    path.write_text(json.dumps(saved))
    for config in (
        PixelSNAILConfig.from_pretrained(tmp_path / "old"),
        PixelSNAILConfig.from_json_file(path),
        PixelSNAILConfig.from_dict(saved),
        AutoConfig.from_pretrained(tmp_path / "old"),
        PixelSNAIL.from_pretrained(tmp_path / "old").config,
    ):
        assert config.sees_row_ends is False
    assert PixelSNAILConfig.from_pretrained(tmp_path / "old", sees_row_ends=True).sees_row_ends is True
