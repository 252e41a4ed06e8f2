"""`python -m benchmarks`: every benchmark, as a table; `--json` for machines."""

import argparse
import json
from dataclasses import asdict
from typing import Any

import torch

from benchmarks import framework, generate, network, policies, rules, steer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--toy", action="store_true", help="only (g), tiny and without a GPU: says that it runs"
    )
    options = parser.parse_args()
    if options.toy:
        for name, row in steer.on_gpu(toy=True).items():
            print(f"(g) {name} / guider  {row}")
        return
    torch.set_num_threads(1)  # stubbed steps have nothing to share between threads
    rows: dict[str, Any] = {f"(a) {k} / diffusers guider": v for k, v in framework.rows().items()}
    rows |= {f"(f) {k}, cfg(4) / its own guidance": v for k, v in steer.steps().items()}
    torch.set_num_threads(options.threads)
    rows["(b) cfg step of a DiT / raw network on 16 rows"] = network.guided_step()
    together, difference = network.one_batch()
    rows[f"(c) one batch of 8 / 8 batches (largest difference {difference:.1e})"] = together
    for text, row in rules.rows().items():
        share = f"{100 * row.median:.2f} %" + (" TOO MUCH" if row.median > rules.LIMIT else "")
        rows[f"(d) {text} / raw network on 8 rows ({share})"] = row
    rows |= {f"(e) cfg(3) under {k}": v for k, v in policies.rows().items()}
    rows |= {f"(h) {k}": v for k, v in generate.rows().items()}
    rows |= {f"(g) {k} / guider": v for k, v in steer.on_gpu().items()}
    if options.json:
        print(json.dumps({k: asdict(v) for k, v in rows.items()}, indent=1))
        return
    width = max(map(len, rows))
    for name, row in rows.items():
        print(f"{name.ljust(width)}  {row}")


if __name__ == "__main__":
    main()
