"""A training whose numbers are no numbers: what is at fault, and that it stops before anything moves or is written."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn


class DivergenceError(RuntimeError):
    """The data, the loss, its gradient or the weights are NaN or infinite; the message names step and term.

    Attributes:
        everywhere: whether all processes raise it in the same step.
    """

    everywhere = False

    @classmethod
    def of_all(cls, message: str) -> "DivergenceError":
        """One that all processes raise, by figures that they share."""
        error = cls(message)
        error.everywhere = True
        return error


def is_finite(value: Any) -> bool:
    """Whether a tensor holds neither NaN nor infinity; integers and other objects do not."""
    return not (isinstance(value, torch.Tensor) and value.is_floating_point()) or bool(torch.isfinite(value).all())


Rows = Callable[[], Sequence[int] | None]


def check_batch(step: int, batch: Mapping[str, Any], find_rows: Rows = lambda: None) -> None:
    """Raise a `DivergenceError` for the first entry of a batch that holds NaN or infinity.

    Args:
        step: that the batch is for, from 1 on.
        batch: tensors (batch, ...) by name.
        find_rows: asked for the rows of the data set that its items are; None where they are not known.
    """
    for name, value in batch.items():
        if is_finite(value):
            continue
        items, rows = value if value.ndim else value[None], find_rows()
        bad = next(index for index, item in enumerate(items) if not is_finite(item))
        where = f"item {bad} of the batch" if rows is None else f"row {rows[bad]} of the data set"
        raise DivergenceError(f"step {step}: the data hold NaN or infinity: {name} of {where}")


def find_nonfinite(module: nn.Module) -> str | None:
    """The first parameter that holds NaN or infinity, or buffer that holds NaN, by name; None where there is none.

    (An infinite buffer may be meant, such as a mask.)
    """
    for name, parameter in module.named_parameters():
        if not parameter.is_meta and not is_finite(parameter):
            return name
    for name, buffer in module.named_buffers():
        if not buffer.is_meta and buffer.is_floating_point() and bool(buffer.isnan().any()):
            return name
    return None


def check_weights_finite(step: int, modules: Mapping[str, nn.Module]) -> None:
    """Raise a `DivergenceError` that names the first weight, of these modules by name, that is no number.

    Args:
        step: that the weights are the result of.
        modules: of one module alone, its weights are named without it.
    """
    for name, module in modules.items():
        found = find_nonfinite(module)
        if found is not None:
            owner = f" of {name}" if len(modules) > 1 else ""
            raise DivergenceError(f"step {step}: the weights hold NaN or infinity: {found}{owner}")


def check_terms(step: int, terms: Mapping[str, float], gradient_norm: float | None, prefix: str = "") -> None:
    """Raise a `DivergenceError` for a loss or a gradient norm that is no finite number, with the terms that are none.

    Args:
        step: from 1 on.
        terms: `loss`, and whatever it is made of, by name.
        gradient_norm: None: it does not count.
        prefix: of the names.
    """
    norm = "" if gradient_norm is None else f", gradient norm {gradient_norm}"
    if not is_number(terms["loss"]):
        parts = [f"{name} {value}" for name, value in terms.items() if name != "loss" and not is_number(value)]
        told = f" ({', '.join(parts)})" if parts else ""
        raise DivergenceError.of_all(f"step {step}: {prefix}loss is {terms['loss']}{told}{norm}")
    if gradient_norm is not None and not is_number(gradient_norm):
        raise DivergenceError.of_all(
            f"step {step}: the gradient norm of {prefix}loss is {gradient_norm}, the loss itself {terms['loss']}"
        )


def is_number(value: float) -> bool:
    """Whether a number is finite."""
    return value - value == 0


@contextlib.contextmanager
def telling_divergence(step: int | Callable[[], int], term: str, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Within: an error whose cause is NaN or infinity is a `DivergenceError` that names it.

    Quantizers, distributions and checks of a likelihood refuse such numbers with errors of their own, which do not
    know of steps.

    Args:
        step: from 1 on; or a function that tells it.
        term: what is computed.
        modules: whose weights may be at fault.
    """
    try:
        yield
    except DivergenceError:
        raise
    except Exception as error:
        step = step() if callable(step) else step
        try:
            check_weights_finite(step, modules)
        except DivergenceError as cause:
            raise cause from error
        if is_about_nonfinite(error):
            raise DivergenceError(f"step {step}: {term}: {' '.join(str(error).split())}") from error
        raise


def is_about_nonfinite(error: Exception) -> bool:
    """Whether an error says that numbers were NaN or infinite; one of a compiler does not, whatever it warns of."""
    about = re.search(r"\b(nan|inf|infinity|infinite|not finite|non-?finite|overflow)\b", str(error), re.IGNORECASE)
    compiling = type(error).__module__.startswith(("torch._inductor", "torch._dynamo"))
    return about is not None and not compiling and isinstance(error, ValueError | ArithmeticError | RuntimeError)
