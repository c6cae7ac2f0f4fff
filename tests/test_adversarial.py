"""Training with perceptual and adversarial terms: the gradient of a step, when who trains, what is written."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from hf_vq import PatchDiscriminator
from hf_vq.features import load_perceptual_loss
from hf_vq.losses import AdaptiveWeight
from hf_vq.training.adversarial_arguments import AdversarialArguments
from hf_vq.training.autoencoder import make_task, train_autoencoder
from hf_vq.training.checkpoints import resolve_checkpoint, seal
from hf_vq.training.divergence import DivergenceError
from hf_vq.training.loop import TrainingLoop

from .test_tasks import arguments, entries
from .tiny_codecs import PatchCodec
from .tiny_models import Images, tiny_autoencoder

SIZE = 16  # the smallest that the features of random weights take
TINY = {"hidden_channels": 4, "num_layers": 1}
ADVERSARIAL = {"adversarial_weight": 0.5, "adversarial_ramp_steps": 4, "discriminator_config": TINY}


def train(folder, **options):
    torch.manual_seed(0)
    model = tiny_autoencoder(dropout=0.0)
    report = train_autoencoder(model, Images(64, SIZE), arguments(folder, **options), Images(16, SIZE))
    return model, report


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_gradient_of_a_step_is_that_of_the_whole_formula(adaptive, tmp_path):
    """Reconstruction + perceptual + weight x ramp x adversarial, each written down and differentiated in one graph."""
    options = {**ADVERSARIAL, "adaptive_weight": adaptive, "adversarial_loss": "non_saturating"}
    model = tiny_autoencoder(dropout=0.0)
    task = make_task(model, arguments(tmp_path, perceptual="random", perceptual_weight=0.3, **options))
    task.make_turns(10)
    batch = {"sample": torch.stack([Images(8, SIZE)[index]["sample"] for index in range(8)])}
    model.set_codebook_updates("off")
    task.step, task.reconstructions = 1, []
    loss, terms = task.loss(batch, model(batch["sample"]))
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)

    output = model(batch["sample"])
    distance = load_perceptual_loss("random")(output.sample, batch["sample"]).mean()
    judged = torch.nn.functional.softplus(-task.discriminator(output.sample)[0]).mean()
    whole = output.loss + 0.3 * distance
    weight = 0.5 * 1 / 4
    if adaptive:
        layer = model.last_layer
        own, other = (torch.autograd.grad(one, layer, retain_graph=True)[0].norm() for one in (whole, judged))
        weight = weight * own / (other + 1e-4)
    expected_loss = whole + weight * judged
    expected = torch.autograd.grad(expected_loss, list(model.parameters()), allow_unused=True)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(terms["loss_perceptual"], distance.detach())
    torch.testing.assert_close(terms["loss_adversarial"], judged.detach())
    assert any(gradient is not None for gradient in expected)
    torch.testing.assert_close(found, expected)


def test_nothing_changes_before_the_start_and_then_the_reconstruction_is_judged(tmp_path):
    models = [train(tmp_path / "alone")[0], train(tmp_path / "two", discriminator_start_step=6, **ADVERSARIAL)[0]]
    for one, other in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(one, other)
    model, report = train(tmp_path / "early", discriminator_start_step=2, **ADVERSARIAL)
    assert not torch.equal(model.last_layer, models[0].last_layer)
    names = [set(entry) for entry in entries(report)]  # of steps 1 to 6
    assert ["discriminator_loss" in each for each in names] == [False, False, True, True, True, True]
    assert ["loss_adversarial" in each for each in names] == [False, False, False, True, True, True]  # the ramp's 0


def test_the_discriminator_is_published_beside_the_autoencoder_and_starts_another_training(tmp_path):
    train(tmp_path / "first", lecam_weight=0.1, r1_weight=1.0, weight_ema_decay=0.9, **ADVERSARIAL)
    trained = PatchDiscriminator.from_pretrained(tmp_path / "first", subfolder="discriminator")
    assert len(load_file(tmp_path / "first" / "discriminator" / "diffusion_pytorch_model.safetensors")) == len(
        trained.state_dict()
    )
    with pytest.raises(ValueError, match="holds a PictureCodec, not a PatchDiscriminator"):
        PatchDiscriminator.from_pretrained(tmp_path / "first")
    options = {"discriminator_init": str(tmp_path / "first"), "learning_rate": 1e-30, "adversarial_weight": 0.5}
    train(tmp_path / "second", **options)
    again = PatchDiscriminator.from_pretrained(tmp_path / "second" / "discriminator")
    for one, other in zip(trained.state_dict().values(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("network", "call", "message"),
    [
        ("perceptual", 4, r"step 4: loss is nan \(loss_perceptual nan"),
        ("discriminator", 6, r"step 4: loss is nan \(loss_adversarial nan"),  # asked from the second step on
        ("discriminator", 7, r"step 4: discriminator_loss is nan \(real nan, fake nan"),
    ],
)
def test_a_term_that_is_no_number_is_told_by_step_and_name_and_loses_nothing(network, call, message, tmp_path):
    args = arguments(tmp_path, perceptual="random", save_steps=1, logging_steps=1, **ADVERSARIAL)
    task, calls = make_task(tiny_autoencoder(dropout=0.0), args), []

    def spoil(module, inputs, output):
        calls.append(1)
        spoiled = len(calls) == call
        return torch.utils._pytree.tree_map(lambda one: one * torch.nan, output) if spoiled else output

    loop = TrainingLoop(task, Images(64, SIZE), args)
    getattr(task, network).register_forward_hook(spoil)
    with pytest.raises(DivergenceError, match=message):
        loop.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [f"checkpoint-{step}" for step in (1, 2, 3)]
    assert resolve_checkpoint(tmp_path, True) == tmp_path / "checkpoint-3"


def test_another_memory_format_trains_alike_and_is_saved_as_any_model(tmp_path):
    options = {"perceptual": "random", **ADVERSARIAL}
    _, expected = train(tmp_path / "whole", **options)
    model, found = train(tmp_path / "other", channels_last=True, **options)
    for one, other in zip(entries(expected), entries(found), strict=True):
        for name in ("loss", "discriminator_loss"):
            if name in one:
                assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-4), (name, one["step"])
    published = load_file(tmp_path / "other" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(published[name], one) for name, one in model.state_dict().items())


class Calls(TorchDispatchMode):
    """Counts the operations of all layers' gradients within the `with` block."""

    def __enter__(self):
        self.count = 0
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += "convolution_backward" in str(function)
        return function(*args, **kwargs or {})


