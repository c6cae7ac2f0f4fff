"""Facts about converted VQ-Diffusion: diffusers' pipeline, transformers of other options, microsoft's files."""

import json
import shutil

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline, Transformer2DModel

import hf_vq
import hf_vq_cli
from hf_vq.converters import convert
from hf_vq.converters.files import read_file

from .conftest import FIXTURES, fixture
from .original_networks import vq_diffusion
from .test_vq_diffusion_codec import wrapped

CLOSE = {"rtol": 0, "atol": 1e-5}
NULL = "learned_classifier_free_sampling_embeddings"
STOCK, ORIGINAL = FIXTURES / "diffusers_vqdiffusion_pipeline", FIXTURES / "vqdiffusion_original"
PROMPTS = ["the red dog", "a cat and the blue dog"]


def predict(prior, states, times, **conditions):
    """As the originals: (batch, codes, positions) of states (batch, positions)."""
    grid = (len(states), *prior.config.code_shape)
    with torch.no_grad():
        return prior.predict(states.view(grid), times, **conditions).flatten(1, -2).transpose(1, 2)


def save(folder, tensors, config, prefix="transformer.", **more):
    """A checkpoint and config as microsoft's training writes them."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    content = {"last_epoch": 3, "model": {f"{prefix}{name}": one for name, one in tensors.items()}, **more}
    torch.save(content, folder / "model.pth")
    return folder / "model.pth"


# diffusers


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    out = tmp_path_factory.mktemp("vq_diffusion") / "out"
    hf_vq_cli.main(["convert", str(STOCK), str(out), "--license", "mit"])
    return out


def test_stock_wants_trust_where_the_class_is_not_here(converted, tmp_path):
    index = json.loads((converted / "model_index.json").read_text())
    index["_class_name"] = ["pipeline", "SomeonesPipeline"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "pipeline.py").write_text("raise RuntimeError")
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("load", [hf_vq.VQTextToImagePipeline, DiffusionPipeline])
def test_a_converted_pipeline_draws_what_diffusers_draws(load, converted):
    tensors, meta = fixture("diffusers_vqdiffusion_pipeline")
    pipe = load.from_pretrained(converted)  # stock needs no trust either, since the class is here
    assert type(pipe) is hf_vq.VQTextToImagePipeline
    pipe.set_progress_bar_config(disable=True)
    options = {
        key: meta["call"][key] for key in ("prompt", "num_inference_steps", "guidance_scale", "truncation_rate")
    }
    generator = torch.Generator().manual_seed(meta["call"]["generator_seed"])
    codes = pipe(**options, generator=generator, output_type="codes").images
    assert torch.equal(codes, tensors["out.final_codes"])
    images = pipe(**options, generator=generator.manual_seed(11), output_type="np").images
    torch.testing.assert_close(torch.from_numpy(images), tensors["out.images"], **CLOSE)
    decoded = pipe.autoencoder.detokenize(tensors["in.codes"])
    torch.testing.assert_close(decoded, tensors["out.decoded_from_codes"], **CLOSE)


def test_its_parts_say_what_diffusers_say_and_its_text_encoder_is_the_file_it_was(converted):
    tensors, meta = fixture("diffusers_vqdiffusion_pipeline")
    pipe = hf_vq.VQTextToImagePipeline.from_pretrained(converted)
    alone = hf_vq.DiscreteDiffusionPrior.from_single_file(STOCK / "transformer")
    for time in meta["timesteps_tested"]:
        for prior in (pipe.prior, alone):
            found = predict(
                prior, tensors["in.latents"], torch.tensor([time] * 2), encoder_hidden_states=text(tensors)
            )
            torch.testing.assert_close(found, tensors[f"out.log_p_x0_transformer_t{time}"], **CLOSE)
    ids = pipe.tokenizer(PROMPTS, padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(ids, tensors["out.prompt_input_ids"])
    for name in ("text_encoder/model.safetensors", "tokenizer/tokenizer.json"):
        assert (converted / name).read_bytes() == (STOCK / name).read_bytes()
    null = tensors["out.prompt_embeds"][0]
    assert torch.equal(pipe.prior.null_text, null)
    told = json.loads((STOCK / "scheduler/scheduler_config.json").read_text())
    assert {name: pipe.scheduler.config[name] for name in told if name[0] != "_"}.items() <= told.items()
    one = hf_vq.VQModel.from_single_file(STOCK)
    assert torch.equal(one.detokenize(tensors["in.codes"]), pipe.autoencoder.detokenize(tensors["in.codes"]))


def text(tensors):
    return tensors["in.text_embeds"]


STOCK_OPTIONS = {
    "gated, of no text": {"activation_fn": "geglu", "cross_attention_dim": None, "num_layers": 1},
    "without biases": {"activation_fn": "gelu", "attention_bias": False, "num_attention_heads": 1},
    "plain last norm": {"activation_fn": "gelu-approximate", "norm_elementwise_affine": False, "sample_size": 5},
    "before norm_type": {"activation_fn": "geglu-approximate"},
}


def make_stock(**options):
    torch.manual_seed(0)
    stock = Transformer2DModel(
        **{
            "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "cross_attention_dim": 10,
            "attention_bias": True, "sample_size": 3, "num_vector_embeds": 8, "num_embeds_ada_norm": 6,
            "norm_type": "ada_norm", **options,
        }
    )  # fmt: skip
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return stock.eval()


def change_config(folder, **changes):
    path = folder / "config.json"
    told = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in told.items() if value is not ...}))


@pytest.mark.parametrize("kind", STOCK_OPTIONS)
def test_transformers_of_diffusers_with_other_options_convert(kind, tmp_path):
    stock = make_stock(**STOCK_OPTIONS[kind])
    stock.save_pretrained(tmp_path / "in")
    if kind == "before norm_type":
        change_config(tmp_path / "in", norm_type=..., use_additional_conditions=...)
    convert(tmp_path / "in", tmp_path / "out")
    prior = hf_vq.AutoVQPrior.from_pretrained(tmp_path / "out").eval()
    states, times = torch.randint(8, (2, stock.num_latent_pixels)), torch.tensor(4)
    states_of_text = torch.randn(2, 3, 10) if stock.config.cross_attention_dim else None
    with torch.no_grad():
        expected = stock(states, states_of_text, timestep=times).sample
    found = predict(prior, states, times.expand(2), encoder_hidden_states=states_of_text)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_what_diffusers_transformers_cannot_be_is_named(tmp_path):
    make_stock().save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    for words, changes in {
        "norm_type is 'ada_norm_zero'": {"norm_type": "ada_norm_zero"},
        "double_self_attention is True": {"double_self_attention": True},
        "norm_eps is 1e-06": {"norm_eps": 1e-6},
        "activation_fn is 'swiglu'": {"activation_fn": "swiglu"},
        "num_vector_embeds is 9 in the config, but the weights say 8": {"num_vector_embeds": 9},
        "cross_attention_dim is 12": {"cross_attention_dim": 12},
        r"sample_size is 4 in the config, but the weights have positions for \(3, 3\)": {"sample_size": 4},
        "num_attention_heads=3 x attention_head_dim=8 in the config is not 16": {"num_attention_heads": 3},
        "attention_bias is False": {"attention_bias": ...},
    }.items():
        (tmp_path / "config.json").write_text(config)
        change_config(tmp_path, **changes)
        with pytest.raises(ValueError, match=words):
            hf_vq.DiscreteDiffusionPrior.from_single_file(tmp_path)
    (tmp_path / "config.json").write_text(config)
    change_config(tmp_path, something_new=1)
    with pytest.warns(UserWarning, match="unknown to Transformer2DModel and left out: something_new"):
        hf_vq.DiscreteDiffusionPrior.from_single_file(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"needs its config\.json"):
        hf_vq.DiscreteDiffusionPrior.from_single_file(tmp_path)
    make_stock(norm_type="layer_norm", num_embeds_ada_norm=None).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"norm1\.emb\.weight is missing: only .* 'ada_norm'"):
        hf_vq.DiscreteDiffusionPrior.from_single_file(tmp_path)


def test_what_is_wrong_with_a_pipeline_is_named_and_nothing_is_written(tmp_path):
    def changed(name, change):
        folder = tmp_path / name
        shutil.copytree(STOCK, folder, copy_function=shutil.copyfile)
        for path in (folder, *folder.rglob("*/")):
            path.chmod(0o755)
        change(folder)
        return folder

    def edit(file, **changes):
        def change(folder):
            (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), **changes}))

        return change

    for number, (words, change) in enumerate(
        {
            "lacks the folder 'scheduler'": lambda folder: shutil.rmtree(folder / "scheduler"),
            "lacks the folder 'tokenizer'": lambda folder: shutil.rmtree(folder / "tokenizer"),
            "scheduler is a 'DDPMScheduler'": edit("scheduler/scheduler_config.json", _class_name="DDPMScheduler"),
            r"scheduler\.num_train_timesteps is 100": edit("scheduler/scheduler_config.json", num_train_timesteps=100),
            r"embeddings\.learnable is False in the config, but the weights say True": edit(
                f"{NULL}/config.json", learnable=False
            ),
            r"embeddings\.length is 13 in the config": edit(f"{NULL}/config.json", length=13),
            r"is the folder of a pipeline, \[\]": edit("model_index.json", _class_name=[]),
            "text_encoder is os.system": edit("model_index.json", text_encoder=["os", "system"]),
            "tokenizer is transformers.pipeline": edit("model_index.json", tokenizer=["transformers", "pipeline"]),
            "lacks the tensor .* of CLIPTextModel": edit("text_encoder/config.json", num_hidden_layers=3),
            "cross_attention_dim is 24": edit("transformer/config.json", cross_attention_dim=24),
        }.items()
    ):
        with pytest.raises(ValueError, match=words):
            convert(changed(f"in{number}", change), tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="which has its own"):
        convert(STOCK, tmp_path / "out", config=ORIGINAL / "config.yaml")


def test_without_a_learned_null_the_empty_prompt_stands_for_it(tmp_path):
    shutil.copytree(STOCK, tmp_path / "in", copy_function=shutil.copyfile)
    for path in (tmp_path / "in", *(tmp_path / "in").rglob("*/")):
        path.chmod(0o755)
    part = tmp_path / "in" / NULL
    change_config(part, learnable=False, hidden_size=None, length=None)
    torch.save({"embeddings": torch.zeros(0)}, part / "diffusion_pytorch_model.bin")
    (part / "diffusion_pytorch_model.safetensors").unlink()
    pipe = convert(tmp_path / "in", tmp_path / "out")
    assert pipe.prior.config.null_text is None
    pipe.set_progress_bar_config(disable=True)
    states = pipe.encode_prompt(PROMPTS[:1])[0]
    given = {"num_inference_steps": 3, "output_type": "codes"}
    codes = [
        pipe(PROMPTS[:1], generator=torch.Generator().manual_seed(0), **given).images,
        pipe(
            prompt_embeds=states, negative_prompt_embeds=pipe.encode_prompt("")[0],
            generator=torch.Generator().manual_seed(0), **given,
        ).images,
    ]  # fmt: skip
    assert torch.equal(*codes)


# microsoft


def test_the_originals_prior_says_what_it_said(tmp_path):
    tensors, _ = fixture("vqdiffusion_original")
    hf_vq_cli.main(["convert", str(ORIGINAL), str(tmp_path / "out"), "--license", "mit"])
    prior = hf_vq.AutoVQPrior.from_pretrained(tmp_path / "out").eval()
    found = predict(prior, tensors["in.xt"], tensors["in.t"], encoder_hidden_states=tensors["in.cond_emb"])
    torch.testing.assert_close(found, tensors["out.log_p_x0"][:, :-1], **CLOSE)
    assert prior.config.auxiliary_loss_weight == 0.0005
    assert prior.config.adaptive_auxiliary_loss


TEXT = {"kind": "text"}
VARIANTS = {  # and the grid of the codes, and that of the positions
    "text, GELU": ({"kind": "text", "gelu2": False}, (3, 5), (3, 5)),
    "text, convolutions, parameters": ({"kind": "text", "conv": True, "parameter": True}, (4, 4), (4, 4)),
    "nothing, sinusoids": ({"kind": "none", "absolute": True}, (4, 2), (4, 2)),
    "nothing, the first of more positions": ({"kind": "none", "conv": True}, (3, 3), (4, 5)),
    "classes": ({"kind": "class", "rows": 3, "conv": True}, (3, 3), (3, 3)),
    "classes, with a null": ({"kind": "class", "rows": 4, "classes": 3}, (3, 3), (3, 3)),
    "classes, sinusoids": ({"kind": "class", "rows": 5, "class_absolute": True, "hidden": 20}, (2, 4), (2, 4)),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_the_originals_priors_converts(variant, tmp_path):
    options, grid, tables = VARIANTS[variant]
    options = dict(options)
    classes = options.pop("classes", None)
    states, times = torch.randint(12, (3, grid[0] * grid[1])), torch.tensor([0, 3, 6])
    condition, given = None, {}
    if options["kind"] == "text":
        condition = torch.randn(3, 4, 10)
        given = {"encoder_hidden_states": condition}
    elif options["kind"] == "class":
        last = options["rows"] - options.get("class_absolute", False)  # what no row of a table is for
        condition = torch.tensor([0, 2, min(last, classes or last)])
        given = {"class_labels": condition}
    tensors, config, expected = vq_diffusion(**options, codes=states, times=times, condition=condition, grid=grid,
                                             tables=tables)  # fmt: skip
    if classes:
        told = {"target": "some.ClassEmbedding", "params": {"num_embed": classes, "identity": True}}
        config["model"]["params"]["diffusion_config"]["params"]["condition_emb_config"] = told
    prior = hf_vq.DiscreteDiffusionPrior.from_single_file(save(tmp_path, tensors, config))
    assert tuple(prior.config.code_shape) == grid
    torch.testing.assert_close(predict(prior, states, times, **given), expected, **CLOSE)
    assert torch.equal(prior.timesteps.loss_history, tensors["Lt_history"])
    assert torch.equal(prior.timesteps.loss_count, tensors["Lt_count"])
    assert (prior.config.dropout, prior.config.attention_dropout) == (0.2, 0.1)
    assert (prior.config.auxiliary_loss_weight, list(prior.config.mask_weight)) == (1e-3, [0.5, 1])


def original(steps=7, **options):
    """Tensors and config of a small prior of the original's, of texts unless options say otherwise."""
    states, times = torch.randint(12, (2, 16)), torch.tensor([1, 5])
    condition = torch.randn(2, 4, 10) if options.get("kind") != "class" else torch.tensor([0, 1])
    options = {"kind": "text", "grid": (4, 4), "tables": (4, 4), "layers": 1, "steps": steps, **options}
    tensors, config, expected = vq_diffusion(codes=states, times=times, condition=condition, **options)
    return (
        tensors,
        config,
        lambda prior: torch.testing.assert_close(
            predict(
                prior, states, times, **({"encoder_hidden_states": condition} if options["kind"] == "text" else {})
            ),
            expected,
            **CLOSE,
        ),
    )


