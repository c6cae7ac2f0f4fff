"""The folder of diffusers' VQDiffusionPipeline; its text encoder and tokenizer stay as they are."""

from typing import Any

import torch
import transformers

from hf_vq.converters.base import PipelinePlan, Plan, Source, add_format
from hf_vq.converters.diffusers import plan_diffusers
from hf_vq.converters.diffusers_vq_diffusion import ORIGIN, is_transformer, plan_transformer
from hf_vq.converters.shapes import check_agrees, shape_of
from hf_vq.pipelines import VQTextToImagePipeline
from hf_vq.priors import DiscreteDiffusionScheduler

AUTOENCODER, TRANSFORMER = "vqvae", "transformer"
NULL_TEXT = "learned_classifier_free_sampling_embeddings"
NULL_CHANCE = 0.1  # how often the authors of VQ-Diffusion leave a text out, where they learn what stands for it
NOISE = ("alpha_cum_start", "alpha_cum_end", "gamma_cum_start", "gamma_cum_end")
TEXT_PARTS: dict[str, Any] = {  # of transformers: what each must be
    "text_encoder": transformers.PreTrainedModel,
    "tokenizer": transformers.PreTrainedTokenizerBase,
}


def _is_pipeline(source):
    return source.starts(f"{AUTOENCODER}.encoder.") and is_transformer(source.part(f"{TRANSFORMER}."))


@add_format("diffusers-vqdiffusion", ORIGIN, _is_pipeline)
def plan_pipeline(source: Source) -> PipelinePlan:
    scheduler = _read_scheduler(source)
    options = {name: scheduler.config[name] for name in NOISE}
    learned = bool(source.tensors.get(f"{NULL_TEXT}.embeddings", torch.zeros(0)).numel())
    check_agrees(source.config[NULL_TEXT], f"{NULL_TEXT}.", learnable=learned)
    if learned:
        length, width = shape_of(source.tensors, f"{NULL_TEXT}.embeddings", 2)
        check_agrees(source.config[NULL_TEXT], f"{NULL_TEXT}.", length=length, hidden_size=width)
        options |= {"null_text": "learned", "text_length": length, "text_dropout_prob": NULL_CHANCE}
    prior = _within(source, TRANSFORMER, lambda part: plan_transformer(part, **options))

    def weight(name: str, take: Any) -> Any:
        return take(f"{NULL_TEXT}.embeddings") if name == "null_text" else prior.weight(name, take)

    parts = {
        "autoencoder": _within(source, AUTOENCODER, plan_diffusers),
        "prior": Plan(prior.build, weight),
    }
    texts = {name: _load_text_part(source, name) for name in TEXT_PARTS}

    def build(**models: Any) -> VQTextToImagePipeline:
        return VQTextToImagePipeline(**models, **texts, scheduler=scheduler, normalize_text_embeddings=True)

    return PipelinePlan(build, parts, () if learned else (NULL_TEXT,))


def _within(source, name, plan):
    """The Plan of a part, whose tensors have its name and a dot before them in the source."""
    part = source.part(f"{name}.")
    part.config, part.config_path = source.config[name], source.path / name / "config.json"
    found = plan(part)
    return Plan(found.build, lambda ours, take: found.weight(ours, lambda theirs: take(f"{name}.{theirs}")))


def _read_scheduler(source):
    told = source.config["scheduler"]
    if told.get("_class_name") != "VQDiffusionScheduler":
        raise ValueError(f"scheduler is a {told.get('_class_name')!r}: only 'VQDiffusionScheduler' is supported")
    known = ("num_vec_classes", "num_train_timesteps", *NOISE)
    scheduler = DiscreteDiffusionScheduler(**{name: told[name] for name in known if name in told})
    states = shape_of(source.tensors, f"{TRANSFORMER}.latent_image_embedding.emb.weight", 2)[0]
    times = shape_of(source.tensors, f"{TRANSFORMER}.transformer_blocks.0.norm1.emb.weight", 2)[0]
    check_agrees(scheduler.config, "scheduler.", num_vec_classes=states, num_train_timesteps=times)
    return scheduler


def _load_text_part(source, name):
    """Text encoder or tokenizer, by the class of transformers that the index names."""
    folder, (library, class_name) = source.path / name, source.config["model_index"].get(name, (None, None))
    found: Any = getattr(transformers, str(class_name), None)
    kind, is_class = TEXT_PARTS[name], isinstance(found, type)
    if library != "transformers" or not is_class or not issubclass(found, kind):
        raise ValueError(f"{name} is {library}.{class_name}: it must be a {kind.__name__} of transformers")
    if not folder.is_dir():
        raise ValueError(f"{source.path} lacks the folder {name!r} of its pipeline")
    if kind is not transformers.PreTrainedModel:
        return found.from_pretrained(folder)
    model, told = found.from_pretrained(folder, output_loading_info=True)
    if told["missing_keys"]:
        raise ValueError(f"{folder} lacks the tensor {min(told['missing_keys'])!r} of {class_name}")
    return model.eval()
