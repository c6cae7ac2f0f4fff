"""Config fields of every prior."""

import functools
import os
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

from transformers import PreTrainedConfig

from hf_vq.hub import HubConfigMixin
from hf_vq.ranges import Chance, Codebook, Labels, NotEmpty, Side


class PriorConfig(HubConfigMixin, PreTrainedConfig):
    """Config fields of every prior.

    Args:
        codebook_size: number of codes, at most `largest_codebook`.
        num_classes: number of classes; 0 is an unconditional prior.
        code_shape: the grid that `sample` draws by default.
        class_dropout_prob: chance that training replaces a class by the null class, whose index is `num_classes`;
            above 0 it makes that class exist, and guidance possible.
        codes_sha256, rounded_codes_sha256: which tokenizer made the codes that it was trained on, as training writes
            it; pipelines refuse another one. None: not known.

    Class attributes:
        largest_codebook: most codes of a prior whose embeddings and logits have an entry for each; a config whose
            prior has none may say more.
        later_options: values by name at which options are not written, since folders of earlier versions lack them.
        former_options: values of options by name, of folders that were saved before there was such an option: a
            config that is loaded and lacks it gets this value, while a new config gets the default.

    Raises:
        ValueError: a value is out of its range.
    """

    largest_codebook: ClassVar[int] = 2**24
    later_options: ClassVar[dict[str, Any]] = {"codes_sha256": None, "rounded_codes_sha256": None}
    former_options: ClassVar[dict[str, Any]] = {}

    codebook_size: Codebook = 512
    num_classes: Labels = 0
    code_shape: Annotated[tuple[Side, ...] | list[Side], NotEmpty()] | None = None
    class_dropout_prob: Chance = 0.0
    codes_sha256: str | None = None
    rounded_codes_sha256: str | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        if "__post_init__" in vars(cls):
            cls.__post_init__ = with_other_names(vars(cls)["__post_init__"])  # type: ignore[method-assign]
        super().__init_subclass__(**options)

    def __post_init__(self, **kwargs):
        if self.codebook_size > self.largest_codebook:
            raise ValueError(
                f"codebook_size={self.codebook_size} is too large for a prior, whose embeddings and logits have an "
                f"entry for each code (at most {self.largest_codebook}): tokenize with groups or levels of fewer codes"
            )
        if self.class_dropout_prob > 0 and self.num_classes == 0:
            raise ValueError(f"class_dropout_prob is {self.class_dropout_prob}, but num_classes is 0: nothing to drop")
        if self.code_shape is not None:
            self.code_shape = tuple(self.code_shape)  # JSON has lists
        super().__post_init__(**kwargs)

    def to_diff_dict(self) -> dict:
        """As transformers, without `later_options` at these values."""
        later = self.later_options
        return {
            name: value for name, value in super().to_diff_dict().items() if name not in later or value != later[name]
        }

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A config from what was saved; options that there were not yet are what they were by `former_options`."""
        return super().from_dict({**cls.former_options, **config_dict}, **kwargs)

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike) -> Any:
        return cls.from_dict(cls._dict_from_json_file(json_file))

    @property
    def num_class_embeddings(self) -> int:
        """Rows of a class embedding: the classes, and the null class where there is one."""
        return self.num_classes + (self.class_dropout_prob > 0)


def with_other_names(post_init: Callable) -> Callable:
    """A `__post_init__` that first takes options under transformers' names of them (`attribute_map`).

    transformers sets those at the end, when all has been checked and derived from the values before.
    """

    @functools.wraps(post_init)
    def call(config, **kwargs):
        for other, name in config.attribute_map.items():
            if other not in kwargs:
                continue
            value, default = kwargs.pop(other), getattr(type(config), name)
            if getattr(config, name) not in (default, value):
                raise ValueError(f"{name} and {other} are one option, got {getattr(config, name)!r} and {value!r}")
            setattr(config, name, value)
        post_init(config, **kwargs)

    return call


class SpeakerConfig(PriorConfig):
    """Config fields of a prior that has speakers beside classes, the condition `speaker_labels`.

    Args:
        num_speakers: number of speakers; 0 is none.
        speaker_dropout_prob: chance that training replaces a speaker by the null speaker, whose index is
            `num_speakers`; above 0 it makes that speaker exist, and guidance possible.

    Raises:
        ValueError: a value is out of its range.
    """

    later_options = {**PriorConfig.later_options, "num_speakers": 0, "speaker_dropout_prob": 0.0}

    num_speakers: Labels = 0
    speaker_dropout_prob: Chance = 0.0

    def __post_init__(self, **kwargs):
        if self.speaker_dropout_prob > 0 and self.num_speakers == 0:
            raise ValueError(
                f"speaker_dropout_prob is {self.speaker_dropout_prob}, but num_speakers is 0: nothing to drop"
            )
        super().__post_init__(**kwargs)

    @property
    def num_speaker_embeddings(self) -> int:
        """Rows of a speaker embedding: the speakers, and the null speaker where there is one."""
        return self.num_speakers + (self.speaker_dropout_prob > 0)
