"""Changing a learned codebook between two trainings: more codes, fewer codes, a new start."""

from typing import Any

import torch
from torch import nn

from hf_vq.arguments import checked
from hf_vq.hosts import ModuleHost
from hf_vq.quantizers.checks import check_codebook_fits, check_positive_int

PER_CODE = ("embedding.weight", "cluster_size", "embedding_sum")  # tensors with a row per code


class CodebookSurgery(ModuleHost):
    """For a `CodebookQuantizer`. An optimizer made before `resize` holds the old codebook: make a new one after it."""

    codebook_size: int
    initialized: bool
    embedding: Any  # nn.Embedding or FrozenCodebook
    cluster_size: torch.Tensor
    embedding_sum: torch.Tensor  # of an EMA codebook
    _pending: tuple[torch.Tensor, ...] | None

    @checked
    @torch.no_grad()
    def split(self, count: int) -> None:
        """Moves the `count` least used codes beside the `count` most used ones, which share their use with them.

        Codebook splitting (UViM, https://arxiv.org/abs/2205.10337, section 3.2): unused codes come to where latents
        are many.

        Args:
            count: at most half of the codes.

        Raises:
            ValueError: another count, or a quantizer that does not know how often its codes are used.
        """
        check_positive_int(count=count)
        if 2 * count > self.codebook_size:
            raise ValueError(f"count must be at most half of the {self.codebook_size} codes, got {count}")
        order = self._most_used_first()
        self._share(order[:count], order[-count:])

    @checked
    @torch.no_grad()
    def resize(self, codebook_size: int) -> torch.Tensor:
        """Changes the number of codes: the most used ones stay, in their order; new ones split the most used.

        Args:
            codebook_size: the new number of codes.

        Returns:
            (codebook_size,) int64: the old index of every code, or that of the code it was split from.

        Raises:
            ValueError: no positive number, or a quantizer that does not know how often its codes are used.
        """
        check_positive_int(codebook_size=codebook_size)
        check_codebook_fits(codebook_size, self.embedding.weight.shape[1])
        origin = self._most_used_first()[:codebook_size].sort().values
        self._take(origin)
        while self.codebook_size < codebook_size:
            size = self.codebook_size
            sources = self._most_used_first()[: codebook_size - size]
            targets = torch.arange(size, size + sources.shape[0], device=sources.device)
            self._take(torch.cat([torch.arange(size, device=sources.device), sources]))
            self._share(sources, targets)
            origin = torch.cat([origin, origin[sources]])
        return origin

    @torch.no_grad()
    def reset(self) -> None:
        """Forgets the codebook: a random one, and k-means at the next training forward."""
        self.embedding.weight.copy_(self.first_codebook())
        self._start_averages(torch.ones(self.codebook_size, device=self.embedding.weight.device))
        self.initialized, self._pending = False, None

    def first_codebook(self) -> torch.Tensor:
        """A random codebook, (codebook_size, code_dim)."""
        raise NotImplementedError

    def _start_averages(self, counts):
        """Sets the averages to what stands for the present codebook, each code used `counts` a step."""

    def _most_used_first(self):
        if "cluster_size" not in self._buffers:
            raise ValueError("how often codes are used is unknown: this quantizer was made with restart_threshold=0")
        return self.cluster_size.argsort(descending=True, stable=True)

    def _take(self, codes):
        """A codebook of these codes."""
        for name in PER_CODE:
            owner, _, attribute = name.rpartition(".")
            module = self.get_submodule(owner)
            tensor = getattr(module, attribute, None)
            if tensor is not None:
                taken = tensor[codes]
                setattr(module, attribute, nn.Parameter(taken) if isinstance(tensor, nn.Parameter) else taken)
        self.codebook_size, self._pending = codes.shape[0], None
        if isinstance(self.embedding, nn.Embedding):
            self.embedding.num_embeddings = self.codebook_size

    def _share(self, sources, targets):
        """Codes and use of `targets` become those of `sources`: half the use each, a hundredth of a length apart."""
        codes = self.embedding.weight[sources]
        step = torch.randn_like(codes)
        step *= 0.005 * codes.norm(dim=1, keepdim=True) / step.norm(dim=1, keepdim=True)
        size = self.cluster_size[sources] / 2
        for indices, shifted in ((sources, codes - step), (targets, codes + step)):
            self.embedding.weight[indices], self.cluster_size[indices] = shifted, size
            if "embedding_sum" in self._buffers:
                self.embedding_sum[indices] = shifted * size[:, None]
