"""What `same_behaviour.py` compares, computed with one checkout: losses as hexadecimal floats, tensors as hashes.

It uses names that every build since 0.1.0 has. Other builds may add names to what it records, such as a figure of an
evaluation, but not take any away.
"""

import contextlib
import hashlib
import io
import json
import logging
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from behaviour_models import AUTOENCODERS, CONVERTED, PRIORS, Rows, make_conditions, small_hierarchy, small_pipeline
from checkouts import check_origin
from PIL import Image

import hf_vq
import hf_vq_cli
from hf_vq.converters import convert
from hf_vq.data.codes import load_codes, tokenizer_identity
from hf_vq.data.images import load_images
from hf_vq.data.tokenizing import tokenize_dataset
from hf_vq.training.autoencoder import AutoencoderTrainingArguments, train_autoencoder
from hf_vq.training.evaluation import evaluate_autoencoder, evaluate_prior
from hf_vq.training.prior import PriorTrainingArguments, train_prior

STEPS, BATCH = 10, 6


# Values to compare


def digest(value):
    """Hash of a tensor, or of nested tuples of them: types, shapes and bytes."""
    content = hashlib.sha256()
    for tensor in _tensors(value):
        content.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return content.hexdigest()


def _tensors(value):
    return [value] if isinstance(value, torch.Tensor) else [tensor for part in value for tensor in _tensors(part)]


def state(model):
    """Hash of a model's parameters and buffers, names included."""
    tensors = model.state_dict()
    names = hashlib.sha256(" ".join(tensors).encode()).hexdigest()
    return {"names of the state": names, "state": digest(list(tensors.values()))}


def figures(prefix, values):
    """Floats of a dict, without those that measure time."""
    return {
        f"{prefix} {name}": float(value).hex()
        for name, value in values.items()
        if isinstance(value, int | float) and not name.endswith(("runtime", "seconds", "_per_second", "flos"))
    }


def history(report):
    entries = {}
    for number, entry in enumerate(report["history"]):
        entries |= figures(f"entry {number}", entry)
    return entries | figures("metric", report["metrics"])


