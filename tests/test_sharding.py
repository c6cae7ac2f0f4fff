"""FSDP2: priors whose weights lie in two processes, half in each, learn as in one."""

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from .prior_families import FAMILIES
from .processes import in_two_processes


def half(rank, value):
    return tuple(half(rank, one) for one in value) if isinstance(value, tuple) else value[2 * rank : 2 * rank + 2]


def _learn(rank, folder):
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    gradients = {}
    for name, (prior, inputs, conditions) in FAMILIES.items():
        units = [module for module in prior.modules() if type(module).__name__ in prior._no_split_modules]
        assert units, name
        for module in (*units, prior):
            fully_shard(module, mesh=mesh)
        mine = {key: half(rank, value) for key, value in conditions.items()}
        prior(half(rank, inputs), **mine).loss.backward()
        gradients[name] = {key: parameter.grad.full_tensor() for key, parameter in prior.named_parameters()}
    torch.save(gradients, f"{folder}/{rank}.pt")


def test_sharded_priors_have_the_gradients_of_one_process(tmp_path):
    in_two_processes(_learn, str(tmp_path))
    sharded = torch.load(tmp_path / "0.pt", weights_only=True)
    for name, (prior, inputs, conditions) in FAMILIES.items():
        prior(inputs, **conditions).loss.backward()
        gradients = {key: parameter.grad for key, parameter in prior.named_parameters()}
        assert sharded[name].keys() == gradients.keys()
        torch.testing.assert_close(list(sharded[name].values()), list(gradients.values()), atol=1e-5, rtol=1e-4)
