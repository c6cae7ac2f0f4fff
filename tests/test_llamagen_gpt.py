"""LlamaGen's transformer: the original's numbers before and after saving, the files it comes in, and wrong ones."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import hf_vq
from hf_vq.converters import convert
from hf_vq.converters.base import Source, pick_format
from hf_vq.priors import LlamaGenPrior

from .conftest import FIXTURES, fixture

FOLDER = FIXTURES / "llamagen_gpt_c2i"
CLOSE = {"atol": 1e-4, "rtol": 1e-5}


def weights():
    return torch.load(FOLDER / "gpt_model.pt", weights_only=True)["model"]


def save(folder, content, **changes):
    """A checkpoint beside the fixture's config, changed; None leaves a key out."""
    folder.mkdir(exist_ok=True)
    torch.save(content, folder / "gpt_model.pt")
    told = json.loads((FOLDER / "config.json").read_text())["model_args"] | changes
    told = {name: value for name, value in told.items() if value is not None}
    (folder / "config.json").write_text(json.dumps({"model_args": told}))
    return folder


@torch.no_grad()
def test_the_originals_numbers_before_and_after_saving(tmp_path):
    expected = fixture("llamagen_gpt_c2i")[0]
    codes, class_labels = expected["codes"].view(3, 6, 6), expected["class_labels"]
    converted = convert(FOLDER / "gpt_model.pt", tmp_path / "out", license="mit")
    assert type(converted) is LlamaGenPrior
    for prior in (converted, hf_vq.AutoVQPrior.from_pretrained(tmp_path / "out")):
        assert not prior.training
        output = prior(codes, class_labels=class_labels)
        null = prior(codes, class_labels=torch.full_like(class_labels, 10))
        torch.testing.assert_close(output.logits.flatten(1, 2), expected["logits"][:, :-1], **CLOSE)
        torch.testing.assert_close(null.logits.flatten(1, 2), expected["logits_uncond"][:, :-1], **CLOSE)
        torch.testing.assert_close(output.loss, expected["ce_loss"], **CLOSE)
        for name, options in (
            ("greedy_cfg1", {}),
            ("greedy_cfg2", {"guidance_scale": 2.0}),
            ("greedy_cfg2_interval", {"guidance_scale": 2.0, "guidance_steps": 36 // 3 + 2}),
        ):
            drawn = prior.sample(class_labels=class_labels, temperature=0, **options)
            assert torch.equal(drawn.flatten(1), expected[f"{name}.codes"]), name
        drawn, scale = expected["greedy_cfg2.codes"].view(3, 6, 6), 2.0
        guided = prior(drawn, class_labels=class_labels).logits * scale
        guided -= prior(drawn, class_labels=torch.full_like(class_labels, 10)).logits * (scale - 1)
        torch.testing.assert_close(guided.flatten(1, 2), expected["greedy_cfg2.logits"], **CLOSE)


@torch.no_grad()
def test_rotation_is_that_of_the_original():
    expected = fixture("llamagen_gpt_c2i")[0]["freqs_cis"]  # (1 + codes, head_dim / 2, 2), the last code too
    cosines, sines = LlamaGenPrior.from_single_file(FOLDER / "gpt_model.pt").rotary_angles((6, 6))
    torch.testing.assert_close(torch.stack([cosines, sines], dim=-1), expected[:-1])
    assert not cosines[0].any()


@pytest.mark.parametrize("wrapper", ["model", "module", "state_dict", None])
def test_every_layout_of_the_file(wrapper, tmp_path):
    tensors = weights()
    content = {wrapper: tensors, "steps": 7} if wrapper else tensors
    prior = LlamaGenPrior.from_single_file(save(tmp_path / "in", content))
    assert torch.equal(prior.head.weight, tensors["output.weight"])


def test_fewer_key_heads_and_no_null_class(tmp_path):
    tensors = weights()
    for name in list(tensors):
        if "wqkv" in name:
            tensors[name] = tensors[name][: 32 + 2 * 16]
    prior = LlamaGenPrior.from_single_file(
        save(tmp_path / "in", tensors, n_kv_head=2, num_classes=11, class_dropout_prob=0.0)
    )
    assert prior.config.num_key_value_heads == 2
    assert prior.config.num_classes == 11
    assert not prior.can_guide
    codes, class_labels = torch.randint(64, (2, 6, 6)), torch.tensor([0, 10])
    state = prior.start_sampling(2, (6, 6), class_labels=class_labels)
    with torch.no_grad():
        torch.testing.assert_close(state.next_logits(), prior(codes, class_labels=class_labels).logits[:, 0, 0])


def test_public_sizes_need_no_config_but_the_grid():
    width, layers = 768, 12
    block = {
        "attention.wqkv": (3 * width, width), "attention.wo": (width, width), "feed_forward.w1": (8, width),
        "feed_forward.w3": (8, width), "feed_forward.w2": (width, 8), "attention_norm": (width,), "ffn_norm": (width,),
    }  # fmt: skip
    shapes = {"tok_embeddings": (4, width), "cls_embedding.embedding_table": (6, width), "output": (4, width)}
    shapes |= {"norm": (width,)} | {
        f"layers.{i}.{name}": shape for i in range(layers) for name, shape in block.items()
    }
    tensors = {f"{name}.weight": torch.ones(1).expand(shape) for name, shape in shapes.items()}
    source = Source(Path("c2i_B_256.pt"), tensors)
    chosen = pick_format(source)
    assert chosen.name == "llamagen-gpt"
    with torch.device("meta"):
        config = chosen.plan(source).build().config
    assert (config.num_heads, config.num_classes, config.code_shape) == (12, 5, None)
    assert config.class_dropout_prob > 0


@pytest.mark.parametrize(
    ("match", "changes"),
    [
        ("n_head is not in the weights, and 2 layers of 32", {"n_head": None}),
        ("n_head must divide dim=32 .* got 3", {"n_head": 3}),
        ("n_kv_head is 2 in the config, but the weights say 4", {"n_kv_head": 2}),
        ("n_layer is 3 in the config", {"n_layer": 3}),
        ("num_classes is 9 in the config", {"num_classes": 9}),
        ("model_type is 't2i' in the config", {"model_type": "t2i"}),
        ("block_size must be .* got 35", {"block_size": 35}),
        ("class_dropout_prob must be in", {"class_dropout_prob": 1.5}),
    ],
)
def test_a_config_that_does_not_fit_is_a_clear_error(match, changes, tmp_path):
    with pytest.raises(ValueError, match=match):
        LlamaGenPrior.from_single_file(save(tmp_path / "in", weights(), **changes))


def test_heads_that_nobody_tells_are_a_clear_error(tmp_path):
    shutil.copy(FOLDER / "gpt_model.pt", tmp_path)
    with pytest.raises(ValueError, match=r"give a config with model_args\.n_head"):
        LlamaGenPrior.from_single_file(tmp_path / "gpt_model.pt")
    prior = LlamaGenPrior.from_single_file(save(tmp_path / "in", weights(), block_size=None))
    with pytest.raises(ValueError, match="code_shape missing"):
        prior.sample(class_labels=[0])


def test_a_tensor_that_is_missing_or_left_over_is_named(tmp_path):
    tensors = weights()
    extra = {**tensors, "layers.0.attention.bias": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"no place for: layers\.0\.attention\.bias"):
        LlamaGenPrior.from_single_file(save(tmp_path / "in", extra))
    del tensors["layers.1.feed_forward.w2.weight"]
    with pytest.raises(ValueError, match=r"lacks the tensor 'layers\.1\.feed_forward\.w2\.weight'"):
        LlamaGenPrior.from_single_file(save(tmp_path / "in", tensors))
