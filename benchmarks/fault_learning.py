"""Cases of models that do not learn, or learn less, without a word."""

import math

import torch
from fault_kinds import Case, check, kind
from fault_models import (
    FAMILIES,
    OPTIONS,
    described,
    draw_levels,
    draw_quantizer,
    make_autoencoder,
    make_prior,
    make_rows,
    pictures,
    train,
)

from hf_vq.metrics.reconstruction import ReconstructionError
from hf_vq.quantizers import make_quantizer

STEPS = 40


@kind("starts", "the encoder has a gradient at step 0, and codes differ after 40 steps")
def starts(random):
    pairs = [(family, draw_quantizer(random, random.choice(list(OPTIONS)))) for family in FAMILIES for _ in range(2)]
    own = [draw_levels(random) for _ in range(5)] + [
        [random.choice([2, 4, 6])] * random.randint(2, 3) for _ in range(3)
    ]
    for family, quantizer in pairs:
        yield Case(f"{family} {described(*quantizer)}", lambda pair=(family, quantizer): _starts(*pair), "works")
    for levels in own:  # one channel a level, without maps that lead there
        family = random.choice(["VQVAE", "VQVAE", "RQVAE", "DVAE"])
        case = (
            family,
            ("finite_scalar", math.prod(levels), {"levels_per_dim": levels}),
            {"codebook_dim": len(levels)},
        )
        yield Case(f"{family} of {len(levels)} channels, levels {levels}", lambda case=case: _starts(*case), "works")


def _starts(family, quantizer, options=None):
    model = make_autoencoder(family, quantizer, **(options or {})).train()
    model(pictures(16)).reconstruction_loss.backward()
    learning = [
        parameter.grad.abs().sum()
        for name, parameter in model.named_parameters()
        if not name.startswith("quantiz") and not model.only_decodes(name) and parameter.grad is not None
    ]
    check(sum(learning) > 0, "the encoder's gradient is exactly 0 at step 0")
    train(model, STEPS, batch=8)
    codes = model.eval().tokenize(pictures(16, seed=1000))
    for grid in codes if isinstance(codes, tuple) else (codes,):
        check(grid.unique().numel() > 1, f"one code after {STEPS} steps")


NESTED = {  # quantizers made of quantizers, and what their parts may have
    "residual": {
        "level_type": (
            ("ema", {"code_dim": 3}), ("ema", {"code_dim": 2, "normalize": True}), ("vector", {"code_dim": 4}),
            ("vector", {"code_transform": True}), ("vector", {"code_dim": 2, "gradient": "rotation"}),
            ("lookup_free", {"entropy_weight": 0.0}), ("finite_scalar", {"levels_per_dim": [4, 4]}),
        ),
        "num_levels": (2, 3, 4), "code_dim": (None, 4),
    },
    "product": {
        "group_type": (
            ("vector", {"code_dim": 2}), ("vector", {"code_transform": True}), ("ema", {"code_dim": 2}),
            ("index_backpropagation", {"code_dim": 2}), ("gumbel", {}), ("lookup_free", {"entropy_weight": 0.0}),
            ("residual", {"num_levels": 2, "level_config": {"code_dim": 2}}), ("finite_scalar", {
                "levels_per_dim": [4, 4]}),
            ("residual", {"num_levels": 2, "level_type": "vector", "level_config": {"code_dim": 2}}),
        ),
        "groups": (2, 3),
    },
    "remapped": {
        "num_used": (5, 16), "base_config": ({"code_transform": True}, {"normalize": True}, {"legacy": True}),
    },
}  # fmt: skip


@kind("nested gradients", "every parameter of nested quantizers learns, projections by the task")
def nested_gradients(random):
    for name in ("residual", "product") * 7 + ("remapped",) * 2:
        config = {key: random.choice(values) for key, values in NESTED[name].items()}
        for key, parts in (("level_type", "level_config"), ("group_type", "group_config")):
            if key in config:
                config[key], config[parts] = config[key]
        quantizer = (name, 16, config)
        yield Case(described(*quantizer), lambda quantizer=quantizer: _all_learn(quantizer), "honest")


def _all_learn(quantizer):
    module = make_rows(quantizer).train()
    latents = torch.randn(8, 6, 8, 8)
    module(latents)  # k-means
    for of_task in (True, False):
        module.zero_grad()
        output = module(latents.clone().requires_grad_())
        loss = (output.latents - torch.randn_like(latents)).square().mean()
        (loss if of_task else loss + output.loss).backward()
        silent = [
            name
            for name, parameter in module.named_parameters()
            if (parameter.grad is None or not parameter.grad.abs().sum() > 0)
            and (not of_task or "project_out" in name)
        ]
        check(not silent, f"no gradient {'of the task' if of_task else 'at all'} for {', '.join(silent)}")


@kind("residual start", "a shared residual codebook is no worse started by k-means")
def residual_starts(random):
    for _ in range(6):
        drawn = {
            "size": random.choice([16, 32, 64]), "num_levels": random.choice([2, 3, 4, 6]),
            "level_type": random.choice(["ema", "vector"]), "clusters": random.choice([0, 5, 20, 100]),
            "dim": random.choice([3, 6, 12]),
        }  # fmt: skip
        yield Case(str(drawn), lambda drawn=drawn: _starts_well(**drawn), "works")


