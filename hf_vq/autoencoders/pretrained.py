"""Every autoencoder's transformers face: a config with named fields and a PreTrainedModel around the same module."""

import functools
import inspect
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME

from hf_vq.hub import HubConfigMixin, PushMixin
from hf_vq.registry import AUTOENCODERS
from hf_vq.renaming import warn_renamed, with_new_names
from hf_vq.weights import CheckedWeights, check_save_options, checked_files, missing_names

CHECKPOINT = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-\d+")  # a folder of transformers' Trainer
LOSSES = ("reconstruction_loss", "quantizer_loss", "commit_loss")  # scalars of an output, beside `loss`


class AutoencoderConfig(HubConfigMixin, PreTrainedConfig):
    """Base of the configs: the fields are the arguments of the autoencoder's constructor.

    Class attributes:
        autoencoder_class: the ModelMixin that the fields build.
    """

    autoencoder_class: ClassVar[Any] = None
    keys_to_ignore_at_inference: ClassVar[list[str]] = [*LOSSES, "losses"]  # `Trainer.predict` gathers rows alone

    def __post_init__(self, **kwargs: Any) -> None:
        renamed = self.autoencoder_class.renamed_options() if self.autoencoder_class else {}
        given = with_new_names(kwargs, renamed, type(self).__name__)
        for old, name in renamed.items():
            if name in given:
                if getattr(self, name) != getattr(type(self), name):
                    raise ValueError(f"{type(self).__name__}: {old} and {name} are one option, got both")
                setattr(self, name, given.pop(name))
        if self.autoencoder_class and hasattr(self, "quantizer_config"):
            fields = {
                name: getattr(self, name) for name in ("quantizer_type", "quantizer_config") if hasattr(self, name)
            }
            written = self.autoencoder_class.with_written_options(fields, earlier=False)
            self.quantizer_config = written["quantizer_config"]
        super().__post_init__(**given)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers; the dict and the keywords over it may have old names, but no option both."""
        renamed = cls.autoencoder_class.renamed_options() if cls.autoencoder_class else {}
        config_dict = with_new_names(config_dict, renamed, cls.__name__)
        if cls.autoencoder_class:
            config_dict = cls.autoencoder_class.as_new_config(config_dict)
        return super().from_dict(config_dict, **with_new_names(kwargs, renamed, cls.__name__))

    def update(self, config_dict: dict[str, Any]) -> None:
        """As transformers, with the same rule for names."""
        renamed = self.autoencoder_class.renamed_options() if self.autoencoder_class else {}
        super().update(with_new_names(config_dict, renamed, type(self).__name__))

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(self._new_name(name) or name, value)

    def __getattr__(self, name: str) -> Any:  # where there is no field of that name
        new = type(self)._new_name(name)
        if new is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self, new)

    @classmethod
    def _new_name(cls, name: str) -> str | None:
        """What an old name of an option is called now, which it says once; None for any other name."""
        new = cls.autoencoder_class.renamed_options().get(name) if cls.autoencoder_class else None
        if new is not None:
            warn_renamed(cls.__name__, name, new)
        return new

    def autoencoder_arguments(self) -> dict[str, Any]:
        """The constructor's arguments, as the fields have them."""
        names = list(inspect.signature(self.autoencoder_class.__init__).parameters)[1:]
        return {name: getattr(self, name) for name in names}


