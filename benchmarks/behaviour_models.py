"""Small models of every family, and the fixtures of other projects, whose behaviour `behaviours.py` records."""

import torch

import hf_vq

# Autoencoders: name, how to make it, whether it has tiles

VQVAE = {"in_channels": 1, "hidden_channels": 16, "codebook_size": 20, "codebook_dim": 6}
VQMODEL = {
    "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 8), "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    "num_vq_embeddings": 20, "sample_size": 8,
}  # fmt: skip
RQVAE = {
    "in_channels": 1, "block_out_channels": (8, 8), "layers_per_block": 1, "latent_channels": 6, "norm_num_groups": 4,
    "codebook_size": 20, "codebook_dim": 6,
}  # fmt: skip
TRANSFORMER = {"dim": 8, "depth": 1, "heads": 2, "head_dim": 4, "mlp_dim": 12}

QUANTIZERS = {
    "vector": ("vector", {}),
    "vector, rotation": ("vector", {"gradient": "rotation", "normalize": True, "entropy_weight": 0.1}),
    "vector, SimVQ": ("vector", {"code_transform": True}),
    "vector, narrow": ("vector", {"code_dim": 3, "restart_threshold": 0.5}),
    "ema": ("ema", {}),
    "ema, Sonnet": ("ema", {"zero_debias": True, "restart_threshold": 0.5}),
    "residual": ("residual", {"num_levels": 3}),
    "residual, shared": ("residual", {"num_levels": 3, "shared_codebook": True, "level_dropout": 0.5}),
    "residual, vector": ("residual", {"num_levels": 2, "level_type": "vector"}),
    "product": ("product", {"groups": 3}),
    "product, residual": ("product", {"groups": 2, "group_type": "residual", "group_config": {"num_levels": 2}}),
    "finite_scalar": ("finite_scalar", {"levels_per_dim": [5, 4]}),
    "lookup_free": ("lookup_free", {"entropy_weight": 0.1}),
    "lookup_free, spherical": ("lookup_free", {"spherical": True, "entropy_weight": 0.1}),
    "gumbel": ("gumbel", {"kl_weight": 0.01}),
    "gumbel, hard": ("gumbel", {"hard": True, "temperature": 1.0, "final_temperature": 0.5}),
    "index_backpropagation": ("index_backpropagation", {"entropy_weight": 0.1}),
    "remapped": ("remapped", {"num_used": 8}),
}


def _vqvae(quantizer_type="ema", quantizer_config=None, **options):
    if quantizer_type == "lookup_free":
        options["codebook_size"] = 64
    return lambda: hf_vq.VQVAE(
        **{**VQVAE, **options}, quantizer_type=quantizer_type, quantizer_config=quantizer_config
    )


def _vqvae2(**options):
    return lambda: hf_vq.VQVAE2(1, 8, 1, 4, 20, 6, **options)


