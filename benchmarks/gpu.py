"""(d) The combine on a GPU: how near the fused arithmetic comes to copying the same bytes.

Each guide combines two 64 MiB predictions. CFG must read both and write one. A rule that
measures a length needs that length before the first element is written, so its tensors travel
twice: two reads for the lengths, two reads and one write for the result.
"""

from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

import fairlead as fl
from fairlead.guidance.branch import COND, NULL, Predictions
from fairlead.guidance.context import Context, Plan, Run

SHAPE = (64, 4, 256, 256)  # 64 MiB in float32
PASSES = {
    "cfg(4)": 3,
    "cfg(4) | apg(eta=0.0, r=15.0)": 5,
    "cfg(4) | rescale(0.7)": 5,
}


def seconds(call: Callable[[], object], times: int = 50, inner: int = 10) -> float:
    """Median time of a call on the device: ten calls as one graph, so that no launch is timed."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(inner):
            call()
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(times)]
    for start, end in marks:
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return median(start.elapsed_time(end) for start, end in marks) / 1e3 / inner


def arithmetic(guide: fl.Guide, like: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """What a planned guide computes from its two predictions."""
    run = Run(check=False, record=False)
    run.advance()
    ctx = Context(None, None, run, batch=len(like), ndim=like.ndim, like=like)
    ctx.plan = Plan(guide.base(ctx))
    guide.plan(ctx, (), 1.0, ())

    def combined(cond: Tensor, null: Tensor) -> Tensor:
        predictions = Predictions(COND, {COND: cond, NULL: null})
        update, _ = guide.update(predictions, ctx, ())
        assert update is not None
        return cond + update

    return combined


def rows() -> dict[str, dict[str, float]]:
    """Share of the copy bandwidth that each combine reaches, compiled and plain."""
    a, b, c = (torch.randn(SHAPE, device="cuda") for _ in range(3))
    size = a.numel() * a.element_size()
    copy = 2 * size / seconds(lambda: c.copy_(a))
    out = {"copy": {"GB/s": copy / 1e9}}
    for text, passes in PASSES.items():
        plain = arithmetic(fl.guide(text), a)
        torch._dynamo.reset()
        fused = torch.compile(plain, fullgraph=True, dynamic=False)
        torch.testing.assert_close(fused(a, b), plain(a, b), rtol=1e-5, atol=1e-5)
        out[text] = {
            name: passes * size / seconds(lambda call=call: call(a, b)) / copy  # type: ignore[misc]
            for name, call in (("compiled", fused), ("plain", plain))
        }
    return out


if __name__ == "__main__":
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu: needs a GPU that PyTorch can use; found none")
    print(torch.cuda.get_device_name(), torch.__version__)
    for name, row in rows().items():
        print(name, {k: round(v, 3) for k, v in row.items()})