class AutoencoderForAutoModel(CheckedWeights, PushMixin, PreTrainedModel):  # type: ignore[misc]  # our push writes the card too
    """An autoencoder as a transformers model; `autoencoder` is the diffusers ModelMixin itself.

    It loads and saves the same folder: `config.json` and `diffusion_pytorch_model.safetensors`.
    """

    base_model_prefix = "autoencoder"
    main_input_name = "sample"
    _keep_in_fp32_modules_strict = ["quantize", "quantizer", "quantizers"]

    def __init__(self, config: Any, autoencoder: Any = None):
        super().__init__(config)
        self.autoencoder = autoencoder or config.autoencoder_class(**config.autoencoder_arguments())
        self.integer_buffers = {
            name: buffer.dtype for name, buffer in self.autoencoder.named_buffers() if not buffer.is_floating_point()
        }
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        path, base = pretrained_model_name_or_path, cast(Any, super())
        with checked_files(path, kwargs.get("subfolder")):
            loaded: Any = base.from_pretrained(path, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        for name, dtype in model.integer_buffers.items():  # `dtype=` makes float32 of those in a quantizer
            owner, _, leaf = name.rpartition(".")
            module = model.autoencoder.get_submodule(owner)
            setattr(module, leaf, getattr(module, leaf).to(dtype))
        missing = [name.removeprefix("autoencoder.") for name in missing_names(info)]
        model.autoencoder.check_loaded(missing, pretrained_model_name_or_path, unsaved=True)
        model.autoencoder.load_processor(pretrained_model_name_or_path, **kwargs)
        return (model, info) if output_loading_info else model

    @classmethod
    def from_autoencoder(cls, autoencoder: Any) -> "AutoencoderForAutoModel":
        """The face of an autoencoder that exists: the same module, no copy."""
        make_config: Any = cls.config_class
        fields = make_config().autoencoder_arguments()
        return cls(make_config(**{name: autoencoder.config[name] for name in fields}), autoencoder)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        check_save_options(save_directory, kwargs, PreTrainedModel.save_pretrained)
        for name in ("state_dict", "save_peft_format", "save_original_format"):  # Trainer gives the first, the same
            kwargs.pop(name, None)
        self.autoencoder.save_pretrained(save_directory, *args, **kwargs)
        weights = Path(save_directory, SAFETENSORS_WEIGHTS_NAME)
        if CHECKPOINT.fullmatch(Path(save_directory).name) and weights.is_file():
            shown = weights.with_name(SAFE_WEIGHTS_NAME)  # by which transformers' Trainer resumes and finds the best
            shown.unlink(missing_ok=True)
            os.link(weights, shown)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As torch; the names may also be those of the saved folder, which are the autoencoder's own."""
        prefix = f"{self.base_model_prefix}."
        if state_dict and not any(name.startswith(prefix) for name in state_dict):
            state_dict = {prefix + name: tensor for name, tensor in state_dict.items()}
        return super().load_state_dict(state_dict, *args, **kwargs)

    def _init_weights(self, module: Any) -> None:
        """The autoencoder initialised itself when it was built."""

    def forward(
        self,
        sample: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        return_loss: bool = True,
    ) -> Any:
        """The autoencoder's forward, as `transformers.Trainer` calls models: samples are their own targets.

        Args:
            sample: (batch, channels, *space) in [-1, 1].
            pixel_values: the same by the name that image data sets of transformers have for it; one of the two.
            padding_mask: (batch, *space) bool, True = real.
            return_loss: False leaves the losses out.

        Raises:
            ValueError: both of `sample` and `pixel_values`, or neither.
        """
        if (sample is None) == (pixel_values is None):
            raise ValueError("forward takes either sample or pixel_values")
        output = self.autoencoder(pixel_values if sample is None else sample, padding_mask=padding_mask)
        if return_loss:
            return output
        left_out = {"loss", *self.config.keys_to_ignore_at_inference}
        return type(output)(**{name: value for name, value in output.items() if name not in left_out})

    def encode(self, sample: torch.Tensor) -> Any:
        return self.autoencoder.encode(sample)

    def decode(self, latents: Any) -> Any:
        return self.autoencoder.decode(latents)

    def tokenize(self, sample: Any, padding_mask: torch.Tensor | None = None, **options: Any) -> Any:
        return self.autoencoder.tokenize(sample, padding_mask, **options)

    def detokenize(self, codes: Any, **options: Any) -> Any:
        return self.autoencoder.detokenize(codes, **options)


@functools.cache  # a class has one face
def make_face(autoencoder_class: Any) -> tuple[Any, Any]:
    """Config class and model class of an autoencoder class, with the constructor's arguments as fields.

    Returns:
        `<Name>Config` and `<Name>ForAutoModel`.
    """
    name, parameters = (
        autoencoder_class.__name__,
        inspect.signature(autoencoder_class.__init__, eval_str=True).parameters,
    )
    fields = {key: parameter for key, parameter in parameters.items() if key != "self"}
    types = {key: Any if each.annotation is each.empty else each.annotation for key, each in fields.items()}
    config_class = type(
        f"{name}Config",
        (AutoencoderConfig,),
        {
            "__module__": __name__,
            "__doc__": f"Config of `{name}ForAutoModel`: the arguments of `{name}`.",
            "__annotations__": types,
            "model_type": autoencoder_class.face_type,
            "autoencoder_class": autoencoder_class,
            **{key: parameter.default for key, parameter in fields.items()},
        },
    )
    model_class = type(
        f"{name}ForAutoModel",
        (AutoencoderForAutoModel,),
        {"__module__": __name__, "__doc__": f"`{name}` as a transformers model.", "config_class": config_class},
    )
    return config_class, model_class


def __getattr__(name: str) -> Any:
    """`<Name>Config` and `<Name>ForAutoModel` of every registered autoencoder: pickle, too, looks for them here."""
    for suffix, index in (("Config", 0), ("ForAutoModel", 1)):
        if name.endswith(suffix) and (found := AUTOENCODERS.get(name.removesuffix(suffix))):
            return make_face(found)[index]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
