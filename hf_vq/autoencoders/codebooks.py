"""Codebooks that stand still, are started, updated or resized: what training does to the quantizers of a model."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_vq.arguments import checked
from hf_vq.hosts import ModelHost
from hf_vq.quantizers import Quantizer


class CodebookControl(ModelHost):
    """The quantizers of an autoencoder as one; a subclass gives `quantizers`.

    Class attributes:
        decoder_modules, decoder_options: names of the modules and of the config's options that only decode: codes do
            not depend on them.
    """

    quantizers: Sequence[Quantizer]
    hierarchical: bool
    decoder_modules: tuple[str, ...] = ("post_quant_conv", "decoder")
    decoder_options: tuple[str, ...] = ("reconstruction_loss", "reconstruction_weight")

    @property
    def codebook_initialized(self) -> bool:
        """Whether k-means has run, is switched off, or the codebook was loaded."""
        return all(quantizer.initialized for quantizer in self.quantizers)

    def set_codebook_updates(self, mode: str) -> None:
        """When training forwards move the codebook by statistics: "forward", "deferred" or "off".

        Deferred, they gather until `update_codebook()`: once per optimizer step under gradient accumulation.
        """
        if mode not in ("forward", "deferred", "off"):
            raise ValueError(f"mode must be 'forward', 'deferred' or 'off', got {mode!r}")
        for quantizer in self.quantizers:
            quantizer.codebook_updates = mode

    def update_codebook(self) -> None:
        """Applies the statistics gathered since the last update."""
        for quantizer in self.quantizers:
            quantizer.update_codebook()

    @checked
    def resize_codebook(self, codebook_size: int) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Changes the number of codes: the most used stay, new ones split them. Make a new optimizer after it.

        Returns:
            (codebook_size,) int64, the old index that every code comes from; a tuple of them for a hierarchy.

        Raises:
            ValueError: a quantizer without a learned codebook, or one that does not count the use of its codes.
        """
        origins = tuple(quantizer.resize(codebook_size) for quantizer in self.quantizers)
        name = "num_vq_embeddings" if "num_vq_embeddings" in self.config else "codebook_size"
        self.register_to_config(**{name: codebook_size})
        return origins if self.hierarchical else origins[0]

    def only_decodes(self, name: str) -> bool:
        """Whether a parameter or buffer of this name has no say in the codes."""
        return name.startswith(tuple(f"{module}." for module in self.decoder_modules))

    def freeze_codes(self) -> list[nn.Parameter]:
        """Leaves a gradient to parameters that only decode, and stops codebook updates: `tokenize` stays as it is.

        Tokenized data and priors then remain good for what training makes of the decoder. In training mode a quantizer
        that draws its codes (Gumbel) or leaves levels out still does so.

        Returns:
            list of the parameters that lost their gradient.

        Raises:
            ValueError: see `check_freezable`.
        """
        self.check_freezable()
        self.set_codebook_updates("off")
        learning = [item for item in self.named_parameters() if item[1].requires_grad]
        return [parameter.requires_grad_(False) for name, parameter in learning if not self.only_decodes(name)]

    def check_freezable(self) -> None:
        """Raise a ValueError for a codebook that has not started, and for BatchNorm, whose statistics would move."""
        if not self.codebook_initialized:
            raise ValueError("freeze_codes=True needs a trained autoencoder: its codebook has not started yet")
        if any(isinstance(module, _BatchNorm) for module in self.modules()):
            raise ValueError("freeze_codes does not go with BatchNorm, whose statistics move in training")
