"""What a resumed run shares with the one that it continues, what it may change, and how a change comes into force."""

import json
from collections.abc import Collection, Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.checkpointing import load as load_tensors_only
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from hf_vq.training.checkpoints import TRAINER_STATE

LAST_STEP = ("max_steps", "num_train_epochs")
HORIZON = ("learning_rate", *LAST_STEP)  # what the learning rate of a step hangs on
MAY_CHANGE = frozenset(
    {
        *HORIZON,
        *("logging_strategy", "logging_steps", "logging_first_step"),
        *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "eval_accumulation_steps"),
        *("per_device_eval_batch_size", "eval_features", "metric_for_best_model", "greater_is_better"),
        *("save_strategy", "save_steps", "save_total_limit"),
        *("dataloader_num_workers", "early_stopping_patience"),
    }
)
NO_MATTER = frozenset(  # where a run is, who is told of it and how its processes meet: no part of what comes out
    {
        *("output_dir", "resume_from_checkpoint", "disable_tqdm", "report_to", "run_name", "project"),
        *("sample_steps", "num_samples", "license"),
        *("log_level", "log_level_replica", "log_on_each_node", "save_on_each_node", "logging_dir", "debug"),
        *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "skip_memory_metrics", "local_rank"),
        *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
        *("hub_revision", "ddp_backend", "ddp_timeout", "ddp_bucket_cap_mb", "do_train", "do_eval", "do_predict"),
        *("dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor"),
        *("restore_callback_states_from_checkpoint", "enable_jit_checkpoint"),
    }
)
CHANGED = "changed"  # entry of the history: by option what it was `from` and what it is `to` after that step


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options or a config as JSON gives them back, private ones left out."""
    return json.loads(json.dumps({key: value for key, value in values.items() if key[:1] != "_"}, default=str))


def recorded(args: Any) -> dict[str, Any]:
    """What a checkpoint tells of a training's arguments."""
    values = args.to_dict() if hasattr(args, "to_dict") else asdict(args)
    return plain({name: value for name, value in values.items() if name not in NO_MATTER})


def configs(modules: Mapping[str, nn.Module]) -> dict[str, dict[str, Any]]:
    """The config of each module that has one, by name."""
    found: dict[str, Any] = {name: getattr(module, "config", None) for name, module in modules.items()}
    found = {name: config.to_dict() if hasattr(config, "to_dict") else config for name, config in found.items()}
    return {name: plain(config) for name, config in found.items() if isinstance(config, Mapping)}


def changes(
    where: str | Path, then: Mapping[str, Any], now: Mapping[str, Any], may: Collection[str] = ()
) -> dict[str, Any]:
    """What differs of the options that both have, `{name: {"from": old, "to": new}}`.

    Args:
        where: the run, for the message.
        then, now: options by name.
        may: names of those that may differ.

    Raises:
        ValueError: names the first that differs and may not, with both values.
    """
    found = {name: {"from": then[name], "to": now[name]} for name in now if name in then and then[name] != now[name]}
    for name, change in found.items():
        if name not in may:
            raise ValueError(
                f"{where} was written with {name}={change['from']}, this run has {change['to']}: a resume keeps it"
            )
    return found


def check_goes_on(where: str | Path, step: int, max_steps: int, changed: Mapping[str, Any]) -> None:
    """Check that there is something to resume.

    Args:
        where: the checkpoint.
        step: its own.
        max_steps: the last step of the run.
        changed: the `changes` of this run.

    Raises:
        ValueError: the run was to end before the checkpoint, or no step is left that a change would be in force in.
    """
    if step > max_steps:
        raise ValueError(f"max_steps={max_steps}, but {where} is of step {step}: give more, or resume an older one")
    for name in changed.keys() - LAST_STEP if step == max_steps else ():
        raise ValueError(
            f"{name}={changed[name]['to']} instead of {changed[name]['from']}, but {where} is of the last step, "
            f"{step}: give max_steps or num_train_epochs for more"
        )


def changed_since(checkpoint: str | Path) -> dict[str, Any]:
    """The options that resumes have changed in the run of a checkpoint, as they are in force in it."""
    state = json.loads((Path(checkpoint) / TRAINER_STATE).read_text(encoding="utf-8"))
    history = state["history"] if "history" in state else state["log_history"]
    return {name: change["to"] for entry in history for name, change in entry.get(CHANGED, {}).items()}