def smooth_images(count, channels=1, height=16, width=16, seed=0):
    """(count, channels, height, width) in [-1, 1], of 17 grey values as the digits."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, channels, 3, 3, generator=generator)
    images = F.interpolate(corners, size=(height, width), mode="bilinear", align_corners=True)
    return (images * 16).round() / 8 - 1


def training_steps(model, batches):
    """Losses of seeded AdamW steps; a batch is (positional input, keyword inputs)."""
    torch.manual_seed(1)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=2e-3), {}
    for step, (inputs, options) in enumerate(batches):
        output = model.train()(inputs, **options)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses[f"loss {step}"] = output.loss.item().hex()
    return losses


# Autoencoders and priors


def tokens(model, sample):
    """What an autoencoder makes of a batch: codes, what they decode to, and losses in eval mode."""
    model.eval()
    with torch.no_grad():
        codes, output = model.tokenize(sample), model(sample)
    return {
        "codes": digest(codes),
        "detokenized": digest(model.detokenize(codes)),
        "latents": digest(model.encode(sample).latents),
        "reconstruction": digest(output.sample),
        "eval loss": output.loss.item().hex(),
    }


def autoencoder(make, tiles):
    torch.manual_seed(0)
    model = make()
    channels = model.config.in_channels
    losses = training_steps(model, [(smooth_images(BATCH, channels, seed=step), {}) for step in range(STEPS)])
    found = losses | state(model) | tokens(model, smooth_images(4, channels, seed=100))
    identity = tokenizer_identity(model)
    found |= {name: value for name, value in identity.items() if name.endswith("sha256")}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = hf_vq.AutoVQModel.from_pretrained(folder).eval()
    found["codes after loading"] = digest(loaded.tokenize(smooth_images(4, channels, seed=100)))
    if tiles:
        large = smooth_images(1, channels, 48, 32, seed=101)
        model.enable_tiling(tile_sample_size=16)
        codes = model.tokenize(large)
        found |= {"codes of tiles": digest(codes), "tiles": digest(model.detokenize(codes))}
    return found


def prior(make):
    torch.manual_seed(0)
    model = make()
    shape, config = tuple(model.config.code_shape), model.config

    def batch(size, seed):
        torch.manual_seed(seed)
        codes = torch.randint(config.codebook_size, (size, *shape))
        if isinstance(model, hf_vq.MixtureWaveNet):
            codes = codes * 2 / (config.codebook_size - 1) - 1  # amplitudes on its levels
        return codes, make_conditions(model, size)

    found = training_steps(model, [batch(BATCH, step) for step in range(STEPS)]) | state(model)
    codes, conditions = batch(3, 100)
    found |= drawn(model.eval(), codes, conditions)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = hf_vq.AutoVQPrior.from_pretrained(folder).eval()
    found["log_prob after loading"] = digest(loaded.log_prob(codes, **conditions))
    return found


def drawn(model, codes, conditions):
    """What a prior says of codes, and draws: greedy, seeded, guided where it can be, and around known codes."""
    with torch.no_grad():
        output = model(codes, **conditions)
    size = {} if conditions else {"batch_size": len(codes)}
    options = {"code_shape": tuple(codes.shape[1:]), **size, **conditions}

    def sample(**more):
        return digest(model.sample(generator=torch.Generator().manual_seed(5), **options, **more))

    found = {
        "eval loss": output.loss.item().hex(),
        "logits": digest(output.logits),
        "log_prob": digest(model.log_prob(codes, **conditions)),
        "sample": sample(),
        "greedy": sample(temperature=0),
    }
    mask = torch.zeros_like(codes, dtype=torch.bool)
    mask.view(len(codes), -1)[:, : codes[0].numel() // 2] = True
    if isinstance(model, hf_vq.MixtureWaveNet):
        return found | {"completed": sample(known_values=codes, known_mask=mask)}
    found |= {"completed": sample(known_codes=codes, known_mask=mask), "top": sample(top_k=4, top_p=0.8)}
    if any(
        getattr(model.config, f"{kind}_dropout_prob", 0) for kind in ("class", "prompt", "text")
    ):  # a null to guide away from
        steps = {"guidance_steps": 5} if "guidance_steps" in model.sampling_options else {}
        found["guided"] = sample(guidance_scale=2.0, **steps)
    return found


# Roads


def autoencoder_loop():
    torch.manual_seed(0)
    model = hf_vq.VQVAE(1, 16, codebook_size=20, codebook_dim=6, quantizer_config={"restart_threshold": 0.5})
    with tempfile.TemporaryDirectory() as folder:
        args = AutoencoderTrainingArguments(
            folder, 8, gradient_accumulation_steps=2, max_steps=12, logging_steps=1, eval_steps=4, save_steps=0,
            learning_rate=2e-3, weight_decay=0.1, weight_ema_decay=0.9, lr_scheduler_type="cosine", use_cpu=True,
            disable_tqdm=True,
        )  # fmt: skip
        data, held_out = Rows({"sample": smooth_images(50)}), Rows({"sample": smooth_images(10, seed=1)})
        report = train_autoencoder(model, data, args, held_out)
    return history(report) | state(model) | figures("evaluation", evaluate_autoencoder(model, held_out))


def prior_loop():
    torch.manual_seed(0)
    make = dict(PRIORS)["PixelCNN gated"]
    model = make()
    codes = torch.randint(4, (70, 1, 4)).expand(70, 3, 4).contiguous()
    columns = {"codes": codes, "class_labels": codes[:, 0, 0] % 3}
    data, held_out = (
        Rows({name: column[rows] for name, column in columns.items()}, codebook_size=model.config.codebook_size)
        for rows in (slice(50), slice(50, None))
    )
    with tempfile.TemporaryDirectory() as folder:
        args = PriorTrainingArguments(
            folder, per_device_train_batch_size=8, gradient_accumulation_steps=2, max_steps=12, logging_steps=1,
            eval_steps=4, save_strategy="no", weight_ema_decay=0.9, use_cpu=True, disable_tqdm=True, report_to="none",
        )  # fmt: skip
        report = train_prior(model, data, args, held_out)
    found = figures("evaluation", evaluate_prior(model, held_out))
    return history(report) | found | state(model)


def data_road():
    """The digits, tokenized by a hierarchy and by a residual model, as Parquet and as a prior reads them."""
    images = load_images("digits", split="validation", image_size=16)
    found = {"images": digest([images[row]["sample"] for row in range(0, len(images), 20)])}
    torch.manual_seed(0)
    residual = hf_vq.RQVAE(
        1, (8, 8), 1, (False, True), latent_channels=6, norm_num_groups=4, codebook_size=20, codebook_dim=6
    )
    for name, model in {"hierarchy": small_hierarchy(), "levels": residual}.items():
        model.train()(smooth_images(8))
        with tempfile.TemporaryDirectory() as folder:
            tokenize_dataset(model, images, folder, shard_size=100)
            for grid in range(len(model.code_shapes((1, 16, 16)))):
                loaded = load_codes(folder, level=grid, context=grid > 0, tokenizer=model)
                items = [loaded[row] for row in range(0, len(loaded), 20)]
                found[f"{name}, codes of grid {grid}"] = digest(
                    [[item[key] for key in sorted(item)] for item in items]
                )
    return found


def pipelines():
    """Seeded samples and completed pictures of both pipelines."""
    found, mask = {}, torch.zeros(1, 1, 16, 16)
    mask[..., 8:, :] = 1
    for name, pipe in {"VQPipeline": small_pipeline(), "VQVAE2Pipeline": small_pipeline(small_hierarchy())}.items():
        pipe.set_progress_bar_config(disable=True)
        for kind, options in {
            "sample": {"guidance_scale": 1.5},
            "completion": {"image": smooth_images(1) / 2 + 0.5, "mask_image": mask},
            "codes": {"top_k": 3, "output_type": "codes"},
        }.items():
            generator = torch.Generator().manual_seed(5)
            images = pipe(class_labels=["one", 2], generator=generator, **{"output_type": "pt", **options}).images
            found[f"{name}, {kind}"] = digest(images)
    return found


def command_line():
    """The verbs, with the flags of 0.1.0, on the digits: a hierarchy, its priors, samples and an evaluation."""
    few = [
        "--max_steps", "6", "--per_device_train_batch_size", "16", "--logging_steps", "1", "--use_cpu", "true",
        "--disable_tqdm", "true",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        model, codes, top, bottom, samples, evaluation = (
            f"{folder}/{name}" for name in ("model", "codes", "top", "bottom", "samples.png", "evaluation.json")
        )
        data = ["--data", "digits", "--image_size", "16"]
        sizes = {"hidden_channels": 8, "residual_channels": 4, "codebook_size": 11, "codebook_dim": 6}
        prior = ["--codes", codes, "--prior", "PixelSNAIL", *few]
        for name, size in {"hidden_channels": 16, "num_blocks": 1, "num_residual_layers": 1}.items():
            prior += [f"--prior_config.{name}", str(size)]
        for command in (
            ["train", "autoencoder", *data, "--model", "VQVAE2", "--output", model, *few]
            + [word for name, size in sizes.items() for word in (f"--model_config.{name}", str(size))],
            ["tokenize", model, *data, "--output", codes],
            ["train", "prior", *prior, "--level", "top", "--output", top],
            [
                "train",
                "prior",
                *prior,
                "--level",
                "bottom",
                "--top_prior",
                top,
                "--autoencoder",
                model,
                "--output",
                bottom,
            ],
            ["sample", f"{bottom}/pipeline", "--num", "2", "--output", samples],
            ["evaluate", f"{bottom}/pipeline", *data, "--output", evaluation],
        ):
            if hf_vq_cli.main(command):
                raise ValueError(f"hf-vq {' '.join(command)} failed")
        found = {"samples": digest(torch.from_numpy(np.array(Image.open(samples))))}
        for name in (model, top, bottom):
            report = json.loads(Path(name, "report.json").read_text())
            found |= {f"{Path(name).name} {key}": value for key, value in history(report).items()}
        told = json.loads(Path(evaluation).read_text())
        for part, values in told.items():
            found |= figures(part, values) if isinstance(values, dict) else figures("evaluation", {part: values})
    return found


# Checkpoints of others


def converted(fixtures, source, first_stage):
    """A converted fixture: as written, its model's answers and those of the saved folder."""
    given = {} if first_stage is None else {"first_stage": fixtures / first_stage}
    source, found = fixtures / source, {}
    with tempfile.TemporaryDirectory() as folder:
        hparams = source.parent / "meta.json"
        if "wavenet_r9y9" in str(source):  # whose config stands in the fixture's facts
            given["config"] = Path(folder) / "hparams.json"
            given["config"].write_text(json.dumps(json.loads(hparams.read_text())["hyperparameters"]))
        model = convert(source, Path(folder) / "out", license="mit", **given)
        parts = {"": model}
        if isinstance(model, hf_vq.VQPipeline):
            loaded = hf_vq.VQPipeline.from_pretrained(Path(folder) / "out")
            parts = {"autoencoder ": model.autoencoder, "prior ": model.prior, "loaded prior ": loaded.prior}
        elif isinstance(model, hf_vq.PreTrainedModel):
            parts["loaded "] = hf_vq.AutoVQPrior.from_pretrained(Path(folder) / "out")
        else:
            parts["loaded "] = hf_vq.AutoVQModel.from_pretrained(Path(folder) / "out")
    for name, part in parts.items():
        answers = state(part) | (answers_of_prior(part) if hasattr(part, "log_prob") else tokens(part, picture(part)))
        found |= {name + key: value for key, value in answers.items()}
    return found


