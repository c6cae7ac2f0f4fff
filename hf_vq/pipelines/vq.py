"""Prior and autoencoder in a row: new codes, then the sample they stand for."""

from collections.abc import Sequence
from typing import Any

import torch

from hf_vq.pipelines.base import ClassNames, check_prior, split_keywords
from hf_vq.pipelines.images import PicturesPipeline
from hf_vq.ranges import Count, Samples, Side, Size, TopP, Weight
from hf_vq.registry import register


@register
class VQPipeline(PicturesPipeline):
    """Draws samples from a prior over the codes of an autoencoder (VQ-VAE, https://arxiv.org/abs/1711.00937).

    Samples are images where the autoencoder is one of images; of another modality they are in its own form. One that
    has a pipeline of its own, as sounds have `VQAudioPipeline`, is refused.

    Args:
        autoencoder: `VQVAE`, `VQModel` or any autoencoder of ours with one grid of codes.
        prior: `PixelCNN` or any prior over such grids.
        class_names: names of the prior's classes, a list or by number, so that `class_labels` may be names; optional.
        judge: a classifier of transformers with the same classes, such as `ResNetForImageClassification`, by which
            calls with an `acceptance_rate` choose; optional.
        judge_processor: its image processor.

    Raises:
        ValueError: the prior speaks of other codes, or of classes than there are names, or the judge of others.
    """

    prior: Any  # any of ours
    model_cpu_offload_seq: Any = "prior->autoencoder->judge"
    _optional_components = ["judge", "judge_processor"]

    def __init__(
        self,
        autoencoder: Any,
        prior: Any,
        class_names: ClassNames | None = None,
        judge: Any = None,
        judge_processor: Any = None,
    ):
        super().__init__()
        if autoencoder.hierarchical:
            raise ValueError(
                f"autoencoder is a {type(autoencoder).__name__}, a hierarchy, which needs a prior for each grid: "
                "VQVAE2Pipeline"
            )
        self._check_modality(autoencoder)
        check_prior("prior", prior, autoencoder.codebook_size, autoencoder.grid_dims)
        self.register_modules(autoencoder=autoencoder, prior=prior, judge=judge, judge_processor=judge_processor)
        self._set_up(class_names, prior.config.num_classes)
        self.sample_judge  # noqa: B018  (it checks what it is made of)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Count | str | Sequence[Count | str] | torch.Tensor | None = None,
        batch_size: Samples | None = None,
        *,
        image: Any = None,
        mask_image: Any = None,
        num_images_per_prompt: Samples = 1,
        height: Side | None = None,
        width: Side | None = None,
        temperature: Weight = 1.0,
        top_k: Size | None = None,
        top_p: TopP | None = None,
        guidance_scale: Weight = 1.0,
        guidance_steps: Count | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        known_codes: torch.Tensor | None = None,
        known_mask: torch.Tensor | None = None,
        acceptance_rate: TopP = 1.0,
        candidate_batch_size: Samples = 64,
        output_type: str | None = None,
        return_dict: bool = True,
        **keywords: Any,
    ) -> Any:
        """Draws images, or completes them.

        Args:
            class_labels: a class or several, as numbers or as names of `class_names`; of a prior with classes.
            batch_size: how many images, of a prior without classes; 1 by default.
            image: a picture to complete (PIL, array or tensor, floats in [0, 1] or integers, or several; see
                `hf_vq.modalities.image_inputs`): one for all images, one for each class label or prompt, or one each.
            mask_image: white where something new is to be drawn, as in diffusers; codes that stand for no white pixel
                are kept. A prior that draws codes in raster order does not yet know what is kept below and to the
                right; `MaskedPrior` and `DiscreteDiffusionPrior` see all that is kept.
            num_images_per_prompt: images of each class label, prompt and other condition, in a row.
            height, width: of the image in pixels; by default the grid that the prior was made for, or the picture's.
            temperature, top_k, top_p, guidance_scale, guidance_steps, generator, known_codes, known_mask: see the
                prior's `sample`; a prior that has no such option takes the default only.
            acceptance_rate: share of the drawn images that are kept, those that the pipeline's judge is surest of; see
                `hf_vq.pipelines.judging.RejectionSampling`. 1 keeps all.
            candidate_batch_size: of them, how many are drawn at once.
            output_type: of images "pil" (the default), "np" (batch, height, width, channels) in [0, 1] or "pt" (batch,
                channels, height, width) in [0, 1]; of tensors "pt" (batch, channels, *space) in [-1, 1]; or "codes".
            return_dict: False gives a tuple of one.
            keywords: other conditions and options that the prior declares, such as `prompt_ids`.

        Returns:
            ImagePipelineOutput, whose `images` are what `output_type` says; where samples are tensors,
            `SamplePipelineOutput`, whose `samples` are.

        Raises:
            TypeError: a keyword that the prior does not declare.
            ValueError: an argument that does not fit, named with its value.
        """
        rejection = self._rejection(acceptance_rate, candidate_batch_size)
        labels, count = self._check_request(
            class_labels, batch_size, num_images_per_prompt, self.num_classes, output_type, [keywords], [self.prior]
        )
        known, shape = self._known(
            known_codes, known_mask, image, mask_image, height, width, count, num_images_per_prompt
        )
        keywords |= {
            "temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance_scale": guidance_scale,
            "guidance_steps": guidance_steps, **known,
        }  # fmt: skip
        if labels is not None:
            keywords["class_labels"] = labels
        options, request = split_keywords("prior", self.prior, keywords)
        codes = self._draw_grid(rejection, shape, options, request, labels, count, generator)
        return self._finish(codes, output_type, return_dict)