AUTOENCODERS = [
    *((f"VQVAE {name}", _vqvae(*quantizer), True) for name, quantizer in QUANTIZERS.items()),
    ("VQVAE shortcut", _vqvae(shortcut=True), True),
    ("VQVAE principal", _vqvae("product", {"groups": 3}, shortcut="principal"), True),
    ("VQVAE principal logistic", _vqvae(shortcut="principal", reconstruction_loss="logistic"), True),
    ("VQVAE softmax", _vqvae(reconstruction_loss="softmax"), True),
    ("VQVAE logistic", _vqvae(reconstruction_loss="logistic"), True),
    ("VQVAE logistic softmax", _vqvae(reconstruction_loss="logistic_softmax"), True),
    (
        "VQVAE as in Keras",
        _vqvae(
            "vector", stage_channels=(8, 16), kernel_size=3, padding="same", middle_kernel_size=None,
            num_residual_layers=0, output_kernel_size=3,
        ),
        False,
    ),
    (
        "VQVAE as ritheshkumar's",
        _vqvae(
            "vector", stage_channels=(16, 16), middle_kernel_size=None, codebook_dim=None, norm="batch",
            residual_form="rectified", residual_channels=16, output_activation="tanh",
        ),
        False,
    ),
    ("VQVAE2", _vqvae2(), True),
    ("VQVAE2 three grids", _vqvae2(strides=(2, 2, 2), quantizer_type="vector"), True),
    ("VQVAE2 dropout", _vqvae2(level_dropout=0.5), True),
    ("VQVAE2 logistic", _vqvae2(reconstruction_loss="logistic"), True),
    ("VQVAE2 residual layout", lambda: hf_vq.VQVAE2(1, 8, 1, 4, 20, 16, residual=True), True),
    ("VQModel", lambda: hf_vq.VQModel(**VQMODEL), True),
    ("VQModel ema", lambda: hf_vq.VQModel(**VQMODEL, quantizer_type="ema"), True),
    ("VQModel wide stem", lambda: hf_vq.VQModel(**VQMODEL, stem_channels=4, decoder_block_out_channels=(4, 8)), True),
    ("RQVAE", lambda: hf_vq.RQVAE(**RQVAE, attention_levels=(False, True)), True),
    ("RQVAE without attention", lambda: hf_vq.RQVAE(**RQVAE, attention_levels=None), True),
    ("DVAE", lambda: hf_vq.DVAE(1, (8, 8, 12), 1, 20, 6), True),
    ("DVAE ema", lambda: hf_vq.DVAE(1, (8, 8, 12), 1, 20, 6, "ema", reconstruction_loss="mse"), True),
    ("MAGVIT2Model", lambda: hf_vq.MAGVIT2Model(1, (8, 8), 1, norm_num_groups=4, codebook_size=64), True),
    ("ViTVQModel", lambda: hf_vq.ViTVQModel(1, 16, 4, **_both(TRANSFORMER), codebook_size=20, codebook_dim=6), False),
]  # fmt: skip


def _both(options):
    return {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in options.items()}


# Priors: name, how to make it

CLASSES = {"num_classes": 3, "class_dropout_prob": 0.3}
COMMON = {"codebook_size": 11, "code_shape": (3, 4)}
LLAMA = {**COMMON, "hidden_size": 16, "num_layers": 2, "num_heads": 4, "intermediate_size": 24}
PIXELCNN = {**COMMON, "hidden_channels": 8, "num_layers": 3, "head_channels": [12], "dropout": 0.2}
PIXELSNAIL = {
    **COMMON, "hidden_channels": 16, "residual_channels": 6, "num_blocks": 2, "num_residual_layers": 2,
    "num_attention_heads": 4, "dropout": 0.2,
}  # fmt: skip
GPT = {**COMMON, "hidden_size": 12, "num_layers": 2, "num_heads": 3, "block_size": 15}
MASKED = {**COMMON, "hidden_size": 12, "num_layers": 2, "num_heads": 3}
DIFFUSION = {**MASKED, "num_timesteps": 12}
RQ = {
    "codebook_size": 11, "num_levels": 3, "block_size": 8, "hidden_size": 12, "num_spatial_layers": 2,
    "num_spatial_heads": 3, "num_depth_layers": 1, "num_depth_heads": 2, "code_vector_dim": 5, "code_shape": (3, 2, 3),
}  # fmt: skip
WAVENET = {
    "code_shape": (23,), "residual_channels": 8, "gate_channels": 12, "skip_channels": 10, "num_layers": 4,
    "global_channels": 5, "num_classes": 3, "num_speakers": 2,
}  # fmt: skip
LOCAL = {"local_channels": 4, "upsample_scales": [3, 2], "upsample_context": 1}


def _made(prior_class, **options):
    return lambda: prior_class(prior_class.config_class(**options))


def _rq(**options):
    def make():
        prior = hf_vq.RQTransformer(hf_vq.RQTransformerConfig(**{**RQ, **options}))
        prior.set_code_vectors(torch.randn_like(prior.code_vectors))
        return prior

    return make


