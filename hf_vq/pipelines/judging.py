"""Rejection sampling: more candidates are drawn than samples are wanted, and those that a judge likes best stay."""

import math
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hf_vq.grids import as_int64
from hf_vq.priors.inputs import check_values, map_tensors
from hf_vq.priors.sampling import Generators, check_generators
from hf_vq.saved import check_files
from hf_vq.weights import check_loaded, missing_names

MOST_CANDIDATES = 2**20


class Judge:
    """A classifier of pictures: how sure it is that each of them shows the class that was asked for.

    Args:
        model: of transformers, such as `ResNetForImageClassification`: its output for `pixel_values` has `logits`.
        processor: its image processor. It gets pictures of 8 bits, as it would find them in files.
        channels: of the samples; grey ones become colour where the model wants that (`num_channels` of its config).
        num_classes: of the samples.
        class_names: of the samples, in order; None: there are none.

    Raises:
        ValueError: the model takes other pictures, or knows other classes. Classes are the same where their names
            are, and where either side has no names, where their numbers are.
    """

    def __init__(
        self, model: Any, processor: Any, channels: int, num_classes: int, class_names: Sequence[str] | None = None
    ):
        if num_classes == 0:
            raise ValueError(
                f"judge, a {type(model).__name__}, given, but the prior has no classes that it could tell"
            )
        self.model, self.processor = model, processor
        wanted = getattr(model.config, "num_channels", 3)
        if channels != wanted and (channels, wanted) != (1, 3):
            raise ValueError(f"judge takes pictures of {wanted} channels, but samples have {channels}")
        self.copies = wanted // channels  # of each channel
        if model.config.num_labels != num_classes:
            raise ValueError(f"judge knows {model.config.num_labels} classes, but the prior has {num_classes}")
        labels = [model.config.id2label.get(label) for label in range(num_classes)]
        self.places = torch.arange(num_classes)  # of our classes among the judge's
        unnamed = [f"LABEL_{label}" for label in range(num_classes)]  # as transformers calls them
        if class_names is not None and labels != unnamed and labels != list(class_names):
            for name in class_names:
                if labels.count(name) != 1:
                    raise ValueError(f"judge must know the class {name!r} once, its labels are {reprlib.repr(labels)}")
            self.places = torch.tensor([labels.index(name) for name in class_names])

    def log_probs(self, samples: torch.Tensor, device: torch.device | str) -> torch.Tensor:
        """Logarithms of the probabilities of the samples' classes, (batch, num_classes) float64 on the CPU.

        Args:
            samples: (batch, channels, height, width) in [-1, 1].
            device: where the judge computes.

        Raises:
            ValueError: the model gives no logits of all classes, or NaN.
        """
        pixels = ((samples.float() / 2 + 0.5).clamp(0, 1) * 255).round().byte().cpu()
        pixels = pixels.repeat(1, self.copies, 1, 1)
        inputs = self.processor(list(pixels), return_tensors="pt", input_data_format="channels_first")
        dtype = next((weight.dtype for weight in self.model.parameters()), torch.float32)
        output = self.model(pixel_values=inputs["pixel_values"].to(device, dtype))
        logits, name = getattr(output, "logits", None), type(self.model).__name__
        shape = (len(samples), len(self.places))
        if logits is None or logits.shape != shape:
            found = "none" if logits is None else tuple(logits.shape)
            raise ValueError(f"judge, a {name}, must give logits {shape}, got {found}")
        log_probs = logits.double().cpu().log_softmax(dim=1)[:, self.places]
        if log_probs.isnan().any():
            raise ValueError(f"judge, a {name}, gives NaN: its weights or its dtype are at fault")
        return log_probs