def test_the_averages_that_its_authors_sample_with_are_taken_and_a_bare_file_is_too(tmp_path):
    tensors, config, check = original()
    raw = {name: one + 0.1 * name.startswith("transformer.") for name, one in tensors.items()}
    others = {"clip_grad_norm": {"last_epoch": 1}, "optimizer_and_scheduler": {"none": {"start": 3}}}
    check(hf_vq.DiscreteDiffusionPrior.from_single_file(save(tmp_path, raw, config, ema=tensors, **others)))
    check(hf_vq.DiscreteDiffusionPrior.from_single_file(save(tmp_path, tensors, config, prefix="")))
    alone = {
        name: one for name, one in tensors.items() if not name.startswith(("log_", "Lt_"))
    }  # by several processes
    check(hf_vq.DiscreteDiffusionPrior.from_single_file(save(tmp_path, alone, config, prefix="module.transformer.")))
    del tensors["transformer.blocks.0.attn1.proj.bias"]
    with pytest.raises(ValueError, match=r"ema lacks 'transformer\.blocks\.0\.attn1\.proj\.bias'"):
        hf_vq.DiscreteDiffusionPrior.from_single_file(save(tmp_path, raw, config, ema=tensors))


def test_a_learned_null_is_kept_and_an_encoder_of_conditions_is_told_to_be_left_out(tmp_path):
    tensors, config, check = original()
    tensors |= {
        "empty_text_embed": torch.randn(4, 10, dtype=torch.float64),
        "condition_emb.ln_final.bias": torch.ones(3),
    }
    with pytest.warns(
        UserWarning, match=r"left out is transformer\.condition_emb\.\*, the encoder of texts or classes"
    ):
        prior = hf_vq.DiscreteDiffusionPrior.from_single_file(save(tmp_path, tensors, config))
    check(prior)
    torch.testing.assert_close(prior.null_text, tensors["empty_text_embed"].float())
    prior.sample(encoder_hidden_states=torch.randn(1, 4, 10), guidance_scale=2.0, num_inference_steps=1)


