"""One of the processes of `test_parallel.py`: `python parallel_worker.py rank size folder part`."""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import fairlead as fl
from fairlead.testing import tiny_denoiser

LABEL = {"label": [3, 5, 8]}
GUIDES = {
    "cfg": ("cfg(3)", "heun"),
    "three branches": ("cfg(3) + pag(2) | rescale(0.7)", "ddim"),
    "two models": ("cfg(2) + autoguidance(2)", "ddim"),
    "drawn conditions": ("icg(3) | cads(s=0.3)", "ddim"),
    "per sample": ("cfg([1.0, 2.0, 3.0]) | apg(r=1.0, beta=-0.5)", "ddim"),
    "skipped": ("cfg(3) + pag(2) | cache(start=0.0)", "ddim"),
    "switched": ("cfg(3) | adaptive(0.6, guard=0.2)", "ddim"),
}


def draw(name, batching):
    guide, sampler = GUIDES[name]
    denoiser = tiny_denoiser()
    out = fl.sample(denoiser, LABEL, guide=guide, sampler=sampler, steps=4, batching=batching, n=3)
    return out, denoiser.network.rows


def agree(rank, folder):
    counts = []
    wrapped = dist.all_gather

    def counted(*arguments, **options):
        counts.append(1)
        return wrapped(*arguments, **options)

    dist.all_gather = counted
    for name in GUIDES:
        counts.clear()
        out, rows = draw(name, "parallel")
        torch.save(
            {"x": out.x, "nfe": out.nfe, "rows": rows, "collectives": len(counts)},
            folder / f"{name}.{rank}.pt",
        )


def said(function):
    start = time.perf_counter()
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}", time.perf_counter() - start
    return "nothing", 0.0


def fail(rank, folder):
    """Each in turn: different guides, an error in one network, a process that is gone."""
    parallel = fl.Parallel(timeout=5.0)
    found = []

    def run(guide="cfg(3)", tamper=None):
        denoiser = tiny_denoiser()
        denoiser.network.tamper = tamper
        fl.sample(denoiser, LABEL, guide=guide, steps=3, sampler="ddim", batching=parallel)

    def broken(call, out):
        if call == 1 and rank == 1:
            raise ArithmeticError("on purpose")
        return out

    def gone(call, out):
        if call == 1 and rank == 1:
            os._exit(0)
        return out

    found.append(said(lambda: run("cfg(3)" if rank == 0 else "cfg(3) + pag(2)")))
    found.append(said(lambda: run(tamper=broken)))
    torch.save(found, folder / f"failures.{rank}.pt")
    found.append(said(lambda: run(tamper=gone)))
    torch.save(found, folder / f"failures.{rank}.pt")
    os._exit(0)  # the group cannot be closed any more


if __name__ == "__main__":
    rank, size, folder, part = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet.{part}", rank=rank, world_size=size,
        timeout=timedelta(seconds=120),
    )  # fmt: skip
    {"agree": agree, "fail": fail}[part](rank, folder)
    dist.destroy_process_group()
