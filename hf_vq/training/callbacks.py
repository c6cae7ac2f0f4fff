"""Callbacks of a training, as those of `transformers.Trainer`."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import IntervalStrategy

from hf_vq.figures import is_defined


class CallbackArguments:
    """A training's arguments, with those of `transformers.TrainingArguments` that its callbacks ask for.

    Args:
        args: the training's own; all else is read from them.
        metric: what the best evaluation goes by.
        greater_is_better: whether more of it is better.
    """

    load_best_model_at_end = False  # the report tells the best step, the last weights are published

    def __init__(self, args: Any, metric: str, greater_is_better: bool):
        self._args, self.metric_for_best_model, self.greater_is_better = args, metric, greater_is_better
        self.eval_strategy = IntervalStrategy.NO if args.eval_steps is None else IntervalStrategy.STEPS

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_args"], name)


class Callbacks:
    """Objects, or classes of them, with some of the methods of `transformers.TrainerCallback`, called one by one.

    A method gets `(args, state, control, model=, **more)`: the training's own arguments, transformers' `TrainerState`
    and `TrainerControl`. Of the control, `should_training_stop`, `should_log`, `should_evaluate` and `should_save`
    count; when several processes train, each calls its own callbacks, which must agree.

    Args:
        callbacks: their methods `on_train_begin`, `on_step_end`, `on_log` (`logs=`), `on_evaluate` (`metrics=`),
            `on_save` and `on_train_end` are called, as far as they have them.
        args: the training's arguments.
        model: the module that is published.
        state: what callbacks read.
    """

    def __init__(self, callbacks: Iterable[Any], args: Any, model: nn.Module, state: TrainerState):
        self.callbacks = [made() if isinstance(made, type) else made for made in callbacks]
        self.args, self.model, self.state, self.control = args, model, state, TrainerControl()

    def call(self, event: str, **more: Any) -> TrainerControl:
        """Call a method of each callback that has it; return the control."""
        for callback in self.callbacks:
            method = getattr(callback, event, None)
            if method is not None:
                changed = method(self.args, self.state, self.control, model=self.model, **more)
                self.control = self.control if changed is None else changed
        return self.control

    def step_ended(self, *, log: bool, evaluate: bool, save: bool) -> TrainerControl:
        """Tell the callbacks of a step and what is due after it; return the control with what they make of it."""
        self.control.should_log, self.control.should_evaluate, self.control.should_save = log, evaluate, save
        return self.call("on_step_end")


class Announcement(TrainerCallback):
    """Says something when all has been checked and the first step comes.

    Args:
        say: is called then.
    """

    def __init__(self, say: Callable[[], None]):
        self.say = say

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.say()


class EarlyStopping(TrainerCallback):
    """Ends a training of either kind when evaluations no longer get better.

    It counts in the history, which a resumed run has: transformers' own counts anew.

    Args:
        patience: so many evaluations in a row without a better one end the training.
        metric: what the evaluations go by, `eval_loss`.
        greater_is_better: whether more of it is better.
    """

    def __init__(self, patience: int, metric: str, greater_is_better: bool = False):
        self.patience, self.metric, self.greater_is_better = patience, metric, greater_is_better

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        values = [entry[self.metric] for entry in state.log_history if is_defined(entry.get(self.metric))]
        if values:
            best = max(values) if self.greater_is_better else min(values)
            if len(values) - 1 - values.index(best) >= self.patience:
                control.should_training_stop = True


class CodebookCallback(TrainerCallback):
    """For `transformers.Trainer` on an autoencoder's face: the codebook moves once an optimizer step.

    Without it a codebook that learns by statistics (`ema`) moves in every forward, so that accumulating the gradient
    of several batches is not what one large batch does. `train_autoencoder` needs no such callback.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.autoencoder.set_codebook_updates("deferred")

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.autoencoder.update_codebook()

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.autoencoder.set_codebook_updates("forward")
