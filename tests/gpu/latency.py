# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Graph-replay latency of ranks on one GPU, in us: not NVLink, only a guard for the code path.

python tests/gpu/latency.py OUT.json
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from local_group import LocalGroup, random_inputs


def measure(world: int, nbytes: int, algorithm: str, blocks: int) -> float:
    group = LocalGroup(world, 64 << 20, blocks)
    tensors = [t * 0 for t in random_inputs(world, nbytes // 2, torch.bfloat16, 0)]
    graphs = []
    for rank, stream in enumerate(group.streams):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(200):
                x = tensors[rank]
                group.launch(rank, x, x, group.plan(x, algorithm))
        graphs.append(graph)
    samples = []
    for _ in range(30):
        torch.cuda.synchronize()
        ends = []
        for rank, stream in enumerate(group.streams):
            with torch.cuda.stream(stream):
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                graphs[rank].replay()
                end.record()
                ends.append((begin, end))
        torch.cuda.synchronize()
        samples.append(min(b.elapsed_time(e) for b, e in ends) * 1e3 / 200)
    assert not any(r.state() for r in group.ranks)
    group.close()
    return statistics.median(samples)


def main() -> None:
    rows = []
    for world, blocks in ((2, 32), (4, 16)):
        for nbytes in (1024, 8192, 65_536, 262_144, 1 << 20, 4 << 20):
            row = {"world": world, "bytes": nbytes, "blocks": blocks}
            for algorithm in ("one_shot", "two_shot"):
                row[algorithm] = round(measure(world, nbytes, algorithm, blocks), 2)
            rows.append(row)
            print(row, flush=True)
    Path(sys.argv[1]).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
