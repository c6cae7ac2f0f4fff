"""Saved folders of autoencoders, which diffusers and transformers both read."""

import inspect
import json
import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
from diffusers.configuration_utils import FrozenDict
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME, _add_variant
from huggingface_hub import split_torch_state_dict_into_shards

from hf_vq.hosts import ModelHost
from hf_vq.hub import PROCESSOR, PushMixin, auto_map, write_shim
from hf_vq.quantizers import Quantizer
from hf_vq.quantizers.registry import with_changed_options, without_earlier_options
from hf_vq.registry import MODALITIES
from hf_vq.renaming import warn_renamed, warn_user, with_new_names
from hf_vq.single_file import SingleFileMixin
from hf_vq.version import __version__

SAVED_IN_CONFIGS = ("_class_name", "_diffusers_version", "_hf_vq_version", "transformers_version")  # one at least
PROCESSOR_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


class RenamedConfig(FrozenDict):
    """A config of diffusers that is also read by old names of options; each says once what it is called now."""

    def __init__(self, values: Any = (), renamed: dict[str, str] | None = None, owner: str = ""):
        super().__init__(values)
        self._renamed, self._owner = renamed or {}, owner

    def __getattr__(self, name: str) -> Any:
        new = self.__dict__.get("_renamed", {}).get(name)
        if new is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        warn_renamed(self._owner, name, new)
        return self[new]

    def __missing__(self, name: str) -> Any:
        if name not in self.__dict__.get("_renamed", {}):
            raise KeyError(name)
        return getattr(self, name)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self._renamed else super().get(name, default)


