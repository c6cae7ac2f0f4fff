"""Saved folders of autoencoders, which diffusers and transformers both read."""

import copy
import functools
import inspect
import json
import shutil
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

import diffusers
import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import FrozenDict
from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME, _add_variant
from huggingface_hub import split_torch_state_dict_into_shards
from torch import nn

from hf_vq.arguments import check_arguments, check_own
from hf_vq.hosts import ModelHost
from hf_vq.hub import PROCESSOR, PushMixin, auto_map, write_shim
from hf_vq.quantizers import Quantizer
from hf_vq.quantizers.registry import with_changed_options, without_earlier_options
from hf_vq.registry import MODALITIES
from hf_vq.renaming import warn_renamed, warn_user, with_new_names
from hf_vq.saved import HUB_ARGUMENTS, below, check_class, check_folder
from hf_vq.single_file import SingleFileMixin
from hf_vq.version import __version__
from hf_vq.weights import (
    CheckedWeights,
    buffer_names,
    check_loaded,
    check_save_options,
    derive,
    expect_keys,
    listed,
    missing_names,
)

SAVED_IN_CONFIGS = ("_class_name", "_diffusers_version", "_hf_vq_version", "transformers_version")  # one at least
AVERAGE = {
    "optimization_step",
    "update_after_step",
    "use_ema_warmup",
    "inv_gamma",
}  # what EMAModel writes into a config


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


class KeptInFloat32:
    """Names of the modules that diffusers keeps in float32; none while it loads plainly, which it does not combine."""

    def __init__(self, names: Iterable[str]):
        self.names = list(names)

    def __get__(self, instance: Any, owner: Any = None) -> list[str] | None:
        return None if _plainly.get() else self.names


_plainly: ContextVar[bool] = ContextVar("_plainly", default=False)


@contextmanager
def loading_plainly(plain: bool) -> Iterator[None]:
    """Within the `with` block: diffusers accepts `low_cpu_mem_usage=False`, in this thread."""
    token = _plainly.set(plain)
    try:
        yield
    finally:
        _plainly.reset(token)


def check_averaged(model: Any, config: Any, path: str | Path | None = None) -> None:
    """Raise a ValueError for a model that diffusers' `EMAModel` saves or saved, where it has state in buffers.

    EMAModel keeps parameters alone, and saves them in a model that is new otherwise.

    Args:
        model: the autoencoder.
        config: of the model, as in the file.
        path: of the folder that is loaded; None: it is being saved.
    """
    if not config.keys() >= AVERAGE:
        return
    lost = derive(copy.deepcopy(model), buffer_names(model))
    if lost:
        what = "EMAModel saves parameters only" if path is None else f"{path} was saved by EMAModel: parameters only"
        raise ValueError(
            f"{what}, but {type(model).__name__} has learned {listed(lost)}, no parameters; save the model itself, "
            "after average.copy_to(model.parameters())"
        )
    if path is None:  # the new model got the codebook of the averages
        expect_keys(model, [name for name, _ in model.named_parameters()])


