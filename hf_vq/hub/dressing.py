"""How a saved folder is dressed, so that stock libraries load it from the Hub without hf_vq being imported first."""

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from hf_vq.arguments import check_field
from hf_vq.hub.folders import PROCESSOR
from hf_vq.hub.push import PushMixin
from hf_vq.hub.shims import PIPELINE, SHIM, pipeline_text, shim_text
from hf_vq.registry import find_class
from hf_vq.saved import CONFIG, check_class, check_files, check_folder, check_index, folder_kind, read_config
from hf_vq.weights import check_save_options

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline as _Pipeline
    from transformers import PreTrainedConfig as _Config
else:
    _Config = _Pipeline = object

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
STOCK = ("diffusers", "transformers")  # libraries whose components stay as they are


def auto_map(**classes: str) -> dict[str, str]:
    """The `auto_map` of a config: names of our classes by the name of the Auto class that should find them."""
    return {auto_class: f"{SHIM}.{name}" for auto_class, name in classes.items()}


def write_shim(folder: str | os.PathLike, owner: type, *names: str) -> None:
    """Write the module that `auto_map` names into a saved folder; arguments as of `shim_text`."""
    (Path(folder) / f"{SHIM}.py").write_text(shim_text(owner, *names), encoding="utf-8")


class HubConfigMixin(_Config):
    """For a transformers config, before `PreTrainedConfig`: saved folders load in stock `AutoModel` with trust.

    Its fields are what they are annotated as, also where they are set later.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        value = check_field(type(self), type(self).attribute_map.get(name, name), value)
        super().__setattr__(name, value)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Does nothing: after loading with trust, transformers would copy our source file into every saved folder."""

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict, dict]:
        """As transformers; a folder of another class is a ValueError that names it."""
        owner = getattr(cls, "autoencoder_class", None) or cls
        check_folder(pretrained_model_name_or_path, kwargs.get("subfolder"), owner)
        found, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        check_class(pretrained_model_name_or_path, found, owner)
        return found, rest

    def push_to_hub(self, *args: Any, **options: Any) -> Any:
        """Raises a ValueError: a config is pushed with its weights."""
        PushMixin.check_push_of_config(True)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        PushMixin.check_push_of_config(push_to_hub)
        name = type(self).__name__
        self.auto_map = auto_map(AutoConfig=name)
        if not os.path.isfile(save_directory):  # transformers has words for that
            os.makedirs(save_directory, exist_ok=True)
            write_shim(save_directory, find_class(name.removesuffix("Config")) or type(self), name)
        super().save_pretrained(save_directory, **kwargs)


def check_parts(folder: str | os.PathLike, index: dict[str, Any]) -> None:
    """`check_files` of the folder of a pipeline and those of its components, of other libraries too."""
    for part in (".", *index):
        if os.path.isdir(os.path.join(folder, part)):
            check_files(Path(folder, part))


class HubPipelineMixin(PushMixin, _Pipeline):  # type: ignore[misc]
    """For a pipeline, before `DiffusionPipeline`: its repositories load in stock `DiffusionPipeline` with trust.

    In a saved index the pipeline's class is `["pipeline", name]` and our components are `["hf_vq_remote", name]`:
    files of the repository, which stock runs when trusted. Our own class reads the same index as `hf_vq`'s classes,
    runs no file of the repository and needs no trust.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As diffusers; a folder or repository of another class is a ValueError that names it."""
        path = Path(str(pretrained_model_name_or_path))
        if path.is_dir() and folder_kind(path) != "pipeline" and (path / CONFIG).is_file():
            check_class(path, read_config(path), cls)
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        index: Any = cls.load_config(pretrained_model_name_or_path, **hub)
        check_class(path, index, cls)
        if path.is_dir():
            check_parts(path, index)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As diffusers; what it cannot do, such as `safe_serialization=False`, is an error before it writes."""
        check_save_options(save_directory, kwargs, DiffusionPipeline.save_pretrained)
        self.save_and_push(super().save_pretrained, save_directory, *args, **kwargs)

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        self.check_push_of_config(push_to_hub)
        super().save_config(save_directory, **kwargs)

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str | os.PathLike:
        """As diffusers, which takes config and weights of a model alone: here also how its samples are prepared."""
        folder = super().download(pretrained_model_name, **kwargs)
        index: Any = cls.load_config(folder)
        check_parts(folder, index)
        names = ("cache_dir", "force_download", "local_files_only", "token")
        options = {name: kwargs[name] for name in names if name in kwargs}
        with contextlib.suppress(EntryNotFoundError):
            hf_hub_download(pretrained_model_name, f"autoencoder/{PROCESSOR}", revision=Path(folder).name, **options)
        return folder

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        index = super()._dict_from_json_file(json_file)
        check_index(Path(json_file).parent, index)
        if isinstance(index.get("_class_name"), list):
            index["_class_name"] = index["_class_name"][1]
        return {
            key: ["hf_vq", value[1]] if isinstance(value, list) and value[:1] == [SHIM] else value
            for key, value in index.items()
        }

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        index, folder = json.loads(self.to_json_string()), Path(json_file_path).parent
        name = type(self).__name__
        index["_class_name"] = [PIPELINE, name]
        index.pop("_name_or_path", None)  # where it was loaded from: a path of this machine
        for key in type(self)._optional_components:
            if index.get(key) == [None, None]:  # versions that do not know it load the pipeline, too
                del index[key]
        (folder / f"{PIPELINE}.py").write_text(pipeline_text(name, type(self)), encoding="utf-8")
        for key, value in index.items():
            ours = isinstance(value, list) and value[0] not in STOCK and (value[0] == "hf_vq" or find_class(value[1]))
            if ours and not key.startswith("_"):
                index[key] = [SHIM, value[1]]
                if (folder / key).is_dir() and not (folder / key / f"{SHIM}.py").is_file():  # a scheduler's
                    write_shim(folder / key, type(getattr(self, key)))
        Path(json_file_path).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
