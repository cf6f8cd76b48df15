# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Two ranks by torch.multiprocessing, which end without closing: python FILE START_METHOD PORT.

Rank 0 lives on for a while, and prints what its check says then.
"""

from __future__ import annotations

import sys
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pyallreduce import Communicator, Config
from pyallreduce.errors import PyallreduceError

_kept: list[Communicator] = []  # one that is collected is closed


def main(rank: int, port: int) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    comm = Communicator(device="cpu", config=Config(slab_bytes=4 << 20, timeout_ms=5_000))
    _kept.append(comm)
    comm.all_reduce(torch.ones(4))
    if rank == 0:
        time.sleep(1)
        try:
            comm.check()
            print("sound")
        except PyallreduceError as error:
            print(error)


if __name__ == "__main__":
    mp.start_processes(main, args=(int(sys.argv[2]),), nprocs=2, start_method=sys.argv[1])
