"""A prior for each grid of a hierarchy, coarse to fine, then the autoencoder: VQ-VAE-2's way to new images."""

from collections.abc import Sequence
from typing import Any

import torch

from hf_vq.pipelines.base import (
    ClassNames,
    check_grid_keywords,
    check_prior,
    for_each_grid,
    move_known,
    split_keywords,
)
from hf_vq.pipelines.images import PicturesPipeline
from hf_vq.ranges import Count, Samples, Side, Size, TopP, Weight
from hf_vq.registry import register


@register
class VQVAE2Pipeline(PicturesPipeline):
    """Draws images from a hierarchy of priors (VQ-VAE-2, https://arxiv.org/abs/1906.00446, section 3.2).

    Args:
        autoencoder: `VQVAE2` of two or three grids.
        top_prior: a prior over the coarsest codes, such as a `PixelSNAIL` with attention.
        bottom_prior: a prior over the finest codes that takes the coarser ones as `context_codes`.
        middle_prior: of three grids, that of the middle one.
        class_names: names of the priors' classes, a list or by number, so that `class_labels` may be names; optional.
        judge, judge_processor: see `VQPipeline`.

    Raises:
        ValueError: more than three grids, a prior too few or too many, or one that speaks of other codes.
    """

    top_prior: Any
    middle_prior: Any  # None where there are two grids
    bottom_prior: Any
    model_cpu_offload_seq: Any = "top_prior->middle_prior->bottom_prior->autoencoder->judge"
    _optional_components = ["middle_prior", "judge", "judge_processor"]

    def __init__(
        self,
        autoencoder: Any,
        top_prior: Any,
        bottom_prior: Any,
        middle_prior: Any = None,
        class_names: ClassNames | None = None,
        judge: Any = None,
        judge_processor: Any = None,
    ):
        super().__init__()
        names = autoencoder.grid_names
        if not autoencoder.hierarchical or len(names) not in (2, 3):
            raise ValueError(
                f"autoencoder must be a hierarchy of two or three grids, got {type(autoencoder).__name__} with "
                f"{len(names) or 1}"
            )
        if (middle_prior is not None) != (len(names) == 3):
            raise ValueError(f"middle_prior must be {'given' if len(names) == 3 else 'None'}: grids are {names}")
        self.register_modules(
            autoencoder=autoencoder, top_prior=top_prior, bottom_prior=bottom_prior, middle_prior=middle_prior,
            judge=judge, judge_processor=judge_processor,
        )  # fmt: skip
        classes = {prior.config.num_classes for prior in self.priors}
        if len(classes - {0}) > 1:
            raise ValueError(f"the priors must have the same classes, got num_classes {sorted(classes)}")
        for index, (name, prior, size) in enumerate(zip(names, self.priors, autoencoder.codebook_sizes, strict=True)):
            check_prior(f"{name}_prior", prior, size, autoencoder.grid_dims)
            if index and "context_codes" not in prior.condition_names:
                raise ValueError(f"{name}_prior, a {type(prior).__name__}, does not take context_codes")
        self._set_up(class_names, max(classes))
        self.sample_judge  # noqa: B018  (it checks what it is made of)

    @property
    def priors(self) -> list[Any]:
        """The priors, coarse to fine."""
        return [prior for prior in (self.top_prior, self.middle_prior, self.bottom_prior) if prior is not None]

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
        temperature: Weight | Sequence[Weight] = 1.0,
        top_k: Size | Sequence[Size | None] | None = None,
        top_p: TopP | Sequence[TopP | None] | None = None,
        guidance_scale: Weight | Sequence[Weight] = 1.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        known_codes: Sequence[torch.Tensor] | None = None,
        known_mask: Sequence[torch.Tensor] | None = None,
        acceptance_rate: TopP = 1.0,
        candidate_batch_size: Samples = 64,
        output_type: str | None = None,
        return_dict: bool = True,
        **keywords: Any,
    ) -> Any:
        """Draws images, or completes them.

        Args:
            class_labels, batch_size, image, mask_image, num_images_per_prompt, acceptance_rate, candidate_batch_size,
                output_type, return_dict: see `VQPipeline`; "codes" gives a tuple, coarse to fine.
            height, width: of the image in pixels; by default the grid that the top prior was made for.
            temperature, top_k, top_p, guidance_scale: see the priors' `sample`; one for all grids, or one for each,
                coarse to fine. A prior that has no such option takes the default only.
            generator: a generator, or one for each image; the grids draw from it one after the other.
            known_codes, known_mask: of every grid, coarse to fine; see the priors' `sample`.
            keywords: other options that the priors declare, one for all grids, or one for each, None where the prior
                of a grid takes none.

        Returns:
            ImagePipelineOutput, whose `images` are what `output_type` says.

        Raises:
            TypeError: a keyword that a prior does not declare.
            ValueError: an argument that does not fit, named with its value.
        """
        priors, rejection = self.priors, self._rejection(acceptance_rate, candidate_batch_size)
        check_grid_keywords(priors, keywords)
        given = for_each_grid(len(priors), **keywords)
        labels, count = self._check_request(
            class_labels, batch_size, num_images_per_prompt, self.num_classes, output_type, given, priors
        )
        known_codes, known_mask, shapes = self._known_and_shapes(
            image, mask_image, height, width, known_codes, known_mask, count, num_images_per_prompt
        )
        shapes = shapes or self._default_shapes()
        common = for_each_grid(
            len(priors), temperature=temperature, top_k=top_k, top_p=top_p, guidance_scale=guidance_scale,
            known_codes=known_codes, known_mask=known_mask,
        )  # fmt: skip
        names = [f"{name}_prior" for name in self.autoencoder.grid_names]
        asked = [first | own for first, own in zip(common, given, strict=True)]
        options, requests = zip(*map(split_keywords, names, priors, asked), strict=True)  # all before any work
        for prior, chosen, request in zip(priors, options, requests, strict=True):
            move_known(chosen, request)
            request |= {"class_labels": labels} if prior.config.num_classes else {}

        def sample(number, generator, requests):
            codes: tuple[torch.Tensor, ...] = ()
            for prior, shape, chosen, request in zip(priors, shapes, options, requests, strict=True):
                request = {**request, **({"context_codes": codes} if codes else {})}
                codes = (*codes, self._sample(prior, shape, number, generator, chosen, request))
            return codes

        codes = rejection.draw(sample, list(requests), labels, count, generator)
        return self._finish(codes, output_type, return_dict)

    def _default_shapes(self):
        """Shapes of all grids from that of the top prior."""
        top = self.top_prior.config.code_shape
        if top is None:
            raise ValueError("height and width are missing: the top prior has no code_shape")
        coarsest, *_ = strides = self.autoencoder.grid_strides
        return [
            tuple(size * whole // stride for size, whole, stride in zip(top, coarsest, grid, strict=True))
            for grid in strides
        ]
