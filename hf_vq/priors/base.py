"""What every prior shares: what it declares, its conditions, and what it must give."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from accelerate.utils import align_module_device, has_offloaded_params
from torch import nn
from transformers.utils import ModelOutput

from hf_vq.hub import PushMixin
from hf_vq.priors.conditions import Condition, class_condition
from hf_vq.priors.inputs import InputChecks
from hf_vq.priors.tokens import CodeTokens, Tokens


@dataclass
class PriorOutput(ModelOutput):
    """Result of a prior.

    Attributes:
        loss: scalar, mean nats per code that is not ignored.
        logits: (batch, *grid, codebook_size); of an autoregressive prior each from the codes drawn before it.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, and afterwards each of its modules back in the mode it had.

    Weights that accelerate keeps elsewhere are fetched for as long: some are read without their module being called.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with ExitStack() as fetched:
            for module in filter(has_offloaded_params, model.modules()):
                fetched.enter_context(align_module_device(module))
            yield
    finally:
        for module, training in modes:
            module.training = training


class Prior(InputChecks, PushMixin):
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

    Raises:
        TypeError: at its definition, of a subclass that lacks `sample`, or `log_prob` for its `likelihood`.
    """

    main_input_name = "codes"
    # A loss is a mean over real codes. Where all grids are full, the mean over accumulated batches is the mean of
    # their means, and Trainer may simply average; where they are not, our trainer weighs them. (What Trainer would
    # pass as num_items_in_batch counts shifted `labels`, which are not our targets.)
    accepts_loss_kwargs = False
    likelihood: str | None = None
    sampling_options: tuple[str, ...] = ()
    grid_dims: int

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if cls.sample is Prior.sample:
            raise TypeError(f"{cls.__name__} must define sample(batch_size=None, code_shape=None, *, generator, ...)")
        if cls.likelihood not in ("exact", "bound", None):
            raise TypeError(f"{cls.__name__}.likelihood must be 'exact', 'bound' or None, got {cls.likelihood!r}")
        if (cls.likelihood is None) != (cls.log_prob is Prior.log_prob):
            raise TypeError(
                f"{cls.__name__} must define log_prob and say in likelihood whether it is 'exact' or a 'bound', or "
                f"neither; got likelihood={cls.likelihood!r}"
            )

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

    @classmethod
    def from_single_file(cls, path, config=None, format=None):
        """A checkpoint of another project as a prior of this class; arguments and errors as of autoencoders'."""
        from hf_vq.converters import load_single_file

        return load_single_file(cls, path, config, format)

    def check_likelihood(self, codes: torch.Tensor, lengths: torch.Tensor | None = None, **conditions) -> None:
        """Raise a `ValueError` where `log_prob` would not be what `likelihood` says; arguments as of `log_prob`."""

    def log_prob(self, codes: torch.Tensor, lengths: torch.Tensor | None = None, **conditions) -> torch.Tensor:
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
        batch_size: int | None = None,
        code_shape: Sequence[int] | None = None,
        *,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        progress_bar: Callable[[Iterable], Iterable] | None = None,
        **options,
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
