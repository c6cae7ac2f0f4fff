"""What every prior shares: what it declares, its conditions, and what it must give."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from hf_vq.arguments import check_own
from hf_vq.hub import HubConfigMixin, PushMixin
from hf_vq.modes import InferenceVerbs
from hf_vq.priors.conditions import Condition, class_condition
from hf_vq.priors.embedding import sum_in_float32
from hf_vq.priors.inputs import InputChecks
from hf_vq.priors.tokens import CodeTokens, Tokens
from hf_vq.ranges import Samples, Side
from hf_vq.single_file import SingleFileMixin
from hf_vq.weights import CheckedWeights, check_loaded, check_save_options, checked_files, missing_names


@dataclass
class PriorOutput(ModelOutput):
    """Result of a prior.

    Attributes:
        loss: scalar, mean nats per code that is not ignored.
        logits: (batch, *grid, codebook_size); of an autoregressive prior each from the codes drawn before it.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class Prior(InferenceVerbs, CheckedWeights, InputChecks, SingleFileMixin, PushMixin):
    """A model of codes that draws new ones, whatever the way; stands before `PreTrainedModel` among the bases.

    Its `forward(codes, labels=None, return_loss=True, lengths=None, ...)` names its conditions and returns a
    `PriorOutput`; `check_inputs` checks and completes what it got. `lengths` (batch,) int64 tell how many positions of
    an item are real, along the first axis of space (the one after the levels, where there are levels): what is beyond
    them does not count, nor does it change anything.

    Class attributes:
        likelihood: what `log_prob` is: "exact", the log-likelihood itself; "bound", a bound below it; None: there is
            no `log_prob`.
        sampling_options: the keywords of `sample` beyond `batch_size`, `code_shape`, `generator`, `progress_bar` and
            the conditions.
        grid_dims: axes of a grid of codes, that of levels included.
        models_codes: whether its elements are codes; False of one over waveforms, which no tokenizer makes.

    Raises:
        TypeError: at its definition, of a subclass that lacks `sample`, or `log_prob` for its `likelihood`.
    """

    registry_kind = "prior"
    inference_verbs = ("sample", "log_prob", "check_likelihood", "generate")
    main_input_name = "codes"
    # A loss is a mean over real codes. Where all grids are full, the mean over accumulated batches is the mean of
    # their means, and Trainer may simply average; where they are not, our trainer weighs them. (What Trainer would
    # pass as num_items_in_batch counts shifted `labels`, which are not our targets.)
    accepts_loss_kwargs = False
    likelihood: str | None = None
    sampling_options: tuple[str, ...] = ()
    models_codes = True
    grid_dims: int

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        check_own(cls, "sample")
        if cls.sample is Prior.sample:
            raise TypeError(f"{cls.__name__} must define sample(batch_size=None, code_shape=None, *, generator, ...)")
        if cls.likelihood not in ("exact", "bound", None):
            raise TypeError(f"{cls.__name__}.likelihood must be 'exact', 'bound' or None, got {cls.likelihood!r}")
        if (cls.likelihood is None) != (cls.log_prob is Prior.log_prob):
            raise TypeError(
                f"{cls.__name__} must define log_prob and say in likelihood whether it is 'exact' or a 'bound', or "
                f"neither; got likelihood={cls.likelihood!r}"
            )

    @classmethod
    def check_contract(cls) -> None:
        """Raise a TypeError that says what a class lacks to be registered."""
        name, bases = cls.__name__, f"class {cls.__name__}(Prior or AutoregressivePrior, PreTrainedModel)"
        if not issubclass(cls, PreTrainedModel):
            raise TypeError(f"{name} must be a PreTrainedModel of transformers: {bases}")
        if cls.__mro__.index(Prior) > cls.__mro__.index(PreTrainedModel):
            raise TypeError(f"among the bases of {name}, Prior must stand before PreTrainedModel: {bases}")
        config_class = cls.config_class
        if config_class is None or not issubclass(config_class, HubConfigMixin):
            raise TypeError(f"{name}.config_class must be a subclass of PriorConfig, got {config_class!r}")
        if not config_class.model_type:
            raise TypeError(f"{config_class.__name__} must have a model_type, under which saved folders are found")
        if config_class.__name__ != f"{name}Config":
            raise TypeError(f"the config_class of {name} must be called {name}Config, got {config_class.__name__}")
        for field in ("codebook_size", "num_classes", "code_shape", "class_dropout_prob"):
            if not hasattr(config_class, field):
                raise TypeError(f"{config_class.__name__} must have the field {field}, as PriorConfig has")
        if not hasattr(cls, "grid_dims"):
            raise TypeError(f"{name} must define grid_dims, the axes of a grid of codes")
        if cls.forward is PreTrainedModel.forward:
            raise TypeError(f"{name} must define forward(codes, labels=None, return_loss=True, lengths=None, ...)")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """As transformers, but nothing is left to chance.

        Raises:
            ValueError: a folder or repository of another class, or weights that are missing, no floating-point numbers
                or not finite; named.
        """
        base: Any = super()
        with checked_files(pretrained_model_name_or_path, kwargs.get("subfolder")):
            loaded = base.from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        missing = missing_names(info)
        check_loaded(model, missing, pretrained_model_name_or_path, lambda: type(model)(model.config), unsaved=True)
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As transformers; what it cannot do, such as `safe_serialization=False`, is an error before it writes."""
        base: Any = super()
        check_save_options(save_directory, kwargs, PreTrainedModel.save_pretrained)
        self.save_and_push(base.save_pretrained, save_directory, *args, **kwargs)

    def check_loaded(self, missing: Iterable[str], path: str | Path) -> None:
        """Completes a prior that a converter filled; arguments and errors as of `hf_vq.weights.check_loaded`."""
        check_loaded(self, missing, path, lambda: type(self)(self.config))

    def post_init(self) -> None:
        """As transformers, called at the end of a constructor; gradients of embeddings are then summed in float32."""
        super().post_init()
        sum_in_float32(self)

    @property
    def device(self) -> torch.device:
        """Where the weights are; of those that accelerate keeps elsewhere, where it computes with them."""
        device = next(self.parameters()).device  # of super(), torch.compile cannot ask
        if device.type != "meta":
            return device
        hooks = (getattr(module, "_hf_hook", None) for module in self.modules())
        places = (getattr(hook, "execution_device", None) for hook in hooks)
        return next((torch.device(place) for place in places if place is not None), device)

    @property
    def tokens(self) -> Tokens:
        """What the grids are made of."""
        return CodeTokens(self.config.codebook_size)

    def make_conditions(self) -> tuple[Condition, ...]:
        """What the codes may depend on by the config, in the order in which training drops them."""
        return (class_condition(self.config),)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The conditions of the present config."""
        return self.make_conditions()

    @property
    def condition_names(self) -> tuple[str, ...]:
        """Keywords of the conditions, of those too that the config leaves out."""
        return tuple(condition.name for condition in self.conditions)

    def check_likelihood(self, codes: torch.Tensor, lengths: torch.Tensor | None = None, **conditions: Any) -> None:
        """Raise a `ValueError` where `log_prob` would not be what `likelihood` says; arguments as of `log_prob`."""

    def log_prob(self, codes: torch.Tensor, lengths: torch.Tensor | None = None, **conditions: Any) -> torch.Tensor:
        """Log-probability of whole grids or a bound below it, in eval mode and without gradients.

        Args:
            codes: (batch, *grid) int64.
            lengths: (batch,) int64, real positions of each item; None: all.
            conditions: those of `forward`, such as `class_labels` (batch,) int64 where the prior has classes.

        Returns:
            (batch,) nats of the real codes, at most 0.
        """
        raise NotImplementedError(f"{type(self).__name__} has no log_prob: its likelihood is None")

    def sample(
        self,
        batch_size: Samples | None = None,
        code_shape: Sequence[Side] | None = None,
        *,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        progress_bar: Callable[[Iterable], Iterable] | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """Draw codes, in eval mode and without gradients.

        Args:
            batch_size: number of grids of a prior without conditions; with conditions it is theirs.
            code_shape: the grid; `config.code_shape` by default.
            generator: a generator on the CPU or the model's device, or one per grid.
            progress_bar: wraps the loop, such as `tqdm` or a pipeline's `progress_bar`.
            options: those of `sampling_options`, and the conditions of `forward`.

        Returns:
            (batch, *grid) int64.
        """
        raise NotImplementedError(f"{type(self).__name__} must define sample")
