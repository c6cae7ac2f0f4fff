"""What every autoencoder answers: sample <-> codes, a loss that trains, a folder that both libraries read."""

import json
import os
from dataclasses import dataclass

import diffusers
import torch
import torch.nn.functional as F
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME, BaseOutput, _add_variant
from diffusers.utils.accelerate_utils import apply_forward_hook
from huggingface_hub import split_torch_state_dict_into_shards
from torch.nn.modules.batchnorm import _BatchNorm

from hf_vq.autoencoders.tiling import TilingMixin
from hf_vq.hub import PushMixin, auto_map, write_shim
from hf_vq.quantizers import Quantizer
from hf_vq.version import __version__

RECONSTRUCTION_LOSSES = {"mse": F.mse_loss, "l1": F.l1_loss}


@dataclass
class EncoderOutput(BaseOutput):
    """Latents of a sample.

    Attributes:
        latents: (batch, dim, *grid), before quantization; of a hierarchy a tuple of them, coarse to fine.
    """

    latents: torch.Tensor | tuple[torch.Tensor, ...]


@dataclass
class ReconstructionOutput(BaseOutput):
    """A decoded sample.

    Attributes:
        sample: (batch, channels, *space) in [-1, 1].
    """

    sample: torch.Tensor


@dataclass
class AutoencoderOutput(BaseOutput):
    """Result of an autoencoder's forward.

    Attributes:
        sample: (batch, channels, *space) reconstruction in [-1, 1].
        codes: (batch, *grid) int64; (batch, num_levels, *grid) where there are levels; of a hierarchy a tuple.
        loss: scalar, reconstruction_weight x reconstruction_loss + quantizer_loss.
        reconstruction_loss: scalar.
        quantizer_loss: scalar, as the quantizer weighs its terms.
        losses: every term by name, before weighting.
    """

    sample: torch.Tensor
    codes: torch.Tensor
    loss: torch.Tensor
    reconstruction_loss: torch.Tensor
    quantizer_loss: torch.Tensor
    losses: dict[str, torch.Tensor]