def renew_learning_rate(optimizer: Any, schedule: Any, base: list[float]) -> None:
    """Let a schedule and an optimizer whose states were loaded go by the options of today.

    Args:
        optimizer: its groups hold the learning rate of the step that was saved.
        schedule: of that optimizer, with the functions of today and the state of then.
        base: the schedule's `base_lrs` before that state was loaded.
    """
    if not base:
        return
    schedule = getattr(schedule, "scheduler", schedule)  # in accelerate's wrapper
    if isinstance(schedule, LambdaLR):
        rates = [rate * factor(schedule.last_epoch) for rate, factor in zip(base, schedule.lr_lambdas, strict=True)]
    else:  # goes from one rate to the next
        ratios = [now / then for now, then in zip(base, schedule.base_lrs, strict=True)]
        rates = [group["lr"] * ratio for group, ratio in zip(optimizer.param_groups, ratios, strict=True)]
    for group, first, rate in zip(optimizer.param_groups, base, rates, strict=True):
        group["initial_lr"], group["lr"] = first, rate
    schedule.base_lrs, schedule._last_lr = base, rates


def base_rates(schedule: Any) -> list[float]:
    """The rates that a schedule starts from; none of one that follows the evaluations."""
    return list(getattr(getattr(schedule, "scheduler", schedule), "base_lrs", ()))


def config_of_then(owner: Any, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recorded config of a class, with what it leaves out of its quantizer's options at the default of then."""
    return owner.with_written_options(config, earlier=True) if hasattr(owner, "with_written_options") else config


def arguments_of_then(state: Mapping[str, Any], args: Any) -> dict[str, Any]:
    """The arguments that a checkpoint tells, those that its version did not know at their defaults.

    Args:
        state: of the checkpoint; one of a version that recorded no arguments tells none.
        args: of this run, a dataclass.
    """
    if "arguments" not in state:
        return {}
    defaults = {field.name: field.default for field in fields(args) if field.default is not MISSING}
    return {**plain(defaults), **state["arguments"]}


def read_state(
    folder: Path, own: Mapping[str, Any], modules: Mapping[str, Any], args: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state of a run of `TrainingLoop` in a checkpoint, which must be of a run like this one.

    Args:
        folder: the checkpoint.
        own: the state that this run would start with.
        modules: of this run, by name; options that a config of an earlier version lacks are as they were in it.
        args: of this run.

    Returns:
        That state, with the arguments of this run, and its `changes`.

    Raises:
        ValueError: the checkpoint belongs to other data, another batch size, seed, number of processes, task or model.
    """
    state = json.loads((folder / TRAINER_STATE).read_text(encoding="utf-8"))
    state.setdefault("modules", ["autoencoder"])  # of a time that knew one module
    state.setdefault("turns", own["turns"])
    changed = changes(folder, arguments_of_then(state, args), own["arguments"], MAY_CHANGE)
    changes(folder, {name: state["stream"].get(name) for name in own["stream"]}, own["stream"])
    for kind, verb in (("modules", "trains"), ("turns", "has")):
        if state[kind] != own[kind]:
            raise ValueError(
                f"{folder} holds the {kind} {', '.join(state[kind])}, this run {verb} {', '.join(own[kind])}"
            )
    for name, config in own["configs"].items():
        then = state.get("configs", {}).get(name)
        changes(folder, {} if then is None else config_of_then(modules.get(name), then), config)
    return {**state, "arguments": own["arguments"], "configs": own["configs"]}, changed


def load_states(accelerator: Accelerator, folder: Path) -> None:
    """Load what accelerate saved: of modules, optimizers, schedules, random generators.

    It reads its files with `weights_only=True`, as long as nothing is registered for checkpointing: for registered
    objects it would unpickle anything, so our own state is JSON and safetensors.

    Raises:
        ValueError: the weights are of another model.
    """
    try:
        accelerator.load_state(str(folder), load_kwargs={"weights_only": True})
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        lines = [line.strip() for line in str(error).splitlines()]
        first = next((line for line in lines if line.startswith("size mismatch")), lines[-1])
        raise ValueError(f"{folder} holds the weights of another model: {first[:200]}") from error


def check_random_states(folder: Path, process: int) -> None:
    """Raise a ValueError where the generators are not as a checkpoint has them: accelerate passes over that."""
    states = load_tensors_only(folder / f"random_states_{process}.pkl")
    restored = torch.equal(torch.get_rng_state(), states["torch_manual_seed"])
    if restored and torch.cuda.is_available():
        expected, current = states.get("torch_cuda_manual_seed", []), torch.cuda.get_rng_state_all()
        restored = len(current) == len(expected) and all(map(torch.equal, current, expected))
    if not restored:  # torch's states come last
        raise ValueError(f"{folder}: its random states do not fit this machine")