def test_compiled_code_trains_alike_and_its_adaptive_weight_goes_back_through_one_layer(tmp_path, monkeypatch):
    """R1, which differentiates twice, and the gradient of the last layer alone are not what compiled code gives."""
    compiling, weigh, counts = torch.compile, AdaptiveWeight.__call__, []

    def counting(*inputs):
        with Calls() as calls:
            weight = weigh(*inputs)
        counts.append(calls.count)
        return weight

    monkeypatch.setattr(torch, "compile", lambda module, **_: compiling(module, backend="aot_eager"))  # is fast
    monkeypatch.setattr(AdaptiveWeight, "__call__", counting)
    options = {"r1_weight": 1.0, "r1_interval": 2, "max_steps": 4, **ADVERSARIAL}
    torch.compiler.reset()
    (expected, report), (found, compiled) = (
        train(tmp_path / str(each), torch_compile=each, **options) for each in (False, True)
    )
    assert counts == [2] * 6  # without a ramp's 0, two gradients of one layer
    for one, other in zip(entries(report), entries(compiled), strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-5), one["step"]
    torch.testing.assert_close(found.state_dict(), expected.state_dict())
    assert not any("forward" in vars(layer) for layer in found.children())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lecam_weight": 0.1}, r"lecam_weight=0\.1 is given for nothing beside adversarial_weight=0"),
        ({"discriminator_config": TINY}, "discriminator_config=.* is given for nothing beside adversarial_weight"),
        ({"adversarial_loss": "vanilla"}, "adversarial_loss='vanilla' is given for nothing"),
        ({"perceptual_weight": 0.5}, r"perceptual_weight=0\.5 is given for nothing beside perceptual='none'"),
        ({**ADVERSARIAL, "lecam_decay": 0.9}, r"lecam_decay=0\.9 is given for nothing beside lecam_weight=0"),
        ({**ADVERSARIAL, "r1_interval": 2}, "r1_interval=2 is given for nothing beside r1_weight"),
        (
            {**ADVERSARIAL, "adaptive_weight": False, "adaptive_weight_maximum": 9.0},
            r"adaptive_weight_maximum=9\.0 is given for nothing beside adaptive_weight=False",
        ),
        ({"adversarial_weight": -1.0}, "adversarial_weight"),
        ({"adversarial_loss": "wasserstein"}, "adversarial_loss"),
        ({**ADVERSARIAL, "discriminator_init": "there"}, "discriminator_config=.* given beside discriminator_init"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **options)


def test_networks_that_do_not_fit_are_refused_before_the_first_step(tmp_path):
    with pytest.raises(ValueError, match="at least 24 high and wide"):
        train(tmp_path / "size", adversarial_weight=0.5)
    PatchDiscriminator(2, **TINY).save_pretrained(tmp_path / "two")
    with pytest.raises(ValueError, match="takes 2 channels, the autoencoder has 1"):
        train(tmp_path / "channels", adversarial_weight=0.5, discriminator_init=str(tmp_path / "two"))
    clips = type("ClipCodec", (PatchCodec,), {"space_dims": 3})(strides=(2, 2, 2))
    with pytest.raises(ValueError, match=r"adversarial_weight=0\.5 is for samples with one or two axes of space"):
        make_task(clips, arguments(tmp_path, adversarial_weight=0.5))
    assert not list(tmp_path.glob("*/checkpoint-*"))


def test_a_checkpoint_of_a_version_without_these_options_goes_on_without_what_they_add(tmp_path):
    train(tmp_path, max_steps=1)
    state = tmp_path / "checkpoint-1" / "trainer_state.json"
    content = json.loads(state.read_text())
    for option in dataclasses.fields(AdversarialArguments):
        del content["arguments"][option.name]
    state.write_text(json.dumps(content))
    seal(state.parent, 1)
    with pytest.raises(ValueError, match="written with perceptual=none, this run has random"):
        train(tmp_path, max_steps=2, resume_from_checkpoint="true", perceptual="random")
    with pytest.raises(ValueError, match=r"written with adversarial_weight=0\.0, this run has 0\.5"):
        train(tmp_path, max_steps=2, resume_from_checkpoint="true", **ADVERSARIAL)
    _, report = train(tmp_path, max_steps=2, resume_from_checkpoint="true")
    assert [entry["step"] for entry in entries(report)] == [1, 2]
