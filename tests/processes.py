"""Processes of their own, each forked from one where the stock libraries were imported, but not hf_vq.

(A process that imports them itself takes seconds to start.)
"""

import multiprocessing
import resource
import socket
from concurrent.futures import ProcessPoolExecutor

STOCK = ["transformers.trainer", "transformers.models.llama.modeling_llama", "diffusers.pipelines.pipeline_utils"]


def context():
    """By which processes are started; all share one server."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(STOCK)
    return found


def in_a_process(function, *arguments):
    """What a function returns or raises in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=context()) as pool:
        return pool.submit(function, *arguments).result()


def in_two_processes(function, *arguments):
    """Calls `function(rank, *arguments)` in two processes that talk by torch.distributed."""
    port = free_port()
    with ProcessPoolExecutor(2, mp_context=context()) as pool:
        for call in [pool.submit(_as_rank, rank, port, function, *arguments) for rank in range(2)]:
            call.result()


def _as_rank(rank, port, function, *arguments):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    function(rank, *arguments)
    dist.barrier()  # none leaves while another still talks to it
    dist.destroy_process_group()


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def most_memory():
    """MiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
