"""The right class for a folder or repository, and registration with transformers and diffusers."""

from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig

from hf_vq.autoencoders import AUTOENCODERS
from hf_vq.autoencoders.pretrained import FACES
from hf_vq.hub import PRIOR_SECTION
from hf_vq.priors import TransformerPrior, TransformerPriorConfig
from hf_vq.registry import PRIORS

HUB_ARGUMENTS = (
    "cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token",
)  # fmt: skip


class AutoVQModel:
    """Loads any autoencoder of ours, or a stock VQModel, as the class it was saved from."""

    @staticmethod
    def from_pretrained(pretrained_model_name_or_path, **kwargs):
        """The autoencoder of a folder or repository; keyword arguments as in diffusers' `from_pretrained`.

        Raises:
            OSError: no config, or no weights there.
            ValueError: the config names a class that is no autoencoder of ours.
        """
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        config = AUTOENCODERS["VQVAE"].load_config(pretrained_model_name_or_path, **hub)
        name = config.get("_class_name")
        if name not in AUTOENCODERS:
            raise ValueError(
                f"{pretrained_model_name_or_path} holds {name!r}, which is none of {sorted(AUTOENCODERS)}"
            )
        return AUTOENCODERS[name].from_pretrained(pretrained_model_name_or_path, **kwargs)


class AutoVQPrior:
    """Loads any prior of ours, or another of `hf_vq.registry.PRIORS`, as the class it was saved from."""

    @staticmethod
    def from_pretrained(pretrained_model_name_or_path, **kwargs):
        """The prior of a folder or repository; keyword arguments as in transformers' `from_pretrained`.

        Raises:
            OSError: no config, or no weights there.
            ValueError: the config names a model that is no prior of ours.
        """
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        config, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **hub)
        if PRIOR_SECTION in config:
            return TransformerPrior.from_pretrained(pretrained_model_name_or_path, **kwargs)
        classes = {config_class.model_type: prior_class for config_class, prior_class in PRIORS.values()}
        del classes[TransformerPriorConfig.model_type]  # a Llama without that section
        if config.get("model_type") not in classes:
            raise ValueError(
                f"{pretrained_model_name_or_path} holds {config.get('model_type')!r}, which is none of "
                f"{sorted(classes)}"
            )
        return classes[config["model_type"]].from_pretrained(pretrained_model_name_or_path, **kwargs)


def register():
    """Makes transformers and diffusers know the classes of all tables.

    `import hf_vq` calls it; call it again after putting a class into a table.
    """
    for config_class, face_class in FACES.values():
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModel.register(config_class, face_class, exist_ok=True)
    for config_class, prior_class in PRIORS.values():
        if config_class is not TransformerPriorConfig:  # "llama" stays transformers' own
            AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModel.register(config_class, prior_class, exist_ok=True)
    AutoModelForCausalLM.register(TransformerPriorConfig, TransformerPrior, exist_ok=True)
    verbs = ["save_pretrained", "from_pretrained"]
    LOADABLE_CLASSES.setdefault("hf_vq", {"ModelMixin": verbs, "PreTrainedModel": verbs})
