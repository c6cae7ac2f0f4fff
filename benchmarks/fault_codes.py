"""Cases of codes that are wrong, or that a tool is too small for."""

import math

import torch
from behaviour_models import PRIORS, Rows, small_hierarchy, small_pipeline
from fault_kinds import Case, check, kind
from fault_models import (
    FAMILIES,
    OPTIONS,
    SAMPLE,
    described,
    draw_levels,
    draw_quantizer,
    make_autoencoder,
    make_prior,
    make_rows,
    pictures,
    prior_batch,
    train,
)

from hf_vq.data.codes import load_codes
from hf_vq.data.tokenizing import tokenize_dataset
from hf_vq.grids import as_grids
from hf_vq.metrics.codebook import CodebookUsage
from hf_vq.modalities.image_pictures import save_code_maps
from hf_vq.training.evaluation import evaluate_autoencoder

VERBS = {
    "tokenize": lambda model, sample: model.tokenize(sample),
    "detokenize": lambda model, sample: model.detokenize(model.eval_codes),
    "tokenize_dataset": lambda model, sample: _tokenized(model, sample),
    "evaluate": lambda model, sample: evaluate_autoencoder(model, Rows({"sample": sample})),
}


@kind("modes", "inference verbs in training mode change nothing and give what they give in eval mode")
def modes(random):
    for family in FAMILIES:
        for verb in random.sample(list(VERBS), 2):
            quantizer = draw_quantizer(random, random.choice(list(OPTIONS)))
            if quantizer[0] == "residual":
                quantizer[2]["level_dropout"] = 0.5
            options = {"norm": "batch"} if family == "VQVAE" else {}
            case = (family, quantizer, verb, options)
            yield Case(f"{verb} of {family} {described(*quantizer)}", lambda case=case: _same_in_training(*case))
    for name, make in PRIORS:
        verb = random.choice(["log_prob", "sample"])
        if getattr(make().config, "dropout", 0) or "Transformer" in name or random.random() < 0.3:
            yield Case(f"{verb} of {name}", lambda case=(name, verb): _prior_in_training(*case), "works")


def _same_in_training(family, quantizer, verb, options):
    model = make_autoencoder(family, quantizer, **options)
    train(model, 2)
    sample = pictures(6, seed=9)
    model.eval_codes = model.eval().tokenize(sample)
    answers = []
    for training in (False, True):
        model.train(training)
        frozen = next(module for module in model.modules() if not list(module.children()))
        frozen.eval()
        flags = [module.training for module in model.modules()]
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        torch.manual_seed(5)
        answers.append(VERBS[verb](model, sample))
        moved = [name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])]
        check(not moved, f"{len(moved)} buffers moved, such as {moved[:1]}")
        check([module.training for module in model.modules()] == flags, "modules came back in another mode")
    check(_equal(*answers), "another result in training mode")
    if verb == "tokenize":
        alone = as_grids(model.tokenize(sample[:1]))
        check(_equal(alone, [grid[:1] for grid in as_grids(answers[1])]), "codes depend on the batch")


def _tokenized(model, sample):
    tokenize_dataset(model, Rows({"sample": sample}), "codes", overwrite=True)
    grids = len(as_grids(model.eval_codes))
    return [load_codes("codes", grid=grid if grids > 1 else None)[1]["codes"] for grid in range(grids)]


def _equal(one, other):
    if isinstance(one, dict):
        return one == other
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return all(_equal(*pair) for pair in zip(one, other, strict=True))


def _prior_in_training(name, verb):
    prior = make_prior(name)
    codes, conditions = prior_batch(prior, 3)
    answers = []
    for training in (False, True):
        prior.train(training)
        if verb == "log_prob":
            answers.append(prior.log_prob(codes, **conditions))
        else:
            given = conditions or {"batch_size": 3}
            answers.append(prior.sample(**given, generator=torch.Generator().manual_seed(1)))
        check(prior.training == training, "came back in another mode")
    check(_equal(*answers), "another result in training mode")


BITS = [*range(29, 63)]


@kind("huge codebooks", "up to 2^62 codes are stored, counted, evaluated and trained, or refused before any work")
def huge_codebooks(random):
    for verb in ("usage", "data", "evaluate", "fit", "maps") * 3:
        bits = random.choice(BITS)
        way = random.choice(["lookup_free", "finite_scalar", "residual"])
        yield Case(f"{verb}, {way}, 2^{bits}", lambda case=(verb, way, bits): _huge(*case), "works")
    for name, _ in random.sample(PRIORS, 6):
        bits = random.choice(BITS)
        yield Case(
            f"{name} of 2^{bits} codes", lambda case=(name, bits): make_prior(case[0], codebook_size=2 ** case[1])
        )
    for name in ("ema", "vector", "gumbel", "index_backpropagation"):
        bits = random.choice(BITS[8:])
        yield Case(f"{name} of 2^{bits} codes", lambda case=(name, 2**bits, {}): make_rows(case))