@pytest.mark.parametrize("kind", ["text", "none"])
def test_a_whole_model_becomes_a_pipeline_of_its_codec_and_prior(kind, tmp_path):
    codec = FIXTURES / "vqdiffusion_patchvqgan"
    theirs = read_file(codec / "vqvae.pth").content["model"]
    tensors, config, check = original(size=len(theirs["quantize.embedding"]), kind=kind)
    told = yaml.safe_load((codec / "config.yaml").read_text())["model"]
    config["model"]["params"]["content_codec_config"] = told
    whole = {f"transformer.{name}": one for name, one in tensors.items()} | wrapped(theirs, "content_codec.")
    path = save(tmp_path, whole, config, prefix="")
    kept = convert(path, tmp_path / "out")
    assert type(kept) is (hf_vq.VQTextToImagePipeline if kind == "text" else hf_vq.VQPipeline)
    pipe = type(kept).from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    check(pipe.prior)
    codes = fixture("vqdiffusion_patchvqgan")[0]["in.tokens"].view(2, 4, 4)
    alone = hf_vq.VQModel.from_single_file(path, format="vqdiffusion-codec")
    assert torch.equal(pipe.autoencoder.detokenize(codes), alone.detokenize(codes))
    given = {"prompt_embeds": torch.randn(1, 4, 10), "guidance_scale": 1.0} if kind == "text" else {}
    assert pipe(**given, num_inference_steps=2, output_type="pt").images.shape == (1, 3, 16, 16)