PRIORS = [
    ("PixelCNN gated", _made(hf_vq.PixelCNN, **PIXELCNN, **CLASSES)),
    ("PixelCNN plain", _made(hf_vq.PixelCNN, **PIXELCNN, gated=False, one_hot=True)),
    ("PixelSNAIL top", _made(hf_vq.PixelSNAIL, **PIXELSNAIL, **CLASSES)),
    (
        "PixelSNAIL bottom",
        _made(hf_vq.PixelSNAIL, **PIXELSNAIL, **CLASSES, attention=False, context_codebook_sizes=(7, 9)),
    ),
    (
        "TransformerPrior",
        _made(
            hf_vq.TransformerPrior, **LLAMA, **CLASSES, num_key_value_heads=2, attention_dropout=0.2,
            num_text_tokens=7, prompt_length=4, prompt_dropout_prob=0.3,
        ),
    ),
    ("TransformerPrior alone", _made(hf_vq.TransformerPrior, **LLAMA)),
    (
        "TransformerPrior levels",
        _made(hf_vq.TransformerPrior, **{**LLAMA, "code_shape": (3, 2, 2)}, num_levels=3, **CLASSES),
    ),
    ("DelayedTransformerPrior", _made(hf_vq.DelayedTransformerPrior, **LLAMA, num_levels=3, **CLASSES)),
    ("DiscreteDiffusionPrior", _made(hf_vq.DiscreteDiffusionPrior, **DIFFUSION, **CLASSES, dropout=0.2)),
    (
        "DiscreteDiffusionPrior text",
        _made(
            hf_vq.DiscreteDiffusionPrior, **DIFFUSION, cross_attention_dim=5, text_length=4, text_dropout_prob=0.3,
            null_text="learned", transition="mask", schedule="cosine",
        ),
    ),
    ("GPTPrior", _made(hf_vq.GPTPrior, **GPT, **CLASSES)),
    ("GPTPrior shared start", _made(hf_vq.GPTPrior, **GPT, shared_start=True, start_token=12)),
    ("LlamaGenPrior", _made(hf_vq.LlamaGenPrior, **LLAMA, **CLASSES, num_key_value_heads=2)),
    ("MaskedPrior", _made(hf_vq.MaskedPrior, **MASKED, **CLASSES, dropout=0.2)),
    (
        "MaskedPrior text",
        _made(
            hf_vq.MaskedPrior, **MASKED, cross_attention_dim=5, text_length=4, text_dropout_prob=0.3,
            null_text="learned", context_codebook_sizes=(7,),
        ),
    ),
    ("RQTransformer classes", _rq(**CLASSES)),
    ("RQTransformer prompts", _rq(prompt_vocab_size=7, prompt_length=4)),
    ("RQTransformer embeddings", _made(
        hf_vq.RQTransformer, **RQ, spatial_inputs="embeddings", depth_inputs="embeddings", shared_embeddings=False,
    )),
    ("WaveNet", _made(hf_vq.WaveNet, codebook_size=11, **WAVENET, **LOCAL, class_dropout_prob=0.3, dropout=0.2)),
    ("WaveNet alone", _made(hf_vq.WaveNet, codebook_size=11, code_shape=(23,), num_layers=4)),
    ("MixtureWaveNet", _made(hf_vq.MixtureWaveNet, codebook_size=17, num_mixtures=2, **WAVENET, **LOCAL)),
]  # fmt: skip