class SavedFolder(SingleFileMixin, PushMixin, ModelHost):
    """Loading and saving of an autoencoder; stands before `ModelMixin, ConfigMixin` among the bases.

    Class attributes:
        face_type: the `model_type` under which transformers finds the saved folder; of a class that does not say it,
            "hf_vq_" and its name.
        modality: name of what its samples are, a key of `hf_vq.registry.MODALITIES`; None: tensors.
    """

    face_type: str | None = None
    modality: str | None = None
    _processor: Any = None
    in_channels: int
    _keep_in_fp32_modules = ["quantize", "quantizer"]
    _weights_name = SAFETENSORS_WEIGHTS_NAME

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "face_type" not in vars(cls):
            cls.face_type = f"hf_vq_{cls.__name__.lower()}"

    def finish_loading(self, missing: list[str]) -> None:
        """Called with the names of the tensors that a loaded checkpoint lacked: quantizers derive theirs."""
        for prefix, module in self.named_modules():
            if isinstance(module, Quantizer):
                start = prefix + "."
                module.finish_loading([name.removeprefix(start) for name in missing if name.startswith(start)])

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        model.finish_loading(info["missing_keys"])
        model.load_processor(pretrained_model_name_or_path, **kwargs)
        return (model, info) if wants_info else model

    @property
    def processor(self) -> Any:
        """What makes samples of pictures or sounds and shows them again; None for tensors.

        It is saved with the model once it was set, as training by the command line does; before, it takes things as
        they come.
        """
        if self._processor is None and self.modality is not None:
            return MODALITIES[self.modality].processor(channels=self.in_channels)
        return self._processor

    @processor.setter
    def processor(self, processor: Any) -> Any:
        channels = getattr(processor, "channels", None)
        if channels is not None and channels != self.in_channels:
            raise ValueError(f"processor has channels={channels}, but the model takes in_channels={self.in_channels}")
        self._processor = processor

    def load_processor(self, path_or_repo: str | Path, **kwargs: Any) -> None:
        """Takes the processor of a folder or repository, where it has one; arguments as of `from_pretrained`."""
        if self.modality is not None:
            hub = {name: kwargs[name] for name in PROCESSOR_ARGUMENTS if kwargs.get(name) is not None}
            try:
                self.processor = MODALITIES[self.modality].processor.from_pretrained(path_or_repo, **hub)
            except ValueError as error:
                warn_user(f"{path_or_repo}: {PROCESSOR} is of another model: {error}")

    @classmethod
    def renamed_options(cls) -> dict[str, str]:
        """New names of the constructor's arguments by their old ones."""
        return getattr(cls.__init__, "renamed_options", {})

    @classmethod
    def as_new_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """A config with all options of the quantizer whose defaults have changed: a saved one means the earlier."""
        saved = any(name in config for name in SAVED_IN_CONFIGS)
        return cls.with_written_options(config, earlier=saved)

    @classmethod
    def with_written_options(cls, config: dict[str, Any], earlier: bool) -> dict[str, Any]:
        """A config with the options of the quantizer whose defaults have changed, at the earlier or present one."""
        return cls._with_quantizer_config(config, partial(with_changed_options, earlier=earlier))

    @classmethod
    def as_saved_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """A config as folders hold it: without options of the quantizer that are at an earlier version's default."""
        return cls._with_quantizer_config(config, without_earlier_options)

    @classmethod
    def _with_quantizer_config(cls, config, change):
        option = inspect.signature(cls.__init__).parameters.get("quantizer_config")
        if option is None:
            return config
        given = config.get("quantizer_config")
        changed = change(config.get("quantizer_type", cls._default_quantizer_type()), given)
        return config if changed == given else {**config, "quantizer_config": changed}

    @classmethod
    def _default_quantizer_type(cls):
        option = inspect.signature(cls.__init__).parameters.get("quantizer_type")
        return None if option is None else option.default

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> tuple[dict, dict, dict]:
        """As diffusers; a folder may have options under their old names."""
        config_dict, kwargs = (
            with_new_names(values, cls.renamed_options(), cls.__name__) for values in (config_dict, kwargs)
        )
        config_dict = cls.as_new_config(config_dict)
        return super().extract_init_dict(config_dict, **kwargs)

    def register_to_config(self, **kwargs: Any) -> None:
        renamed, owner = self.renamed_options(), type(self).__name__
        kwargs = with_new_names(kwargs, renamed, owner)
        if "quantizer_config" in kwargs:
            kwargs = self.with_written_options(kwargs, earlier=False)
        super().register_to_config(**kwargs)
        if renamed:
            vars(self)["_internal_dict"] = RenamedConfig(self.config, renamed, owner)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        max_shard_size: int | str = "10GB",
        variant: str | None = None,
        **kwargs: Any,
    ) -> None:
        """As diffusers, but a file where the folder should be is an error."""
        if os.path.isfile(save_directory):
            raise NotADirectoryError(f"save_directory must be a folder, but {save_directory} is a file")
        shards = split_torch_state_dict_into_shards(self.state_dict(), max_shard_size=max_shard_size)
        name = SAFETENSORS_WEIGHTS_NAME + (".index.json" if shards.is_sharded else "")
        self._weights_name = _add_variant(name, variant)
        super().save_pretrained(save_directory, max_shard_size=max_shard_size, variant=variant, **kwargs)

    def save_config(self, save_directory: str | Path, **kwargs: Any) -> None:
        super().save_config(save_directory, **kwargs)
        write_shim(save_directory, type(self), f"{type(self).__name__}Config")
        if self._processor is not None:
            self._processor.save_pretrained(save_directory)
        elif self.modality is not None:
            with warnings.catch_warnings(action="ignore"):
                stale = MODALITIES[self.modality].processor.from_pretrained(save_directory)
            if stale is not None:  # of a model that was saved here before; what is not ours stays
                Path(save_directory, PROCESSOR).unlink()

    def to_json_string(self) -> str:
        """The config, with what stock libraries need to read the same folder (diffusers drops those keys silently)."""
        config = self.as_saved_config(json.loads(super().to_json_string()))
        config.pop("_name_or_path", None)  # where it was loaded from: a path of this machine
        name = type(self).__name__
        classes = {"AutoConfig": f"{name}Config"}
        if not hasattr(diffusers, name):  # where stock has the class, its AutoModel needs no trust
            classes["AutoModel"] = name
        hidden = {
            "auto_map": auto_map(**classes),
            "model_type": self.face_type,
            "transformers_weights": self._weights_name,
        }
        config.update(hidden, _use_default_values=sorted(hidden), _hf_vq_version=__version__)
        return json.dumps(config, indent=2, sort_keys=True) + "\n"
