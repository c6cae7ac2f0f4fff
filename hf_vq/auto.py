"""The right class for a folder or repository, and what transformers and diffusers must know of registered classes."""

import functools
from typing import Any

from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_vq.autoencoders import VQVAE
from hf_vq.autoencoders.pretrained import make_face
from hf_vq.hub import PRIOR_SECTION
from hf_vq.priors import TransformerPrior, TransformerPriorConfig
from hf_vq.registry import AUTOENCODERS, PIPELINES, PRIORS, subscribe
from hf_vq.saved import HUB_ARGUMENTS, below, check_folder, how_to_load, saved_name

HINT = "import the package that registers it first"


class AutoVQModel:
    """Loads any registered autoencoder, ours or a user's, or a stock VQModel, as the class it was saved from."""

    @staticmethod
    def from_pretrained(pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """The autoencoder of a folder or repository; keyword arguments as in diffusers' `from_pretrained`.

        Raises:
            OSError: no config, or no weights there.
            ValueError: the config names a class that is not registered.
        """
        path, kwargs = below(pretrained_model_name_or_path, kwargs)
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        check_folder(path, kwargs.get("subfolder"), AutoVQModel)
        config = VQVAE.load_config(path, **hub)
        name = config.get("_class_name")
        if name not in AUTOENCODERS:
            raise ValueError(
                f"{path} holds {saved_name(config)!r}, which is none of {sorted(AUTOENCODERS)}; "
                f"{HINT if name else how_to_load(config)}"
            )
        return AUTOENCODERS[name].from_pretrained(path, **kwargs)


class AutoVQPrior:
    """Loads any registered prior, ours or a user's, as the class it was saved from."""

    @staticmethod
    def from_pretrained(pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """The prior of a folder or repository; keyword arguments as in transformers' `from_pretrained`.

        Raises:
            OSError: no config, or no weights there.
            ValueError: the config names a model that is no registered prior.
        """
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        check_folder(pretrained_model_name_or_path, kwargs.get("subfolder"), AutoVQPrior)
        config, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **hub)
        if PRIOR_SECTION in config:
            return TransformerPrior.from_pretrained(pretrained_model_name_or_path, **kwargs)
        classes = {prior_class.config_class.model_type: prior_class for prior_class in PRIORS.values()}
        del classes[TransformerPriorConfig.model_type]  # a Llama without that section
        if config.get("model_type") not in classes:
            raise ValueError(
                f"{pretrained_model_name_or_path} holds {saved_name(config)!r}, which is none of "
                f"{sorted(classes)}; {how_to_load(config) if '_class_name' in config else HINT}"
            )
        return classes[config["model_type"]].from_pretrained(pretrained_model_name_or_path, **kwargs)


def _know_autoencoder(autoencoder_class: type) -> None:
    config_class, face_class = make_face(autoencoder_class)
    _know_model(config_class, face_class)


def _know_prior(prior_class: Any) -> None:
    if prior_class is TransformerPrior:  # "llama" stays transformers' own
        AutoModel.register(TransformerPriorConfig, TransformerPrior, exist_ok=True)
        AutoModelForCausalLM.register(TransformerPriorConfig, TransformerPrior, exist_ok=True)
    else:
        _know_model(prior_class.config_class, prior_class)


def _know_model(config_class: type[PreTrainedConfig], model_class: type[PreTrainedModel]) -> None:
    """Make `AutoConfig` and `AutoModel` find a class; a ValueError where another one has its `model_type`."""
    model_type = config_class.model_type
    # this mapping's `get` is dict's own, and finds nothing
    taken = CONFIG_MAPPING[model_type] if model_type in CONFIG_MAPPING else config_class  # noqa: SIM401
    if (taken.__module__, taken.__name__) != (config_class.__module__, config_class.__name__):
        raise ValueError(
            f"model_type={model_type!r} of {config_class.__module__}.{config_class.__name__} is taken by "
            f"{taken.__module__}.{taken.__name__}"
        )
    AutoConfig.register(model_type, config_class, exist_ok=True)
    AutoModel.register(config_class, model_class, exist_ok=True)


def _trust_registered_pipelines() -> None:
    """Make stock `DiffusionPipeline.from_pretrained` load what it refuses to without trust, where the class is here.

    A saved index names a file of its folder, which stock would run. The registered class of the same name runs nothing
    of the folder, so that nobody need be trusted, as `AutoModel` does it with registered models.
    """
    stock = DiffusionPipeline.from_pretrained.__func__  # type: ignore[attr-defined]

    @functools.wraps(stock)
    def from_pretrained(cls: Any, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        try:
            return stock(cls, pretrained_model_name_or_path, **kwargs)
        except ValueError as error:
            if cls is not DiffusionPipeline or "trust_remote_code" not in str(error):
                raise
            hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
            name = saved_name(cls.load_config(pretrained_model_name_or_path, **hub))
            if name not in PIPELINES:
                raise
        return PIPELINES[name].from_pretrained(pretrained_model_name_or_path, **kwargs)

    DiffusionPipeline.from_pretrained = classmethod(from_pretrained)  # type: ignore[assignment,method-assign]


def know_registered_classes() -> None:
    """Make transformers and diffusers know all registered classes, and those that will be; `import hf_vq` calls it."""
    subscribe("autoencoder", _know_autoencoder)
    subscribe("prior", _know_prior)
    _trust_registered_pipelines()
    verbs = ["save_pretrained", "from_pretrained"]
    LOADABLE_CLASSES.setdefault(
        "hf_vq", {base.__name__: verbs for base in (ModelMixin, PreTrainedModel, SchedulerMixin)}
    )
