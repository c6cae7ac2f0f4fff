"""A Trainer for items of unequal lengths: every real code counts the same, whichever batch it is in."""

from typing import Any

import torch
from transformers import Trainer

from hf_vq.processes import sum_over_processes


class LengthsTrainer(Trainer):
    """`transformers.Trainer` where the loss of a batch is a mean over real positions, told by the input `lengths`.

    Batches weigh by their real positions, in the gradient of a step (gradient accumulation and processes) and in
    `eval_loss`. Batches without lengths are treated as Trainer treats them.
    """

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches or "lengths" not in batches[0]:
            return batches, None
        positions = sum(batch["lengths"].sum() for batch in batches).to(device)
        return batches, self.accelerator.gather(positions).sum()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if num_items_in_batch is not None:  # Trainer averages over batches and processes
            share = inputs["lengths"].sum() / num_items_in_batch
            loss = loss * share * (self.current_gradient_accumulation_steps * self.accelerator.num_processes)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        loss, *rest = super().prediction_step(model, inputs, *arguments, **options)
        if "lengths" in inputs:
            positions = inputs["lengths"].sum().to(loss)
            self.evaluated += torch.stack([loss * positions, positions])
        return loss, *rest

    def evaluation_loop(self, *inputs: Any, **options: Any) -> Any:
        # of batches with lengths: nats and positions
        self.evaluated = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        output: Any = super().evaluation_loop(*inputs, **options)
        nats, positions = sum_over_processes(self.evaluated).tolist()
        if positions:
            output.metrics[f"{options.get('metric_key_prefix', 'eval')}_loss"] = nats / positions
        return output