def _huge(verb, way, bits):
    if verb == "usage":
        metric, codes = CodebookUsage(2**bits), torch.tensor([[0, 2**bits - 1, 2 ** (bits - 1), 2**bits - 1]])
        metric.update(codes)
        found = metric.compute()
        check(abs(found.perplexity - 2**1.5) < 1e-4, f"perplexity {found.perplexity}")
        check(found.dead_codes == 2**bits - 3, f"{found.dead_codes} dead codes")
        return
    options, quantizer = {}, ("lookup_free", 2**bits, {"entropy_weight": 0.0})
    if way == "finite_scalar":
        quantizer = ("finite_scalar", 2**bits, {"levels_per_dim": [2] * (bits % 2) + [4] * (bits // 2)})
    elif way == "residual":
        quantizer = ("residual", 2**bits, {
            "num_levels": 2, "level_type": "lookup_free", "level_config": {"entropy_weight": 0.0},
        })  # fmt: skip
    model, sample = make_autoencoder("VQVAE", quantizer, codebook_dim=bits, **options).eval(), pictures(12)
    if verb == "data":
        codes = model.tokenize(sample)
        tokenize_dataset(model, Rows({"sample": sample}, sample_shape=SAMPLE), "codes")
        loaded = load_codes("codes", tokenizer=model)
        stored = torch.stack([loaded[index]["codes"] for index in range(12)])
        check(torch.equal(stored, codes), f"{(stored != codes).double().mean():.0%} of the stored codes are others")
    elif verb == "maps":
        save_code_maps("maps.png", sample, model.tokenize(sample), model.codebook_size)
    elif verb == "evaluate":
        evaluate_autoencoder(model, Rows({"sample": sample}))
    else:
        from fault_training import fit

        fit(model, evaluate=True)


INTEGERS = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "uint64")


@kind("integer types", "codes of every integer type are taken, and are the same codes")
def integer_types(random):
    for family in FAMILIES:
        quantizer, dtype = draw_quantizer(random, random.choice(list(OPTIONS))), random.choice(INTEGERS)
        case = (family, (quantizer[0], *quantizer[1:]), dtype)
        yield Case(
            f"{dtype}, detokenize of {family} {described(*quantizer)}", lambda case=case: _decoded(*case), "works"
        )
    for name, _ in PRIORS:
        if name.startswith("Mixture"):
            continue
        case = (name, random.choice(INTEGERS), random.choice(["forward", "log_prob", "known_codes"]))
        yield Case(f"{case[1]}, {case[2]} of {name}", lambda case=case: _modelled(*case), "works")
    for pipeline in ("VQPipeline", "VQVAE2Pipeline"):
        dtype = random.choice(INTEGERS)
        yield Case(f"{dtype}, known_codes of {pipeline}", lambda case=(pipeline, dtype): _completed(*case), "works")


def _decoded(family, quantizer, dtype):
    model = make_autoencoder(family, quantizer)
    train(model, 1)
    codes = as_grids(model.eval().tokenize(pictures(3)))
    codes = [grid.clamp(max=100) for grid in codes]  # that int8 holds
    kinds = [tuple(codes), tuple(grid.to(getattr(torch, dtype)) for grid in codes)]
    one, other = (model.detokenize(each if model.hierarchical else each[0]) for each in kinds)
    check(torch.equal(one, other), "other pictures")


def _modelled(name, dtype, verb):
    prior, answers = make_prior(name), []
    codes, conditions = prior_batch(prior, 3)
    mask = torch.zeros(codes.shape, dtype=torch.bool)
    mask.view(3, -1)[:, :2] = True
    for given in (codes, codes.to(getattr(torch, dtype))):
        if "context_codes" in conditions and given is not codes:
            conditions["context_codes"] = tuple(grid.to(given.dtype) for grid in conditions["context_codes"])
        if verb == "known_codes":
            size = {} if conditions else {"batch_size": 3}
            options = {"known_codes": given, "known_mask": mask, **conditions, **size, "code_shape": codes.shape[1:]}
            answers.append(prior.sample(generator=torch.Generator().manual_seed(3), **options))
        else:
            found = prior(given, **conditions).loss if verb == "forward" else prior.log_prob(given, **conditions)
            answers.append(found)
    check(torch.equal(*answers), "another answer")


def _completed(pipeline, dtype):
    pipe = small_pipeline(small_hierarchy() if pipeline.startswith("VQVAE2") else None)
    pipe.set_progress_bar_config(disable=True)
    codes = as_grids(pipe.autoencoder.tokenize(pictures(1)))
    answers = []
    for wanted in (torch.int64, getattr(torch, dtype)):
        known = [grid.to(wanted) for grid in codes]
        masks = [torch.ones(grid.shape, dtype=torch.bool) for grid in codes]
        given = (known, masks) if len(known) > 1 else (known[0], masks[0])
        options = {"known_codes": given[0], "known_mask": given[1], "output_type": "pt", "class_labels": [0]}
        answers.append(pipe(generator=torch.Generator().manual_seed(0), **options).images)
    check(torch.equal(*answers), "other pictures")


@kind("requantized", "an option keeps the codes of finite scalar latents that are quantized again")
def requantized(random):
    for _ in range(8):
        levels, shift, scale = draw_levels(random), random.choice([0.0, 0.7, -3.0]), random.choice([0.01, 1.0, 20.0])
        case = (levels, shift, scale)
        words = f"levels {levels}, trained on {scale} x noise {shift:+}"
        yield Case(words, lambda case=case: _kept(*case), "works")


def _kept(levels, shift, scale):
    config = {"levels_per_dim": levels, "preserve_symmetry": True, "bound": "clamp"}
    quantizer = make_rows(("finite_scalar", math.prod(levels), config), len(levels)).train()
    for _ in range(3):
        quantizer(torch.randn(4, len(levels), 8, 8) * scale + shift)
    codes = torch.arange(quantizer.codebook_size)[None]
    kept = (quantizer.eval().tokenize(quantizer.detokenize(codes)) == codes).double().mean().item()
    check(kept == 1, f"{kept:.0%} of the codes are kept")