class SavedFolder(CheckedWeights, SingleFileMixin, PushMixin, ModelHost):
    """Loading and saving of an autoencoder; stands before `ModelMixin, ConfigMixin` among the bases.

    Class attributes:
        face_type: the `model_type` under which transformers finds the saved folder; of a class that does not say it,
            "hf_vq_" and its name.
        modality: name of what its samples are, a key of `hf_vq.registry.MODALITIES`; None: tensors.
    """

    face_type: str | None = None
    modality: str | None = None
    quantizers: Sequence[Quantizer]
    _processor: Any = None
    in_channels: int
    _keep_in_fp32_modules = KeptInFloat32(["quantize", "quantizer", "quantizers"])
    _weights_name = SAFETENSORS_WEIGHTS_NAME

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        kept: Any = vars(cls).get("_keep_in_fp32_modules")
        if isinstance(kept, list | tuple):  # of a class with modules of its own
            cls._keep_in_fp32_modules = KeptInFloat32(kept)
        if hasattr(vars(cls).get("__init__"), "__wrapped__"):  # by @register_to_config, which the contract asks for
            check_own(cls, "__init__")  # register_to_config checks more, but gives the body no plain values
        if "face_type" not in vars(cls):
            cls.face_type = f"hf_vq_{cls.__name__.lower()}"

    def check_loaded(self, missing: Iterable[str], path: str | Path, unsaved: bool = False) -> None:
        """Completes a model that was loaded; arguments and errors as of `hf_vq.weights.check_loaded`."""
        missing = set(missing)
        model: Any = self
        check_loaded(model, missing, path, lambda: type(self).from_config(dict(self.config)), unsaved)
        for prefix, module in self.named_modules():
            if isinstance(module, Quantizer):
                start = prefix + "."
                module.finish_loading([name.removeprefix(start) for name in missing if name.startswith(start)])
        self.warn_unless_started()

    def warn_unless_started(self) -> None:
        """Warns where a codebook has never started: its codes are those of random vectors."""
        if not all(quantizer.started for quantizer in self.quantizers):
            warn_user(
                f"the codebook of this {type(self).__name__} has never started: its codes are those of random "
                "vectors, until a training step or initialize_codebook(sample)"
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """As diffusers, but nothing is left to chance.

        Raises:
            ValueError: a folder or repository of another class, or weights that are missing, no floating-point numbers
                or not finite; named.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        path, kwargs = below(pretrained_model_name_or_path, kwargs)
        check_folder(path, kwargs.get("subfolder"), cls)
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        config: Any = cls.load_config(path, **hub)
        check_class(path, config, cls)
        plain = kwargs.get("low_cpu_mem_usage") is False
        given = [kwargs.pop(name, None) for name in ("dtype", "torch_dtype")] if plain else []
        dtype = next(filter(None, given), None)
        with loading_plainly(plain):
            model, info = super().from_pretrained(path, output_loading_info=True, **kwargs)
        if dtype is not None:
            _cast(model, dtype, cls._keep_in_fp32_modules or ())
        check_averaged(model, config, path)
        model.check_loaded(missing_names(info), path)
        model.load_processor(path, **kwargs)
        return (model, info) if wants_info else model

    @classmethod
    def from_config(cls, config: Any = None, **kwargs: Any) -> Any:
        if isinstance(config, dict):
            check_class("config", config, cls)
        return super().from_config(config, **kwargs)

    @property
    def processor(self) -> Any:
        """What makes samples of pictures or sounds and shows them again; None for tensors.

        It is saved with the model once it was set, as training by the command line does; before, it takes things as
        they come.
        """
        if self._processor is None and self.modality is not None:
            modality = MODALITIES[self.modality]
            shared = {name: self.config[name] for name in modality.shared_options if name in self.config}
            return modality.processor(channels=self.in_channels, **shared)
        return self._processor

    @processor.setter
    def processor(self, processor: Any) -> Any:
        channels = getattr(processor, "channels", None)
        if channels is not None and channels != self.in_channels:
            raise ValueError(f"processor has channels={channels}, but the model takes in_channels={self.in_channels}")
        for name in MODALITIES[self.modality].shared_options if self.modality in MODALITIES else ():
            theirs, own = getattr(processor, name, None), self.config.get(name)
            if None not in (theirs, own) and theirs != own:
                raise ValueError(f"processor has {name}={theirs}, but the model has {name}={own}")
        self._processor = processor

    def load_processor(self, path_or_repo: str | Path, **kwargs: Any) -> None:
        """Takes the processor of a folder or repository, where it has one; arguments as of `from_pretrained`."""
        if self.modality is not None:
            hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name != "proxies" and kwargs.get(name)}
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
        values = with_new_names(kwargs, renamed, owner)
        for base in type(self).__mro__:  # the arguments are the config, whichever class of a family takes them
            if isinstance(vars(base).get("__init__"), FunctionType):
                values = check_arguments(vars(base)["__init__"], values)
        if "quantizer_config" in values:
            values = self.with_written_options(values, earlier=False)
        super().register_to_config(**values)
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
        """As diffusers; what it cannot do is an error before anything is written.

        Raises:
            NotADirectoryError: a file is where the folder should be.
            TypeError: an option that diffusers does not know.
            ValueError: an option at a value that is not supported, such as `safe_serialization=False`; buffers that
                diffusers' `EMAModel` does not keep.
        """
        check_save_options(
            save_directory,
            options := {"variant": variant, "max_shard_size": max_shard_size, **kwargs},
            ModelMixin.save_pretrained,
        )
        check_averaged(self, self.config)
        shards = split_torch_state_dict_into_shards(self.state_dict(), max_shard_size=max_shard_size)
        self._weights_name = _add_variant(SAFETENSORS_WEIGHTS_NAME, variant)
        index = _add_variant(SAFE_WEIGHTS_INDEX_NAME, variant)  # as diffusers names it
        shown = f"{self._weights_name}.index.json"  # the only form of name that transformers takes from a config
        self._weights_name = shown if shards.is_sharded else self._weights_name
        stock = super().save_pretrained

        @functools.wraps(stock)
        def save(save_directory, **given):
            stock(save_directory, **given)
            if shards.is_sharded and shown != index and given.get("is_main_process", True):
                shutil.copyfile(Path(save_directory, index), Path(save_directory, shown))

        self.warn_unless_started()
        self.save_and_push(save, save_directory, **options)

    def save_config(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        self.check_push_of_config(push_to_hub)
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


def _cast(module: nn.Module, dtype: torch.dtype, kept: Iterable[str]) -> None:
    """Casts floating-point tensors in place, but for quantizers and modules of these names, as diffusers does."""
    if isinstance(module, Quantizer):
        return
    for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    for name, child in module.named_children():
        if name not in kept:
            _cast(child, dtype, kept)