@dataclass
class RejectionSampling:
    """Draws samples and keeps those that a judge likes best (VQ-VAE-2, https://arxiv.org/abs/1906.00446, section 3.3).

    Attributes:
        judge: None where all are kept.
        decode: from codes to samples.
        device: where the judge computes.
        acceptance_rate: share of the candidates that are kept, above 0.
        batch_size: candidates that are drawn at once; another number changes nothing but time and memory.
    """

    judge: Judge | None
    decode: Callable[[Any], torch.Tensor]
    device: torch.device
    acceptance_rate: float
    batch_size: int

    def draw(
        self,
        sample: Callable[[int, Generators, list[dict[str, Any]]], Any],
        requests: list[dict[str, Any]],
        labels: torch.Tensor | None,
        count: int,
        generator: Generators,
    ) -> Any:
        """Codes of `count` samples.

        Samples of which the same is asked share their candidates, the best of which come first. With a generator for
        each sample, each is the best of candidates of its own. Every candidate has random numbers of its own.

        Args:
            sample: makes codes of a number of samples, generators, and requests as below with a row for each.
            requests: keywords for every prior, all of them (count, ...), or tuples of such.
            labels: (count,), the asked classes; None where there are none, and no judge.
            count: number of samples.
            generator: one, or one for each sample.
        """
        if self.judge is None or labels is None:
            return sample(count, generator, requests)
        check_generators(generator, count)
        labels = as_int64("class_labels", labels).cpu()
        check_values("class_labels", labels, len(self.judge.places))  # priors know one more: no class
        requests = _read_rows(requests, count)
        alone = isinstance(generator, Sequence)
        pools = [torch.tensor([row]) for row in range(count)] if alone else _pools(requests, labels)
        sizes = [max(len(pool), math.ceil(len(pool) / self.acceptance_rate - 1e-6)) for pool in pools]
        if sum(sizes) > MOST_CANDIDATES:
            raise ValueError(f"acceptance_rate={self.acceptance_rate} asks for {sum(sizes)} candidates, too many")
        rows = torch.cat([pool[:1].expand(size) for pool, size in zip(pools, sizes, strict=True)])
        seeds = _draw_seeds(sizes, generator)
        drawn, scores = [], []
        for part in torch.arange(len(rows)).split(self.batch_size):
            chosen = rows[part]
            sources = [torch.Generator().manual_seed(seed) for seed in seeds[part].tolist()]
            codes = sample(len(part), sources, _pick(requests, chosen))
            drawn.append(codes)
            log_probs = self.judge.log_probs(self.decode(codes), self.device)
            scores.append(log_probs.gather(1, labels[chosen, None])[:, 0])  # of the asked class
        kept, likings = torch.empty(count, dtype=torch.int64), torch.cat(scores)
        for pool, candidates in zip(pools, torch.arange(len(rows)).split(sizes), strict=True):
            ranks = likings[candidates].argsort(descending=True, stable=True)
            kept[pool] = candidates[ranks[: len(pool)]]
        return map_tensors(lambda *parts: torch.cat(parts)[kept], *drawn)


def load_judge(folder: str | Path) -> tuple[Any, Any]:
    """Classifier and image processor of a folder, as transformers saves them.

    Raises:
        ValueError: it holds no such two, or weights are missing or not finite.
    """
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    check_files(folder)
    try:
        model, info = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
        processor = AutoImageProcessor.from_pretrained(folder)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"judge={str(folder)!r} is no classifier with an image processor: {reason:.200}") from error
    check_loaded(model, missing_names(info), folder, lambda: type(model)(model.config))
    return model.eval(), processor


def _read_rows(requests, count):
    """Requests with integers as int64; a ValueError where one has not a row for each sample."""

    def read(name, value):
        whole = isinstance(value, torch.Tensor) and (value.is_floating_point() or value.dtype == torch.bool)
        value = value if whole else as_int64(name, value)
        if value.shape[:1] != (count,):
            raise ValueError(f"{name} must have a row for each of {count} samples, got {tuple(value.shape)}")
        return value

    return [{name: map_tensors(partial(read, name), value) for name, value in request.items()} for request in requests]


def _pick(requests, rows):
    """The rows of requests."""
    return [
        {name: map_tensors(lambda one: one[rows.to(one.device)], value) for name, value in request.items()}
        for request in requests
    ]


def _pools(requests, labels):
    """Rows of which the same is asked, a tensor of them for each thing that is asked."""
    values = [labels]
    for value in (value for request in requests for value in request.values()):
        values.extend(value if isinstance(value, tuple) else [value])
    number = _kinds(torch.stack([_kinds(value.cpu()) for value in values], dim=1))
    return [(number == kind).nonzero()[:, 0] for kind in range(int(number.max()) + 1)]


def _kinds(value):
    """A number for each row, the same for equal rows."""
    value = value.double() if value.is_floating_point() else value  # half precision has no order here
    return value.reshape(len(value), -1).unique(dim=0, return_inverse=True)[1]


def _draw_seeds(sizes, generator):
    """A seed for each of so many candidates of each pool."""

    def seeds(number, source):
        device = None if source is None else source.device
        return torch.randint(2**63 - 1, (number,), generator=source, device=device).cpu()

    if not isinstance(generator, Sequence):
        return seeds(sum(sizes), generator)
    return torch.cat([seeds(size, one) for size, one in zip(sizes, generator, strict=True)])
