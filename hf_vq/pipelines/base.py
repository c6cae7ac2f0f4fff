"""What pipelines share: class names, known codes of a picture to complete, and the way back to pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput

from hf_vq.hub import HubPipelineMixin
from hf_vq.registry import MODALITIES


@dataclass
class SamplePipelineOutput(BaseOutput):
    """What a pipeline returns whose autoencoder has no modality.

    Attributes:
        samples: (batch, channels, *space) in [-1, 1], or codes.
    """

    samples: torch.Tensor


class CodesPipeline(HubPipelineMixin, DiffusionPipeline):
    """A pipeline of an autoencoder and priors over its codes; a subclass registers them and draws the codes."""

    def _set_up(self, class_names, num_classes):
        """Keep the class names, a list or by number, and make the image processors."""
        if class_names is not None and len(class_names) != num_classes:
            raise ValueError(
                f"class_names must be {num_classes}, one for each class of the prior, got {class_names!r}"
            )
        if class_names is not None and not isinstance(class_names, Mapping):  # stock takes a list for a component
            class_names = dict(enumerate(class_names))
        names = None if class_names is None else {str(label): name for label, name in class_names.items()}
        self.register_to_config(class_names=names)
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)
        self.mask_processor = VaeImageProcessor(
            vae_scale_factor=1, do_normalize=False, do_binarize=True, do_convert_grayscale=True
        )

    def get_label_ids(self, class_labels):
        """Class labels, numbers or names, as a tensor (n,) int64.

        Raises:
            ValueError: a name that is none of `class_names`.
        """
        if isinstance(class_labels, int | str):
            class_labels = [class_labels]
        if isinstance(class_labels, torch.Tensor):
            return class_labels
        numbers = {name: int(label) for label, name in (self.config.class_names or {}).items()}
        for label in class_labels:
            if isinstance(label, str) and label not in numbers:
                raise ValueError(f"class_labels: {label!r} is none of the class names {list(numbers)}")
        return torch.tensor([numbers[label] if isinstance(label, str) else label for label in class_labels])

    def _check_request(self, class_labels, batch_size, num_images_per_prompt, num_classes, output_type):
        """Labels (n,) or None, and the number of images n, of a request."""
        modality = self._modality
        known = [*(modality.output_types if modality else ("pt",)), "codes"]
        if output_type not in known:
            raise ValueError(f"output_type must be one of {known}, got {output_type!r}")
        if num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt must be at least 1, got {num_images_per_prompt}")
        if class_labels is None:
            if num_classes:
                raise ValueError(f"class_labels missing: the prior has {num_classes} classes")
            return None, (1 if batch_size is None else batch_size) * num_images_per_prompt
        if num_classes == 0:
            raise ValueError(f"class_labels={class_labels!r} given, but the prior has no classes")
        if batch_size is not None:
            raise ValueError(f"batch_size={batch_size} given beside class_labels, whose number decides")
        labels = self.get_label_ids(class_labels)
        if labels.ndim == 0:
            labels = labels[None]
        labels = labels.repeat_interleave(num_images_per_prompt)
        return labels, len(labels)

    def _code_shapes(self, height, width):
        """Grid of every level for an image of this size, coarse to fine; None without a size."""
        if height is None and width is None:
            return None
        if height is None or width is None:
            raise ValueError(f"height and width go together, got height={height}, width={width}")
        return self.autoencoder.code_shapes((self.autoencoder.config.in_channels, height, width))

    def _known_of_picture(self, image, mask_image, height, width, num_images):
        """Codes of a picture and where they are to be kept, one entry a level, coarse to fine; its height and width.

        A code is drawn anew where the mask touches any of the pixels that it stands for.
        """
        if image is None or mask_image is None:
            missing = "image" if image is None else "mask_image"
            raise ValueError(f"image and mask_image go together: {missing} is missing")
        sample = self.image_processor.preprocess(image, height=height, width=width)
        channels = self.autoencoder.config.in_channels
        if sample.shape[1] != channels:
            raise ValueError(f"image must have {channels} channels, got {tuple(sample.shape)}")
        height, width = sample.shape[-2:]
        mask = self.mask_processor.preprocess(mask_image, height=height, width=width)  # (n, 1, height, width), 1: new
        for name, value in (("image", sample), ("mask_image", mask)):
            if len(value) not in (1, num_images):
                raise ValueError(f"{name} must be one, or one for each of {num_images} images, got {len(value)}")
        device, dtype = self._execution_device, self.autoencoder.dtype
        codes = self.autoencoder.tokenize(sample.to(device, dtype))
        codes = codes if self.autoencoder.hierarchical else (codes,)
        known_codes, known_masks = [], []
        for one, factor in zip(codes, self.autoencoder.downsample_factors, strict=True):
            kept = F.max_pool2d(mask.to(device), factor) == 0  # (n, 1, *grid)
            kept = kept if one.ndim == 4 else kept[:, 0]  # levels of a residual quantizer are kept together
            known_codes.append(one.expand(num_images, *one.shape[1:]))
            known_masks.append(kept.expand(num_images, *one.shape[1:]))
        return known_codes, known_masks, height, width

    @property
    def _modality(self):
        return MODALITIES.get(self.autoencoder.modality)

    def _finish(self, codes, output_type, return_dict):
        """Codes as samples, in the form that was asked for and the output of their modality."""
        modality, samples = self._modality, codes
        if output_type != "codes":
            samples = self.autoencoder.detokenize(codes)  # (batch, channels, *space) in [-1, 1]
            if modality:
                samples = self.autoencoder.processor.postprocess(samples, output_type=output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (samples,)
        return (modality.output_class if modality else SamplePipelineOutput)(samples)


def check_prior(name, prior, codebook_size, grid_dims):
    """Raise a ValueError unless a prior speaks of these codes."""
    if prior.config.codebook_size != codebook_size:
        raise ValueError(
            f"{name} has codebook_size={prior.config.codebook_size}, but the autoencoder has {codebook_size} codes: "
            "they were not trained together"
        )
    if prior.grid_dims != grid_dims:
        raise ValueError(
            f"{name} models codes with {prior.grid_dims} axes, but those of the autoencoder have {grid_dims}"
        )


def for_each_level(count, **options):
    """Options, each one value for all levels or a sequence of one a level, as a list of dicts, coarse to fine.

    Raises:
        ValueError: a sequence of another length.
    """
    levels = [{} for _ in range(count)]
    for name, value in options.items():
        if isinstance(value, Sequence) and len(value) != count:
            raise ValueError(f"{name} must be one value or {count}, one for each level, got {value!r}")
        for index, level in enumerate(levels):
            level[name] = value[index] if isinstance(value, Sequence) else value
    return levels