def make_conditions(prior, batch_size, code_shape=None):
    """Random conditions of every kind that a prior takes."""
    config, made = prior.config, {}
    shape = tuple(code_shape or config.code_shape)
    if config.num_classes:
        made["class_labels"] = torch.randint(config.num_classes, (batch_size,))
    words = getattr(config, "num_text_tokens", 0)
    if words:
        made["prompt_ids"] = torch.randint(-1, words, (batch_size, config.prompt_length))
    words = getattr(config, "prompt_vocab_size", 0)
    if words:
        made["prompt_ids"] = torch.randint(words, (batch_size, config.prompt_length - 1))
    if getattr(config, "num_speakers", 0):
        made["speaker_labels"] = torch.randint(config.num_speakers, (batch_size,))
    if getattr(config, "local_channels", 0):
        frames = shape[0] if prior.upsampler is None else prior.upsampler.num_frames(shape[0])
        made["local_features"] = torch.randn(batch_size, config.local_channels, frames)
    width = getattr(config, "cross_attention_dim", 0)
    if width:
        made["encoder_hidden_states"] = torch.randn(batch_size, config.text_length, width)
    sizes = getattr(config, "context_codebook_sizes", None) or ()
    if sizes:
        grids = [tuple(-(-side // 2**step) for side in shape) for step in range(len(sizes), 0, -1)]
        made["context_codes"] = tuple(
            torch.randint(size, (batch_size, *grid)) for size, grid in zip(sizes, grids, strict=True)
        )
    return made


# Pipelines


def small_hierarchy():
    torch.manual_seed(0)
    return hf_vq.VQVAE2(1, 8, 1, 4, 11, 6)


def small_pipeline(hierarchy=None):
    """Of a VQVAE and a TransformerPrior, or of a hierarchy and two PixelSNAILs, for images of 16x16 pixels."""
    torch.manual_seed(0)
    names = ["zero", "one", "two"]
    if hierarchy is None:
        autoencoder = hf_vq.VQVAE(1, 16, codebook_size=11, codebook_dim=6).eval()
        prior = hf_vq.TransformerPrior(hf_vq.TransformerPriorConfig(**{**LLAMA, "code_shape": (4, 4)}, **CLASSES))
        return hf_vq.VQPipeline(autoencoder, prior.eval(), names)
    top = _made(hf_vq.PixelSNAIL, **{**PIXELSNAIL, "code_shape": (2, 2)}, **CLASSES)()
    bottom = _made(hf_vq.PixelSNAIL, **{**PIXELSNAIL, "code_shape": (4, 4)}, **CLASSES, context_codebook_sizes=(11,))()
    return hf_vq.VQVAE2Pipeline(hierarchy.eval(), top.eval(), bottom.eval(), class_names=names)


# Checkpoints of others, as fixtures: source, first stage

_RQ_STAGE, _DIFFUSERS = "rqvae/stage1", "diffusers_vqmodel"
CONVERTED = [
    *((source, None) for source in (
        "taming_vqgan/last.ckpt", "taming_gumbel/last.ckpt", "taming_net2net/last.ckpt",
        "taming_net2net_uncond/last.ckpt", "llamagen_vq/vq_model.pt", "llamagen_gpt_c2i/gpt_model.pt",
        "ibq/model.ckpt", "open_magvit2/model.ckpt", _RQ_STAGE, "dalle_dvae", "vqvae2/vqvae.pt",
        "vqvae2/pixelsnail_top.pt", "vqvae2/pixelsnail_bottom.pt", "ritheshkumar_vqvae/best.pt",
        "ritheshkumar_vqvae/prior.pt", "vitvqgan",
    )),
    *((f"keras_vqvae_example/{model}_{end}", None) for model in ("vqvae", "pixelcnn") for end in (
        "keras2.h5", "keras2.weights.h5", "keras3.weights.h5", "keras3.keras",
    )),
    *((f"wavenet_r9y9/{case}/checkpoint.pth", None) for case in (
        "onehot_global_upsample", "onehot_local", "scalar_mixture",
    )),
    *((f"sonnet_vqvae/{case}/variables.npz", None) for case in ("model_ema", "model_vq")),
    *((f"{_DIFFUSERS}/{case}", None) for case in (
        "attention_blocks", "legacy_attention_bin", "lookup_amused", "plain_f4", "spatial_norm_movq",
    )),
    ("rqvae/stage2", _RQ_STAGE),
    ("rqvae/stage2_text", _RQ_STAGE),
]  # fmt: skip


class Rows(torch.utils.data.Dataset):
    """A data set of the rows of tensors or of tuples of them, {name: (rows, ...)}, with attributes."""

    def __init__(self, columns, **attributes):
        self.columns = columns
        vars(self).update(attributes)

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index):
        return {
            name: tuple(grid[index] for grid in column) if isinstance(column, tuple) else column[index]
            for name, column in self.columns.items()
        }
