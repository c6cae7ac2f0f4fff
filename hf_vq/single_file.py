"""Checkpoints of other projects as models of ours."""

from pathlib import Path
from typing import Any, Self


class SingleFileMixin:
    """`from_single_file` of autoencoders and priors."""

    @classmethod
    def from_single_file(
        cls,
        path: str | Path,
        config: str | Path | None = None,
        format: str | None = None,
        first_stage: str | Path | None = None,
        weights: str | None = None,
    ) -> Self:
        """A checkpoint of another project as a model of this class, without writing anything.

        Args:
            path: a file of weights, or a folder with one.
            config: the original's config file; None: the one beside the weights, where there is one.
            format: a key of `hf_vq.converters.FORMATS`; None: recognised by its tensors and config.
            first_stage: checkpoint or folder of the autoencoder, of a prior that takes its code vectors.
            weights: of several state dicts or models in a file, the name of the one to take.

        Raises:
            FileNotFoundError: nothing there.
            ValueError: a checkpoint that is broken, not safe, of no known format, or of another class.
        """
        from hf_vq.converters import load_single_file

        return load_single_file(cls, path, config, format, first_stage, weights)


def read_discriminator(path: str | Path) -> Any:
    """See `hf_vq.converters.discriminators.load_discriminator`."""
    from hf_vq.converters import load_discriminator

    return load_discriminator(path)


def to_transformers(codec: Any) -> Any:
    """See `hf_vq.converters.stock_codecs.to_transformers`."""
    from hf_vq.converters import to_transformers as convert

    return convert(codec)
