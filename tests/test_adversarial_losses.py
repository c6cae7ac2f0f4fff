"""Adversarial losses against their formulas in float64, and the discriminator of an original."""

import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.autograd import gradcheck

from hf_vq import PatchDiscriminator
from hf_vq.losses import (
    ADVERSARIAL_LOSSES,
    AdaptiveWeight,
    Balancer,
    LeCamRegularizer,
    LinearRamp,
    SampleTerm,
    r1_penalty,
)
from hf_vq.losses.discriminator_norms import ActNorm, BatchNorm

from .conftest import FIXTURES
from .processes import in_two_processes

FORMULAS = {  # of the logits of one real and one fake item
    "hinge": (lambda real, fake: 0.5 * (max(0, 1 - real) + max(0, 1 + fake)), lambda fake: -fake),
    "vanilla": (lambda real, fake: 0.5 * (log1p_exp(-real) + log1p_exp(fake)), lambda fake: -fake),
    "non_saturating": (lambda real, fake: 0.5 * (log1p_exp(-real) + log1p_exp(fake)), lambda fake: log1p_exp(-fake)),
    "clipped_hinge": (
        lambda real, fake: 0.5 * (max(0, 1 - real) + max(0, 1 + fake)),
        lambda fake: max(0, 1 - fake),
    ),
    "least_squares": (lambda real, fake: 0.5 * ((1 - real) ** 2 + fake**2), lambda fake: (1 - fake) ** 2),
}


def log1p_exp(value):
    return math.log1p(math.exp(value))


def logits(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("name", ADVERSARIAL_LOSSES)
def test_losses_and_their_gradients_are_those_of_the_papers(name):
    losses, (of_discriminator, of_generator) = ADVERSARIAL_LOSSES[name], FORMULAS[name]
    real, fake = logits(3, 1, 2, 2), logits(3, 1, 2, 2, seed=1)
    pairs = list(zip(real.flatten().tolist(), fake.flatten().tolist(), strict=True))
    expected = sum(of_discriminator(*pair) for pair in pairs) / len(pairs)
    assert losses.discriminator(real, fake).item() == pytest.approx(expected, abs=1e-12)
    expected = sum(of_generator(one) for _, one in pairs) / len(pairs)
    assert losses.generator(fake).item() == pytest.approx(expected, abs=1e-12)
    assert gradcheck(losses.discriminator, (real, fake))
    assert gradcheck(losses.generator, (fake,))


def test_lecam_is_its_formula_and_follows_the_logits_in_training():
    lecam, real, fake = LeCamRegularizer(decay=0.9).double(), logits(4, 1, 2, 2), logits(4, 1, 2, 2, seed=1)
    lecam(real, fake)
    first = torch.stack([real.mean(), fake.mean()])
    torch.testing.assert_close(lecam.averages, first.detach())
    other_real, other_fake = logits(4, 1, 2, 2, seed=2), logits(4, 1, 2, 2, seed=3)
    value = lecam(other_real, other_fake)
    averages = 0.9 * first + 0.1 * torch.stack([other_real.mean(), other_fake.mean()])
    expected = sum(max(0, one - averages[1].item()) ** 2 for one in other_real.flatten().tolist()) / 16
    expected += sum(max(0, averages[0].item() - one) ** 2 for one in other_fake.flatten().tolist()) / 16
    assert value.item() == pytest.approx(expected, abs=1e-12)
    lecam.eval()
    assert gradcheck(lecam, (other_real, other_fake))
    torch.testing.assert_close(lecam.averages, averages.detach())


def test_r1_is_half_the_squared_gradient_and_trains_the_discriminator():
    weight, samples = logits(3), logits(5, 3, seed=1)  # logits x.w + (x.w)^2: the gradient is w (1 + 2 x.w)

    def penalty(weight, samples):
        return r1_penalty(samples @ weight + (samples @ weight).square(), samples)

    products = samples @ weight
    expected = (weight.square().sum() * (1 + 2 * products).square()).mean() / 2
    torch.testing.assert_close(penalty(weight, samples), expected)
    assert gradcheck(penalty, (weight, samples))


def test_the_adaptive_weight_is_its_formula_capped_and_0_where_there_is_no_gradient():
    layer, inputs, target = logits(2, 3), logits(4, 3, seed=1).detach(), logits(4, 2, seed=2).detach()
    output = inputs @ layer.T
    reconstruction, adversarial = (output - target).square().mean(), -(output.sin()).mean()
    gradient_of_reconstruction = 2 * (output - target).T @ inputs / output.numel()
    gradient_of_adversarial = -output.cos().T @ inputs / output.numel()
    expected = gradient_of_reconstruction.norm() / (gradient_of_adversarial.norm() + 1e-4)
    weight = AdaptiveWeight()(reconstruction, adversarial, layer)
    torch.testing.assert_close(weight, expected.detach())
    assert not weight.requires_grad
    assert AdaptiveWeight(maximum=0.01)(reconstruction, adversarial, layer) == 0.01
    assert AdaptiveWeight()(reconstruction, 0 * adversarial, layer) == 0
    assert AdaptiveWeight()(reconstruction, 1e-12 * adversarial, layer) == 0  # not 1e4 times noise


def test_a_ramp_is_0_before_its_start_and_1_after_its_steps():
    assert [LinearRamp(10, 4)(step) for step in (0, 9, 10, 11, 13, 14, 1000)] == [0, 0, 0, 0.25, 0.75, 1, 1]
    assert [LinearRamp(10, 0)(step) for step in (9, 10)] == [0, 1]


def test_a_term_passed_through_its_network_once_has_the_gradient_of_one_in_the_graph():
    weight, sample = logits(3), logits(4, 3, seed=1)

    def term(output):
        return output.square().tanh().sum()

    def with_term(weight, sample):
        output = sample * weight
        return SampleTerm.of(term, output, scale=8.0).added_to(output.mean(), output, 0.3)

    output = sample * weight
    expected = output.mean() + 0.3 * term(output)
    torch.testing.assert_close(with_term(weight, sample), expected)
    ours, its = (torch.autograd.grad(one, (weight, sample)) for one in (with_term(weight, sample), expected))
    torch.testing.assert_close(ours, its)


# The discriminator


def test_the_discriminator_of_a_taming_checkpoint_gives_its_logits():
    """Expected: `NLayerDiscriminator(3, 4, 2)` of taming-transformers in evaluation mode, on the fixture's picture."""
    discriminator = PatchDiscriminator.from_single_file(FIXTURES / "taming_vqgan" / "last.ckpt")
    assert dict(discriminator.config) | {"norm": "batch", "hidden_channels": 4} == dict(discriminator.config)
    with torch.no_grad():
        (found,) = discriminator(load_file(FIXTURES / "taming_vqgan" / "io.safetensors")["image"])
    first_rows = [
        [0.12331564724445343, 0.5243597626686096, 0.46047160029411316, 0.2828991711139679, 0.2458382248878479,
         0.10866637527942657],
        [0.06714781373739243, 0.410734623670578, 0.2789638638496399, 0.4898929297924042, 0.4333328902721405,
         0.3328200578689575],
    ]  # fmt: skip
    torch.testing.assert_close(found[:, 0, 0], torch.tensor(first_rows), rtol=1e-5, atol=1e-5)
    assert found.sum().item() == pytest.approx(34.077213287353516, rel=1e-5)


@pytest.mark.parametrize("options", [{"norm": "act", "num_layers": 1}, {"norm": "group", "spectral_norm": True}])
def test_other_layouts_come_back_from_a_state_dict_and_from_a_folder(options, tmp_path):
    torch.manual_seed(0)
    discriminator, samples = PatchDiscriminator(2, 8, **options), torch.randn(2, 2, 32, 32)
    discriminator(samples)  # starts ActNorm, moves the power iteration
    expected = discriminator.eval()(samples)[0]
    state = {f"loss.discriminator.{name}": one for name, one in discriminator.state_dict().items()}
    torch.save({"state_dict": {**state, "encoder.weight": torch.zeros(1)}}, tmp_path / "last.ckpt")
    discriminator.save_pretrained(tmp_path / "saved")
    for found in (
        PatchDiscriminator.from_single_file(tmp_path / "last.ckpt"),
        PatchDiscriminator.from_pretrained(tmp_path / "saved"),
    ):
        torch.testing.assert_close(found(samples)[0], expected)
    torch.save({"state_dict": {"encoder.weight": torch.zeros(1)}}, tmp_path / "none.ckpt")
    with pytest.raises(ValueError, match="holds no discriminator"):
        PatchDiscriminator.from_single_file(tmp_path / "none.ckpt")


def test_samples_too_small_for_a_logit_are_refused():
    discriminator = PatchDiscriminator(1, 4, num_layers=2)
    assert discriminator(torch.zeros(1, 1, 12, 12))[0].shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match="at least 12 high and wide"):
        discriminator(torch.zeros(1, 1, 12, 11))