def picture(model):
    """Two images that a model takes: those of one size only say which."""
    side = getattr(model.config, "image_size", None) or 32
    height, width = (side, side) if isinstance(side, int) else side
    return smooth_images(2, model.config.in_channels, height, width, seed=7)


def answers_of_prior(model):
    torch.manual_seed(3)
    line = isinstance(model, hf_vq.WaveNet | hf_vq.MixtureWaveNet)
    shape = tuple(model.config.code_shape or ((24,) if line else (4, 4)))
    codes = torch.randint(model.config.codebook_size, (2, *shape))
    if isinstance(model, hf_vq.MixtureWaveNet):
        codes = codes * 2 / (model.config.codebook_size - 1) - 1
    return drawn(model.eval(), codes, make_conditions(model, 2, shape))


def items(fixtures):
    """Name to function of every behaviour."""
    found = {name: lambda make=make, tiles=tiles: autoencoder(make, tiles) for name, make, tiles in AUTOENCODERS}
    found |= {name: lambda make=make: prior(make) for name, make in PRIORS}
    found |= {
        "train_autoencoder": autoencoder_loop, "train_prior": prior_loop, "tokenized data": data_road,
        "pipelines": pipelines, "command line": command_line,
    }  # fmt: skip
    for source, first_stage in CONVERTED:
        found[f"convert {source}"] = lambda pair=(source, first_stage): converted(fixtures, *pair)
    return found


def main(checkout, fixtures, target, *words):
    check_origin(checkout)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    values = {}
    for name, compute in items(Path(fixtures)).items():
        if words and not any(word in name for word in words):
            continue
        torch.manual_seed(0)
        try:
            values[name] = compute()
        except Exception as error:  # one behaviour that is gone does not hide the others
            traceback.print_exc()
            values[name] = {"error": f"{type(error).__name__}: {error}"}
    Path(target).write_text(json.dumps(values))


if __name__ == "__main__":
    main(*sys.argv[1:])
