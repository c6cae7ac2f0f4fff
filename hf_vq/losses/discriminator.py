"""What all discriminators share: how they are asked, saved and loaded."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin

from hf_vq.saved import HUB_ARGUMENTS, below, check_class
from hf_vq.weights import check_loaded, missing_names


class Judgement(NamedTuple):
    """What a discriminator makes of a batch.

    Attributes:
        logits: of each sub-discriminator, (batch, 1, ...); high where it is taken for real.
        features: of each sub-discriminator, the activations (batch, channels, ...) of its hidden layers.
    """

    logits: tuple[torch.Tensor, ...]
    features: tuple[tuple[torch.Tensor, ...], ...]

    def of_items(self, items: slice) -> "Judgement":
        """The judgement of some items of the batch."""
        features = tuple(tuple(layer[items] for layer in layers) for layers in self.features)
        return Judgement(tuple(logits[items] for logits in self.logits), features)


class Discriminator(ModelMixin, ConfigMixin):
    """Tells samples from reconstructions. A subclass gives `space_dims`, `check_size` and `judge`."""

    space_dims: int  # axes of space of the samples
    config: Any

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """As diffusers, but something else, or weights that are missing or not finite, are an error.

        Raises:
            FileNotFoundError: a local folder without that subfolder.
            ValueError: names what it holds instead, or the weights.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        path, kwargs = below(pretrained_model_name_or_path, kwargs)
        config: Any = cls.load_config(path, **{name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs})
        check_class(path, config, cls)
        discriminator, info = super().from_pretrained(path, output_loading_info=True, **kwargs)
        check_loaded(discriminator, missing_names(info), path, lambda: cls.from_config(dict(discriminator.config)))
        return (discriminator, info) if wants_info else discriminator

    @abstractmethod
    def check_size(self, sample: torch.Tensor) -> None:
        """Raise a ValueError for samples (batch, channels, *space) that it does not take."""

    @abstractmethod
    def judge(self, sample: torch.Tensor) -> Judgement:
        """The judgement of a batch of samples (batch, channels, *space), whose size was checked."""

    @property
    def mixes_items(self) -> bool:
        """Whether the judgement of an item hangs on the others of its batch."""
        return False

    def forward(
        self, sample: torch.Tensor, other: torch.Tensor | None = None, return_features: bool = False
    ) -> tuple[Any, ...]:
        """Judges one batch of samples, or two that have nothing to do with each other.

        Args:
            sample, other: (batch, channels, *space) in [-1, 1].
            return_features: features too.

        Returns:
            A tuple, of each batch the logits as `Judgement` has them; with features its `Judgement`.

        Raises:
            ValueError: samples that it does not take.
        """
        self.check_size(sample)
        if other is None:
            judged = [self.judge(sample)]
        elif self.mixes_items:
            judged = [self.judge(sample), self.judge(other)]
        else:
            both, count = self.judge(torch.cat([sample, other])), len(sample)
            judged = [both.of_items(slice(count)), both.of_items(slice(count, None))]
        return tuple(judged if return_features else (each.logits for each in judged))