class AutoencoderMixin(TilingMixin, PushMixin):
    """For a diffusers ModelMixin with one quantizer; `quantizer` names it, `downsample_factor` is a property.

    A hierarchy has `quantizers` and `downsample_factors`, coarse to fine; its codes are tuples in that order.

    Class attributes:
        face_type: the `model_type` under which transformers finds the saved folder.
        decoder_modules, decoder_options: names of the modules and of the config's options that only decode: codes do
            not depend on them.
        hierarchical: whether codes are a tuple.
    """

    _keep_in_fp32_modules = ["quantize", "quantizer"]
    face_type = None
    decoder_modules = ("post_quant_conv", "decoder")
    decoder_options = ("reconstruction_loss", "reconstruction_weight")
    hierarchical = False
    _weights_name = SAFETENSORS_WEIGHTS_NAME

    @property
    def quantizers(self):
        """Every quantizer, coarse to fine."""
        return (self.quantizer,)

    @property
    def downsample_factors(self):
        """Of every quantizer, coarse to fine."""
        return (self.downsample_factor,)

    @property
    def codebook_sizes(self):
        """Number of codes of every quantizer, coarse to fine."""
        return tuple(quantizer.codebook_size for quantizer in self.quantizers)

    @property
    def codebook_size(self):
        """Number of codes; a tuple where the levels of a hierarchy differ."""
        sizes = self.codebook_sizes
        return sizes[0] if len(set(sizes)) == 1 else sizes

    @property
    def num_levels(self):
        """Codes per grid position; with more than one, codes have a levels axis after the batch."""
        return self.quantizers[0].num_levels

    @property
    def codebook_initialized(self):
        """Whether k-means has run, is switched off, or the codebook was loaded."""
        return all(quantizer.initialized for quantizer in self.quantizers)

    def code_shape(self, sample_shape):
        """Shape of the codes of one sample: the grid, after the number of levels where there are several.

        Of a hierarchy, a tuple of such shapes, coarse to fine.

        Args:
            sample_shape: (channels, *space), without the batch.

        Raises:
            ValueError: another number of channels, or a side that the downsampling does not divide.
        """
        channels, *space = sample_shape
        factor = self.downsample_factor
        if channels != self.config.in_channels:
            raise ValueError(f"sample must have {self.config.in_channels} channels, got shape {tuple(sample_shape)}")
        if len(space) != 2 or any(side < 1 or side % factor for side in space):
            raise ValueError(
                f"sample must be (channels, height, width) with sides that {factor}, the downsampling, divides; "
                f"got shape {tuple(sample_shape)}"
            )
        levels = () if self.num_levels == 1 else (self.num_levels,)
        shapes = tuple((*levels, *(side // factor for side in space)) for factor in self.downsample_factors)
        return shapes if self.hierarchical else shapes[0]

    def code_shapes(self, sample_shape):
        """`code_shape` of every quantizer, coarse to fine: a tuple also where there is one."""
        shape = self.code_shape(sample_shape)
        return shape if self.hierarchical else (shape,)

    def check_sample(self, sample):
        if not sample.is_floating_point() or sample.ndim != 4:
            raise ValueError(
                f"sample must be floating point, (batch, channels, height, width) in [-1, 1]; got {sample.dtype} of "
                f"shape {tuple(sample.shape)}"
            )
        self.code_shape(tuple(sample.shape[1:]))

    @torch.no_grad()
    def tokenize(self, sample, **options):
        """Samples (batch, channels, *space) in [-1, 1] to codes (batch, *grid) or (batch, num_levels, *grid) int64.

        Args:
            num_levels: of a residual quantizer, take only so many levels.
        """
        return self.quantizer.tokenize(self.encode(sample).latents, **options)

    @torch.no_grad()
    @apply_forward_hook
    def detokenize(self, codes):
        """Codes (batch, *grid) or (batch, levels, *grid) to samples (batch, channels, *space) in [-1, 1].

        Of a residual quantizer the first levels alone decode to a coarser sample.
        """
        return self.decode(self.quantizer.detokenize(codes).to(self.dtype)).sample

    def forward(self, sample):
        """Reconstructs a sample.

        Args:
            sample: (batch, channels, *space) in [-1, 1].

        Returns:
            AutoencoderOutput.
        """
        quantized = self.quantizer(self.encode(sample).latents)
        return self.training_output(sample, self.decode(quantized.latents).sample, quantized)

    @torch.no_grad()
    def initialize_codebook(self, sample):
        """Starts the codebook by k-means on the latents of these samples, unless it has started or was loaded.

        Returns:
            bool: whether it did.
        """
        if self.codebook_initialized:
            return False
        return self.quantizer.initialize(self.encode(sample).latents)

    def set_codebook_updates(self, mode):
        """When training forwards move the codebook by statistics: "forward", "deferred" or "off".

        Deferred, they gather until `update_codebook()`: once per optimizer step under gradient accumulation.
        """
        if mode not in ("forward", "deferred", "off"):
            raise ValueError(f"mode must be 'forward', 'deferred' or 'off', got {mode!r}")
        for quantizer in self.quantizers:
            quantizer.codebook_updates = mode

    def only_decodes(self, name):
        """Whether a parameter or buffer of this name has no say in the codes."""
        return name.startswith(tuple(f"{module}." for module in self.decoder_modules))

    def freeze_codes(self):
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

    def check_freezable(self):
        """Raise a ValueError for a codebook that has not started, and for BatchNorm, whose statistics would move."""
        if not self.codebook_initialized:
            raise ValueError("freeze_codes needs a trained autoencoder: its codebook has not started yet")
        if any(isinstance(module, _BatchNorm) for module in self.modules()):
            raise ValueError("freeze_codes does not go with BatchNorm, whose statistics move in training")

    def resize_codebook(self, codebook_size):
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

    def update_codebook(self):
        """Applies the statistics gathered since the last update."""
        for quantizer in self.quantizers:
            quantizer.update_codebook()

    def training_output(
        self, sample, reconstruction, quantized, output_class=AutoencoderOutput, reconstruction_loss=None, **more
    ):
        """The output of `forward`, with its losses.

        Args:
            sample, reconstruction: (batch, channels, *space).
            quantized: QuantizerOutput.
            reconstruction_loss: scalar, of a decoder with a likelihood; None: the config's distance.
        """
        if reconstruction_loss is None:
            distance = RECONSTRUCTION_LOSSES[self.config.reconstruction_loss]
            reconstruction_loss = distance(reconstruction.float(), sample.float())
        return output_class(
            sample=reconstruction,
            codes=quantized.codes,
            loss=self.config.reconstruction_weight * reconstruction_loss + quantized.loss,
            reconstruction_loss=reconstruction_loss,
            quantizer_loss=quantized.loss,
            losses={"reconstruction": reconstruction_loss, **quantized.losses},
            **more,
        )

    # Folders

    def finish_loading(self, missing):
        """Called with the names of the tensors that a loaded checkpoint lacked: quantizers derive theirs."""
        for prefix, module in self.named_modules():
            if isinstance(module, Quantizer):
                start = prefix + "."
                module.finish_loading([name.removeprefix(start) for name in missing if name.startswith(start)])

    @classmethod
    def from_single_file(cls, path, config=None, format=None):
        """A checkpoint of another project as a model of this class, without writing anything.

        Args:
            path: a file of weights, or a folder with one.
            config: the original's config file; None: the one beside the weights, where there is one.
            format: a key of `hf_vq.converters.FORMATS`; None: recognised by its tensors and config.

        Raises:
            FileNotFoundError: nothing there.
            ValueError: a checkpoint that is broken, not safe, of no known format, or of another class.
        """
        from hf_vq.converters import load_single_file

        return load_single_file(cls, path, config, format)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        model.finish_loading(info["missing_keys"])
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory, *, max_shard_size="10GB", variant=None, **kwargs):
        """As diffusers, but a file where the folder should be is an error."""
        if os.path.isfile(save_directory):
            raise NotADirectoryError(f"save_directory must be a folder, but {save_directory} is a file")
        shards = split_torch_state_dict_into_shards(self.state_dict(), max_shard_size=max_shard_size)
        name = SAFETENSORS_WEIGHTS_NAME + (".index.json" if shards.is_sharded else "")
        self._weights_name = _add_variant(name, variant)
        super().save_pretrained(save_directory, max_shard_size=max_shard_size, variant=variant, **kwargs)

    def save_config(self, save_directory, **kwargs):
        super().save_config(save_directory, **kwargs)
        write_shim(save_directory)

    def to_json_string(self):
        """The config, with what stock libraries need to read the same folder (diffusers drops those keys silently)."""
        config = json.loads(super().to_json_string())
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


def check_reconstruction(reconstruction_loss, reconstruction_weight, distributions=()):
    known = sorted([*RECONSTRUCTION_LOSSES, *distributions])
    if reconstruction_loss not in known:
        raise ValueError(f"reconstruction_loss must be one of {known}, got {reconstruction_loss!r}")
    if not reconstruction_weight > 0:
        raise ValueError(f"reconstruction_weight must be above 0, got {reconstruction_weight!r}")
