"""What pipelines of images share: sizes in pixels, pictures to complete, and a judge of what was drawn."""

from typing import Any

import torch.nn.functional as F
from diffusers.image_processor import VaeImageProcessor

from hf_vq.grids import as_grids
from hf_vq.modalities.image import IMAGE
from hf_vq.modalities.image_inputs import read_masks, read_pictures, stock_images, stock_masks
from hf_vq.pipelines.base import CodesPipeline, move_known
from hf_vq.pipelines.judging import Judge, RejectionSampling


class PicturesPipeline(CodesPipeline):
    """A pipeline that takes sizes, pictures and a judge where its autoencoder is one of images."""

    prior: Any
    judge: Any = None  # of transformers
    judge_processor: Any = None

    @property
    def image_processor(self) -> VaeImageProcessor:
        """Pictures of any form to samples in [-1, 1], as stock pipelines have it."""
        return stock_images()

    @property
    def mask_processor(self) -> VaeImageProcessor:
        """Masks of any form to (batch, 1, height, width), 1 where something new is to be drawn."""
        return stock_masks()

    @property
    def sample_judge(self) -> Judge | None:
        """The judge, if there is one, as this pipeline asks it; a ValueError where it does not fit the pipeline."""
        if (self.judge is None) != (self.judge_processor is None):
            missing = "judge" if self.judge is None else "judge_processor"
            raise ValueError(f"judge and judge_processor go together: {missing} is missing")
        if self.judge is None:
            return None
        self._check_images("judge")
        names = self.config.class_names
        ordered = None if names is None else [names[str(label)] for label in range(self.num_classes)]
        return Judge(self.judge, self.judge_processor, self.autoencoder.in_channels, self.num_classes, ordered)

    def _rejection(self, acceptance_rate, batch_size):
        """How samples are drawn and which are kept."""
        judge = None if acceptance_rate == 1 else self.sample_judge
        if acceptance_rate != 1 and judge is None:
            raise ValueError(f"acceptance_rate={acceptance_rate} needs a judge, but this pipeline has none")
        return RejectionSampling(
            judge, self.autoencoder.detokenize, self._execution_device, acceptance_rate, batch_size
        )

    def _draw_grid(self, rejection, shape, options, request, labels, count, generator):
        """Codes of the prior of a pipeline with one grid; arguments as of `_sample` and `RejectionSampling.draw`."""
        move_known(options, request)

        def sample(number, generator, requests):
            return self._sample(self.prior, shape, number, generator, options, requests[0])

        return rejection.draw(sample, [request], labels, count, generator)

    def _check_images(self, name):
        if self.autoencoder.modality != IMAGE.name:
            raise ValueError(f"{name} given, but {type(self.autoencoder).__name__} is no autoencoder of images")

    def _known(self, known_codes, known_mask, image, mask_image, height, width, count, copies):
        """What is known of the codes of one grid, options of its prior by name, and its shape or None."""
        given = known_codes is not None or known_mask is not None
        codes, masks, shapes = self._known_and_shapes(
            image, mask_image, height, width, [known_codes] if given else None, [known_mask] if given else None,
            count, copies,
        )  # fmt: skip
        known = {} if codes is None else {"known_codes": codes[0], "known_mask": masks[0]}
        return known, None if shapes is None else shapes[0]

    def _known_and_shapes(self, image, mask_image, height, width, known_codes, known_mask, num_images, copies):
        """What is known of the codes, a list of one entry a grid or None, and the shape of every grid or None.

        Raises:
            ValueError: arguments that exclude each other, or pictures for an autoencoder of something else.
        """
        for name, value in {"image": image, "mask_image": mask_image, "height": height, "width": width}.items():
            if value is not None:
                self._check_images(name)
        if image is not None or mask_image is not None:
            if known_codes is not None or known_mask is not None:
                raise ValueError("image and known_codes exclude each other")
            known_codes, known_mask, height, width = self._known_of_picture(
                image, mask_image, height, width, num_images, copies
            )
        return known_codes, known_mask, self._code_shapes(height, width)

    def _code_shapes(self, height, width):
        """Shape of every grid for an image of this size, coarse to fine; None without a size."""
        if height is None and width is None:
            return None
        if height is None or width is None:
            raise ValueError(f"height and width go together, got height={height}, width={width}")
        return self.autoencoder.code_shapes((self.autoencoder.in_channels, height, width))

    def _known_of_picture(self, image, mask_image, height, width, num_images, copies):
        """Codes of a picture and where they are to be kept, one entry a grid, coarse to fine; its height and width.

        A code is drawn anew where the mask touches any of the pixels that it stands for. Of the images, `copies` in a
        row are of one class label or prompt.
        """
        if image is None or mask_image is None:
            missing = "image" if image is None else "mask_image"
            raise ValueError(f"image and mask_image go together: {missing} is missing")
        sample = read_pictures(image, self.autoencoder.in_channels, self.autoencoder.processor, height, width)
        height, width = sample.shape[-2:]
        mask = read_masks(mask_image, height, width)  # (n, 1, height, width), 1: new
        for name, value in (("image", sample), ("mask_image", mask)):
            if len(value) not in (1, num_images // copies, num_images):
                raise ValueError(f"{name} must be one, or one for each of {num_images} images, got {len(value)}")
        device, dtype = self._execution_device, self.autoencoder.dtype
        grids = as_grids(self.autoencoder.tokenize(sample.to(device, dtype)))
        known_codes, known_masks = [], []
        for codes, strides in zip(grids, self.autoencoder.grid_strides, strict=True):
            kept = F.max_pool2d(mask.to(device), strides) == 0  # (n, 1, *grid)
            kept = kept if codes.ndim == 4 else kept[:, 0]  # levels of a residual quantizer are kept together
            known_codes.append(codes.repeat_interleave(num_images // len(codes), dim=0))
            kept = kept.expand(-1, *codes.shape[1:])
            known_masks.append(kept.repeat_interleave(num_images // len(kept), dim=0))
        return known_codes, known_masks, height, width