def norms(samples):
    """Outputs, gradients and statistics of both norms after a training step on samples (batch, 3, 4, 4)."""
    torch.manual_seed(0)
    torch_norm = nn.BatchNorm2d(3)
    layers = {"batch": BatchNorm(3), "act": ActNorm(3)}
    layers["batch"].load_state_dict(torch_norm.state_dict())
    found = {}
    for name, layer in layers.items():
        given = samples.clone().requires_grad_()
        output = layer(given)
        (gradient,) = torch.autograd.grad((output**3).sum(), given)
        found |= {f"{name}_output": output.detach(), f"{name}_gradient": gradient, **layer.state_dict(prefix=name)}
    return found


def balanced(samples):
    """What a balancer multiplies two terms of samples by."""
    samples = samples.clone().requires_grad_()
    terms = {"balancer_near": samples.square().mean(), "balancer_far": 100 * (samples - 9).abs().mean()}
    gradients = {name: torch.autograd.grad(term, samples)[0] for name, term in terms.items()}
    return Balancer([*terms])(gradients, dict.fromkeys(terms, 1.0))


def share_of_norms(rank, folder):
    samples = samples_for_norms()[rank::2]
    torch.save(norms(samples) | balanced(samples), f"{folder}/{rank}.pt")


def samples_for_norms():
    return torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(3)) * 2 + 1


def test_norms_and_balances_of_two_processes_are_those_of_one(tmp_path):
    in_two_processes(share_of_norms, str(tmp_path))
    whole = norms(samples_for_norms()) | balanced(samples_for_norms())
    for rank in range(2):
        for name, found in torch.load(tmp_path / f"{rank}.pt").items():
            expected = whole[name][rank::2] if name.endswith(("output", "gradient")) else whole[name]
            if name == "act_gradient":
                continue  # its loss sees half of the batch
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=f"{name} of {rank}")
