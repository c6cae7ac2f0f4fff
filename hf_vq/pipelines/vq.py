"""Prior and autoencoder in a row: new codes, then the sample they stand for."""

from collections.abc import Sequence

import torch

from hf_vq.pipelines.base import CodesPipeline, check_prior


class VQPipeline(CodesPipeline):
    """Draws images from a prior over the codes of an autoencoder (VQ-VAE, https://arxiv.org/abs/1711.00937).

    Args:
        autoencoder: `VQVAE`, `VQModel` or any autoencoder of ours with one grid of codes.
        prior: `PixelCNN` or any prior over such grids.
        class_names: names of the prior's classes, a list or by number, so that `class_labels` may be names; optional.

    Raises:
        ValueError: the prior speaks of other codes, or of classes than there are names.
    """

    model_cpu_offload_seq = "prior->autoencoder"

    def __init__(self, autoencoder, prior, class_names=None):
        super().__init__()
        if autoencoder.hierarchical:
            raise ValueError(
                f"autoencoder is a {type(autoencoder).__name__}, a hierarchy, which needs a prior for each level: "
                "VQVAE2Pipeline"
            )
        check_prior("prior", prior, autoencoder.codebook_size, autoencoder.grid_dims)
        self.register_modules(autoencoder=autoencoder, prior=prior)
        self._set_up(class_names, prior.config.num_classes)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        batch_size: int | None = None,
        *,
        image=None,
        mask_image=None,
        num_images_per_prompt: int = 1,
        height: int | None = None,
        width: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float = 1.0,
        guidance_steps: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        known_codes: torch.Tensor | None = None,
        known_mask: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **conditions,
    ):
        """Draws images, or completes them.

        Args:
            class_labels: a class or several, as numbers or as names of `class_names`; of a prior with classes.
            batch_size: how many images, of a prior without classes; 1 by default.
            image: a picture to complete (PIL, array or tensor in [0, 1], or several): one for all images, or one each.
            mask_image: white where something new is to be drawn, as in diffusers; codes that stand for no white pixel
                are kept. Codes are drawn in raster order: what is kept below and to the right is not yet known.
            num_images_per_prompt: images of each class label, in a row.
            height, width: of the image in pixels; by default the grid that the prior was made for, or the picture's.
            temperature, top_k, top_p, guidance_scale, guidance_steps, generator, known_codes, known_mask: see the
                prior's `sample`.
            output_type: "pil", "np" (batch, height, width, channels) in [0, 1], "pt" (batch, channels, height,
                width) in [0, 1], or "codes".
            return_dict: False gives a tuple of one.
            conditions: others that the prior takes, such as `prompt_ids`.

        Returns:
            ImagePipelineOutput, whose `images` are what `output_type` says.

        Raises:
            ValueError: an argument that does not fit, named with its value.
        """
        labels, count = self._check_request(
            class_labels, batch_size, num_images_per_prompt, self.prior.config.num_classes, output_type
        )
        if image is not None or mask_image is not None:
            if known_codes is not None or known_mask is not None:
                raise ValueError("image and known_codes exclude each other")
            (known_codes,), (known_mask,), height, width = self._known_of_picture(
                image, mask_image, height, width, count
            )
        shapes = self._code_shapes(height, width)
        if labels is not None:
            conditions["class_labels"] = labels
        codes = self.prior.sample(
            None if conditions else count,
            shapes and shapes[0],
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            guidance_scale=guidance_scale,
            guidance_steps=guidance_steps,
            generator=generator,
            known_codes=known_codes,
            known_mask=known_mask,
            progress_bar=self.progress_bar,
            **conditions,
        )
        return self._finish(codes, output_type, return_dict)