def test_a_codec_of_other_codes_is_told_to_be_left_out(tmp_path):
    theirs = read_file(FIXTURES / "vqdiffusion_patchvqgan/vqvae.pth").content["model"]
    for content, words in (
        (wrapped(theirs, "content_codec."), "it has 40 codes, and no tensor says which 11 of them the prior knows"),
        ({"content_codec.model.weight": torch.ones(1)}, "it is of no known kind"),
    ):
        tensors, config, check = original()
        whole = {f"transformer.{name}": one for name, one in tensors.items()} | content
        with pytest.warns(UserWarning, match=rf"left out is content_codec\.\*, the image codec: {words}"):
            check(hf_vq.DiscreteDiffusionPrior.from_single_file(save(tmp_path, whole, config, prefix="")))


def test_what_the_originals_files_cannot_be_is_named(tmp_path):
    def network(**changes):
        return lambda tensors, told: told["transformer_config"]["params"].update(changes)

    def forget(name):
        return lambda tensors, told: told["transformer_config"]["params"].pop(name)

    def put(name, change):
        return lambda tensors, told: tensors.update({name: change(tensors[name].clone())})

    def sooner(buffer):
        return buffer.roll(1)

    cases = {
        r"transformer_config\.params\.n_head is missing": forget("n_head"),
        r"transformer_config\.params\.block_activate is missing": forget("block_activate"),
        "block_activate is 'RELU': only GELU and GELU2": network(block_activate="RELU"),
        "n_layer is 3 in the config, but the weights say 1": network(n_layer=3),
        "condition_dim is 12": network(condition_dim=12),
        "content_seq_len is 15": network(content_seq_len=15),
        "mlp_hidden_times is 4, but the MLPs in the weights are 48 wide": network(mlp_hidden_times=4),
        "timestep_type is 'adalayernorm_abs', but .* learned": network(timestep_type="adalayernorm_abs"),
        "hidden_size must be a multiple of num_heads=3": network(n_head=3),
        "alpha_init_type is 'cos'": lambda tensors, told: told.update(alpha_init_type="cos"),
        "diffusion_step is 100": lambda tensors, told: told.update(diffusion_step=100),
        "num_embed is 12": lambda tensors, told: told["content_emb_config"]["params"].update(num_embed=12),
        r"log_1_min_cumprod_ct must have shape \(8,\)": put("log_1_min_cumprod_ct", lambda one: one[:-1]),
        r"has tensors that .* no place for: transformer\.more": lambda tensors, told: tensors.update(
            more=torch.ones(1)
        ),
    }
    for name in original()[0]:
        if name.startswith("log_"):
            cases[rf"{name}\[0\] is .*, but in the schedule 'alpha1' of 7 steps and 11 codes"] = put(name, sooner)
    for words, change in cases.items():
        tensors, config, _ = original()
        change(tensors, config["model"]["params"]["diffusion_config"]["params"])
        with pytest.raises(ValueError, match=words):
            hf_vq.DiscreteDiffusionPrior.from_single_file(save(tmp_path, tensors, config))
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"block_activate is missing.*give config"):
        hf_vq.DiscreteDiffusionPrior.from_single_file(tmp_path / "model.pth")
    for words, changes, told in (
        ("class_type is 'adainsnorm'", {}, {"class_type": "adainsnorm"}),
        ("mlp_type is conv_mlp, which sees 16 codes in 4 rows", {"grid": (4, 4), "tables": (2, 8), "conv": True}, {}),
        (r"content_seq_len=15 is no grid of the 3 x 9 positions", {"tables": (3, 9)}, {"content_seq_len": 15}),
    ):
        tensors, config, _ = original(kind="class" if "class_type" in told else "none", rows=3, **changes)
        config["model"]["params"]["diffusion_config"]["params"]["transformer_config"]["params"].update(told)
        with pytest.raises(ValueError, match=words):
            hf_vq.DiscreteDiffusionPrior.from_single_file(save(tmp_path, tensors, config))
