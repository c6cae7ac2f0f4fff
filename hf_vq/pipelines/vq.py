"""Prior and autoencoder in a row: new codes, then the sample they stand for."""

from collections.abc import Mapping, Sequence

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor

from hf_vq.hub import HubPipelineMixin

OUTPUT_TYPES = ("pil", "np", "pt", "codes")


class VQPipeline(HubPipelineMixin, DiffusionPipeline):
    """Draws images from a prior over the codes of an autoencoder (VQ-VAE, https://arxiv.org/abs/1711.00937).

    Args:
        autoencoder: `VQVAE`, `VQModel` or any autoencoder of ours with one grid of codes.
        prior: `PixelCNN` or any prior over such grids.
        class_names: names of the prior's classes, a list or by number, so that `class_labels` may be names; optional.

    Raises:
        ValueError: the prior speaks of another number of codes, or of classes than there are names.
    """

    model_cpu_offload_seq = "prior->autoencoder"

    def __init__(self, autoencoder, prior, class_names=None):
        super().__init__()
        if autoencoder.hierarchical:
            raise ValueError(
                f"autoencoder is a {type(autoencoder).__name__}, a hierarchy, which needs a prior for each level"
            )
        if prior.config.codebook_size != autoencoder.codebook_size:
            raise ValueError(
                f"prior has codebook_size={prior.config.codebook_size}, but the autoencoder has "
                f"{autoencoder.codebook_size} codes: they were not trained together"
            )
        if prior.grid_dims != 2 + (autoencoder.num_levels > 1):
            raise ValueError(
                f"prior models codes with {prior.grid_dims} axes, but the autoencoder has {autoencoder.num_levels} "
                "codes at every position of its grid"
            )
        if class_names is not None and len(class_names) != prior.config.num_classes:
            raise ValueError(
                f"class_names must be {prior.config.num_classes}, one for each class of the prior, got {class_names!r}"
            )
        self.register_modules(autoencoder=autoencoder, prior=prior)
        if class_names is not None and not isinstance(class_names, Mapping):  # stock takes a list for a component
            class_names = dict(enumerate(class_names))
        names = None if class_names is None else {str(label): name for label, name in class_names.items()}
        self.register_to_config(class_names=names)
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        batch_size: int | None = None,
        *,
        num_images_per_prompt: int = 1,
        height: int | None = None,
        width: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float = 1.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        known_codes: torch.Tensor | None = None,
        known_mask: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ):
        """Draws images.

        Args:
            class_labels: a class or several, as numbers or as names of `class_names`; of a prior with classes.
            batch_size: how many images, of a prior without classes; 1 by default.
            num_images_per_prompt: images of each class label, in a row.
            height, width: of the image in pixels; by default the grid that the prior was made for.
            temperature, top_k, top_p, guidance_scale, generator, known_codes, known_mask: see the prior's `sample`.
            output_type: "pil", "np" (batch, height, width, channels) in [0, 1], "pt" (batch, channels, height,
                width) in [0, 1], or "codes".
            return_dict: False gives a tuple of one.

        Returns:
            ImagePipelineOutput, whose `images` are what `output_type` says.

        Raises:
            ValueError: an argument that does not fit, named with its value.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {list(OUTPUT_TYPES)}, got {output_type!r}")
        if num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt must be at least 1, got {num_images_per_prompt}")
        if class_labels is not None:
            class_labels = self.get_label_ids(class_labels).repeat_interleave(num_images_per_prompt)
        elif self.prior.config.num_classes == 0:
            batch_size = (1 if batch_size is None else batch_size) * num_images_per_prompt

        codes = self.prior.sample(
            batch_size,
            self._code_shape(height, width),
            class_labels=class_labels,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            guidance_scale=guidance_scale,
            generator=generator,
            known_codes=known_codes,
            known_mask=known_mask,
            progress_bar=self.progress_bar,
        )
        if output_type == "codes":
            images = codes
        else:
            sample = self.autoencoder.detokenize(codes)  # (batch, channels, height, width) in [-1, 1]
            images = self.image_processor.postprocess(sample, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

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

    def _code_shape(self, height, width):
        if height is None and width is None:
            return None
        if height is None or width is None:
            raise ValueError(f"height and width go together, got height={height}, width={width}")
        return self.autoencoder.code_shape((self.autoencoder.config.in_channels, height, width))
