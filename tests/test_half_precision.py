"""Half precision: finite numbers from every latent, and sums over many codes that lose none of them."""

import copy
import itertools

import pytest
import torch
from torch import nn

from hf_vq.priors import DelayedTransformerPriorConfig, LlamaGenPriorConfig, TransformerPrior, TransformerPriorConfig
from hf_vq.priors.pixelcnn_layers import ShiftedConv2d
from hf_vq.quantizers.gradients import directions

from .prior_families import FAMILIES
from .quantizer_variants import EVERY, make

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
LATENTS = {
    "zero": lambda dtype: torch.zeros(2, 6, 3, 3),
    "one zero": lambda dtype: torch.randn(2, 6, 3, 3) * (torch.arange(3) > 0),
    "tiny": lambda dtype: torch.randn(2, 6, 3, 3).sign() * torch.finfo(dtype).smallest_normal / 8,
    "short": lambda dtype: torch.randn(2, 6, 3, 3) * 1e-5,
    "large": lambda dtype: torch.randn(2, 6, 3, 3).sign() * min(torch.finfo(dtype).max / 2, 1e15),
}
# "short" is "tiny" in float16; float32 has the range of bfloat16
CASES = [
    *itertools.product((torch.bfloat16,), LATENTS),
    *itertools.product((torch.float16,), ("zero", "one zero", "tiny", "large")),
    *itertools.product((torch.float32,), ("zero", "large")),
]


@pytest.mark.parametrize(("dtype", "kind"), CASES)
@EVERY
def test_every_latent_gives_finite_numbers(variant, dtype, kind):
    quantizer = make(variant).train()
    latents = LATENTS[kind](dtype).to(dtype)
    for _ in range(2):  # k-means and statistics leave a codebook that goes on
        latents = latents.detach().requires_grad_()
        output = quantizer(latents)
        assert output.latents.dtype == dtype
        ((output.latents.float() * torch.randn(output.latents.shape)).sum() + output.loss).backward()
        numbers = {"latents": output.latents, "loss": output.loss, "gradient": latents.grad, **dict(output.losses)}
        numbers |= dict(quantizer.state_dict())
        numbers |= {f"{name}.grad": each.grad for name, each in quantizer.named_parameters() if each.grad is not None}
        assert [name for name, value in numbers.items() if not value.isfinite().all()] == []
        quantizer.zero_grad()


def test_directions_are_those_of_normalize_but_without_a_gradient_where_there_is_none():
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-13, 0.0], [1e-6, 0.0]], requires_grad=True)
    found = directions(vectors)
    assert torch.equal(found, nn.functional.normalize(vectors, dim=1))
    found.sum().backward()
    assert vectors.grad[1:3].eq(0).all()
    torch.testing.assert_close(vectors.grad[0], torch.tensor([0.032, -0.024]))
    torch.testing.assert_close(vectors.grad[3], torch.tensor([0.0, 1e6]))


@HALVES
@pytest.mark.parametrize("family", FAMILIES)
def test_a_frequent_code_learns_from_all_of_its_occurrences(family, dtype):
    prior = FAMILIES[family][0].to(dtype).train()
    codes, seen = torch.zeros(1 << 14, dtype=torch.int64), 0
    for module in prior.modules():
        if isinstance(module, nn.Embedding):
            seen += 1
            module(codes).sum().backward()
            assert module.weight.grad[0].eq(1 << 14).all()
            assert module.weight.grad[1:].eq(0).all()
        if isinstance(module, ShiftedConv2d) and family.startswith("pixelsnail") and module.in_channels == 11:
            seen += 1
            module(codes.view(1, 128, 128)).sum().backward()
            rows, columns = module.kernel_size
            reached = module.weight.grad[:, 0].float()
            assert reached.min() > (128 - rows) * (128 - columns) * 0.99
    assert seen > 0 or family in ("wavenet waveforms",)


@HALVES
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_and_gradients_are_close_to_those_of_float32(family, dtype):
    prior, codes, conditions = FAMILIES[family]
    half = copy.deepcopy(prior).to(dtype)
    exact, rounded = (model.log_prob(codes, **conditions) for model in (prior, half))
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.03, atol=0.1)
    times = 2048 // codes[0].numel()  # of each code more than half precision counts to
    many = codes[:1].repeat(times, *[1] * (codes.ndim - 1))
    repeated = {name: repeat(value, times) for name, value in conditions.items()}
    norms = []
    for model in (prior, half):
        model(many, **repeated).loss.backward()
        norms.append(torch.stack([each.grad.float().norm() for each in model.parameters() if each.grad is not None]))
    torch.testing.assert_close(norms[1].norm(), norms[0].norm(), rtol=0.1, atol=1e-3)


def repeat(value, times):
    if isinstance(value, tuple):
        return tuple(repeat(each, times) for each in value)
    return value[:1].repeat(times, *[1] * (value.ndim - 1))


@pytest.mark.parametrize(
    ("config_class", "needed"),
    [
        (TransformerPriorConfig, {}),
        (DelayedTransformerPriorConfig, {"num_levels": 2}),
        (LlamaGenPriorConfig, {"num_classes": 2}),
    ],
)
def test_keys_and_values_have_as_many_heads_as_there_are_by_whichever_name(config_class, needed):
    for heads in (1, 2, 3, 8):
        for name in ("num_heads", "num_attention_heads"):
            config = config_class(**{name: heads}, hidden_size=8 * heads, num_hidden_layers=1, **needed)
            assert (config.num_heads, config.num_key_value_heads, config.num_layers) == (heads, heads, 1)
    for wrong, words in (
        ({"num_attention_heads": 0}, "num_heads must be an integer between 1 and 1024, got 0"),
        ({"num_hidden_layers": 0}, "num_layers must be an integer between 1 and 1024, got 0"),
        ({"num_key_value_heads": 0}, "num_key_value_heads must be an integer between 1 and 1024, got 0"),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "num_key_value_heads must divide num_heads=4, got 3"),
        (
            {"num_attention_heads": 5, "hidden_size": 64},
            r"hidden_size must be a multiple of .*got 64",
        ),
        ({"num_attention_heads": 4, "num_heads": 2}, "num_heads and num_attention_heads are one option, got 2 and 4"),
    ):
        with pytest.raises(ValueError, match=words):
            config_class(**wrong, **needed)


def test_a_decoder_of_two_heads_computes_by_transformers_name_too():
    config = TransformerPriorConfig(
        codebook_size=11, code_shape=(2, 3), hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    assert TransformerPrior(config).sample(2).shape == (2, 2, 3)