def _starts_well(size, num_levels, level_type, clusters, dim):
    errors = {}
    for kmeans in (True, False):
        torch.manual_seed(0)
        centres = torch.randn(max(1, clusters), dim)
        config = {"num_levels": num_levels, "shared_codebook": True, "level_type": level_type}
        quantizer = make_quantizer("residual", size, dim, {**config, "level_config": {"kmeans_init": kmeans}})
        parameters = list(quantizer.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0) if parameters else None

        def draw(centres=centres):
            spread = 0.1 if clusters else 1.0
            rows = centres[torch.randint(len(centres), (1024,))] * bool(clusters) + spread * torch.randn(1024, dim)
            return rows.T[None]

        for _ in range(60):
            loss = quantizer.train()(draw()).loss
            if optimizer:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        latents, metric = torch.cat([draw() for _ in range(4)], dim=-1), ReconstructionError()
        metric.update(latents, quantizer.eval()(latents).latents)
        errors[kmeans] = metric.compute().error_over_variance
    check(errors[True] < 1.03 * errors[False], f"error {errors[True]:.4f} with k-means, {errors[False]:.4f} without")


@kind("level losses", "the losses of levels and groups can be summed, as papers do, and commitment keeps its weight")
def level_losses(random):
    for _ in range(4):
        name, count = random.choice(["residual", "product"]), random.choice([2, 3, 6])
        part = random.choice(["ema", "vector", "lookup_free"])
        config = {"num_levels": count, "level_type": part} if name == "residual" else {"groups": count}
        config |= {} if name == "residual" else {"group_type": part}
        yield Case(
            described(name, 16, config), lambda case=(name, 16, config), count=count: _summed(case, count), "works"
        )


def _summed(quantizer, count):
    name, size, config = quantizer
    latents, losses = torch.randn(4, 6, 8, 8), []
    for reduction in ("mean", "sum"):
        module = make_rows((name, size, {**config, "loss_reduction": reduction})).train()
        losses.append(module(latents).loss)
    torch.testing.assert_close(losses[1], losses[0] * count)


@kind("SimVQ widths", "a frozen codebook of another width than the codes")
def frozen_widths(random):
    for _ in range(4):
        size, width = random.choice([9, 20, 33]), random.choice([2, 3, 5, 8, 24])
        config = {"code_transform": True, "frozen_codebook_dim": width}
        config |= {"code_dim": 4} if random.random() < 0.5 else {}
        yield Case(described("vector", size, config), lambda pair=(size, config): _frozen(*pair), "works")


def _frozen(size, config):
    from hf_vq import AutoVQModel

    model = make_autoencoder("VQVAE", ("vector", size, config))
    train(model, 1)  # k-means starts it
    frozen = model.quantizer.embedding.weight.clone()
    check(tuple(frozen.shape) == (size, config["frozen_codebook_dim"]), f"the codebook is {tuple(frozen.shape)}")
    train(model, 3)
    check(torch.equal(frozen, model.quantizer.embedding.weight), "the frozen codebook moved")
    model.eval().save_pretrained("simvq")
    loaded = AutoVQModel.from_pretrained("simvq").eval()
    check(torch.equal(loaded.tokenize(pictures(4)), model.tokenize(pictures(4))), "other codes after loading")


SEEING = {  # raster priors that see all earlier codes, by their name in `behaviour_models.PRIORS`
    "PixelSNAIL top": {"num_blocks": 2}, "PixelCNN gated": {"num_layers": 8}, "PixelCNN plain": {"num_layers": 8},
    "GPTPrior": {}, "TransformerPrior alone": {}, "LlamaGenPrior": {}, "RQTransformer classes": {},
}  # fmt: skip


@kind("raster priors", "every earlier code has a say in a later one, and no later code in an earlier")
def raster_priors(random):
    for name in ["PixelSNAIL top"] * 5 + sorted(SEEING.keys() - {"PixelSNAIL top"}):
        height, width = random.choice([(1, 7), (2, 3), (2, 5), (3, 3), (3, 4), (5, 2), (6, 1)])
        if name.startswith("RQ"):
            height = min(height, 2)
            width = min(width, 4)
        changes = dict(SEEING[name])
        if name == "PixelSNAIL top":
            changes |= {"num_residual_layers": random.randint(1, 3), "num_blocks": random.randint(1, 3)}
        case = (name, (height, width), changes)
        yield Case(f"{name} {height}x{width} {changes or ''}", lambda case=case: _sees_all(*case), "works")


def _sees_all(name, grid, changes):
    levels = {"RQTransformer classes": (3,)}.get(name, ())
    prior = make_prior(name, code_shape=(*levels, *grid), class_dropout_prob=0.0, **changes).double()
    if hasattr(prior, "set_code_vectors"):
        prior.set_code_vectors(torch.randn_like(prior.code_vectors))
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    size, count = prior.config.codebook_size, grid[0] * grid[1]
    conditions = {"class_labels": torch.zeros(1, dtype=torch.int64)} if prior.config.num_classes else {}
    codes, seen = torch.randint(size, (1, *levels, *grid)), torch.zeros(count, count, dtype=torch.bool)

    def logits(codes):
        with torch.no_grad():
            found = prior(codes, **conditions).logits
        return found.movedim(1, -2).reshape(count, -1) if levels else found.reshape(count, -1)

    before = logits(codes)
    for place in range(count):
        for step in range(1, 4):
            other = codes.clone().flatten(-2)
            other[..., place] = (other[..., place] + step) % size
            seen[:, place] |= (logits(other.view_as(codes)) != before).any(dim=1)
    if levels:  # the levels of one place see each other
        seen.fill_diagonal_(False)
    unseen = [(j, i) for i in range(count) for j in range(i) if not seen[i, j]]
    check(not unseen, f"{len(unseen)} of {count * (count - 1) // 2} pairs without influence, first {unseen[:2]}")
    check(not seen.triu().any(), "a later code has a say in an earlier one")
