"""Cases of half precision and of heads: gradients that are lost or NaN, sizes that a config does not check."""

import torch
from behaviour_models import PRIORS
from fault_kinds import Case, check, kind
from fault_models import OPTIONS, described, draw_quantizer, make_prior, make_rows, prior_batch

import hf_vq

HEADED = ("TransformerPrior alone", "TransformerPrior levels", "DelayedTransformerPrior", "LlamaGenPrior")
HEADS = {
    "GPTPrior": "num_heads",
    "RQTransformer classes": "num_spatial_heads",
    "PixelSNAIL top": "num_attention_heads",
}


@kind("half sums", "a prior in half precision sums the gradient of a frequent code as float32 does")
def half_sums(random):
    for name, _ in PRIORS:
        if not name.startswith("Mixture"):
            case = (name, random.randrange(5), random.choice([150, 300]))
            yield Case(f"{name}, {case[2]} grids of one code", lambda case=case: _sums(*case), "works")


def _sums(name, code, count):
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        prior = make_prior(name)
        codes = torch.full((count, *prior.config.code_shape), code)
        codes, conditions = prior_batch(prior, count, codes=codes)
        conditions = {
            key: value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value
            for key, value in conditions.items()
        }
        conditions = {
            key: torch.zeros_like(value) if key.endswith("labels") else value for key, value in conditions.items()
        }
        prior.load_state_dict({key: value.to(torch.bfloat16).to(value.dtype) if value.is_floating_point() else value
                               for key, value in prior.state_dict().items()})  # fmt: skip
        prior.to(dtype)(codes, **conditions).loss.backward()
        gradients.append({key: each.grad.float() for key, each in prior.named_parameters() if each.grad is not None})
    for key, exact in gradients[0].items():
        if exact.ndim != 2 or not any(word in key for word in ("embed", "token")) or not exact.norm() > 1e-6:
            continue
        row = exact.norm(dim=1).argmax()
        share = (gradients[1][key][row].norm() / exact[row].norm()).item()
        check(0.8 < share < 1.25, f"{key}: the norm of a frequent row's gradient is {share:.2f} of the right one")


@kind("zero vectors", "latents of exactly 0, in every precision, give finite gradients")
def zero_vectors(random):
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        for name in [*random.sample(list(OPTIONS), 3), "lookup_free", "vector", "ema"]:
            quantizer = draw_quantizer(random, name)
            for option in ("normalize", "spherical"):
                if option in OPTIONS[name][2] and random.random() < 0.6:
                    quantizer[2][option] = True
            case = (dtype, quantizer, random.choice([0.0, 1e-8, 1e-30]))
            words = f"{dtype}, {described(*quantizer)}, rows of {case[2]}"
            yield Case(words, lambda case=case: _finite_gradient(*case), "works")


def _finite_gradient(dtype, quantizer, value):
    module = make_rows(quantizer).train()
    module.to(getattr(torch, dtype))
    module(torch.randn(4, 6, 8, 8).to(getattr(torch, dtype)))  # starts the codebook
    latents = torch.randn(2, 6, 4, 4).to(getattr(torch, dtype))
    latents[:, :, 1:3] = value
    latents.requires_grad_()
    output = module(latents)
    (output.latents.float().square().mean() + output.loss.float()).backward()
    check(latents.grad.isfinite().all(), "the gradient of the latents is NaN or infinite")
    learning = {name: each.grad for name, each in module.named_parameters() if each.grad is not None}
    broken = [name for name, gradient in learning.items() if not gradient.isfinite().all()]
    check(not broken, f"the gradient of {broken} is NaN or infinite")


@kind("heads", "every number of heads that divides works, and others are refused by name")
def heads(random):
    for name in HEADED:
        for _ in range(3):
            heads = random.choice([1, 2, 3, 5, 6, 7])
            wrong = heads > 1 and random.random() < 0.3
            option = random.choice(["num_heads", "num_attention_heads"])  # the second is transformers' own name
            case = (name, {option: heads, "hidden_size": 8 * heads + wrong})
            yield Case(f"{name} {case[1]}", lambda case=case: _heads(*case), "refuses" if wrong else "works")
    for name, option in HEADS.items():
        heads = random.choice([5, 7, 11])
        yield Case(f"{name} {option}={heads}", lambda case=(name, {option: heads}): _heads(*case), "refuses")


def _heads(name, changes):
    torch.manual_seed(0)
    own = dict(PRIORS)[name]()
    config = {key: value for key, value in own.config.to_diff_dict().items() if "head" not in key}
    given = {key: getattr(own.config, key) for key in ("codebook_size", "code_shape")}
    if name in HEADED:
        given |= {"num_layers": 2, "intermediate_size": 24, "num_levels": getattr(own.config, "num_levels", 1)}
        given |= {"num_classes": own.config.num_classes}
        given = {key: value for key, value in given.items() if key != "num_levels" or value > 1}
    else:
        given = {**config, **given}
    prior = type(own)(type(own.config)(**{**given, **changes})).eval()
    codes, conditions = prior_batch(prior, 2)
    loss = prior(codes, **conditions).loss
    check(loss.isfinite(), "the loss is no number")
    size = conditions or {"batch_size": 2}
    drawn = prior.sample(**size, generator=torch.Generator().manual_seed(0))
    check(drawn.shape == codes.shape, f"samples {tuple(drawn.shape)}")
    prior.save_pretrained("prior")
    loaded = hf_vq.AutoVQPrior.from_pretrained("prior").eval()
    check(torch.equal(loaded(codes, **conditions).loss, loss), "another loss after loading")
