# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""SGLang on the CPU as a stand-in for GPUs: its real server, and our real hooks, where there are
none.

SGLang has no release for the CPU. What a Llama of bfloat16 imports of its kernels and of
torchvision, and never calls, is replaced by stand-ins; and since SGLang itself reduces tensors of
the CPU without asking the slot, a plugin for this test alone has them ask it as those of GPUs do.
"""

from __future__ import annotations

import shutil
from pathlib import Path

__all__ = ["ARGUMENTS", "ASKS", "ENVIRONMENT", "stand_ins"]

ARGUMENTS = (
    *("--device", "cpu", "--attention-backend", "torch_native", "--max-total-tokens", "4096"),
    *("--mem-fraction-static", "0.1"),
)
ENVIRONMENT = {"SGLANG_USE_CPU_ENGINE": "1", "SGLANG_CPU_OMP_THREADS_BIND": "0|1"}
ASKS = """
def register():
    from pyallreduce.integrations import sglang as plugin
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    plugin._on_gpu = lambda device: True
    def all_reduce(original, group, x):
        slot = group.ca_comm
        if slot is None or slot.disabled or not slot.should_custom_ar(x):
            return original(group, x)
        return slot.custom_all_reduce(x)
    target = "sglang.srt.distributed.parallel_state.GroupCoordinator.all_reduce"
    HookRegistry.register(target, all_reduce, HookType.AROUND)
"""
_STAND_IN = """
import importlib.machinery, sys, types
from unittest.mock import MagicMock

__version__ = "99"

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return MagicMock(name=name, side_effect=NotImplementedError(f"{__name__}.{name}"))

class Finder:
    def find_spec(self, name, path, target=None):
        if name.startswith(__name__ + "."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
    def create_module(self, spec):
        made = types.ModuleType(spec.name)
        made.__getattr__ = __getattr__
        return made
    def exec_module(self, module):
        pass

sys.meta_path.append(Finder())
"""


def stand_ins(folder: Path, kernels: Path | None) -> str:
    """Packages that raise when they are called: what to add to PYTHONPATH.

    `kernels` is the package `sgl_kernel` of a wheel, whose types alone are taken.
    """
    for name in ("sgl_kernel", "torchvision"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(_STAND_IN, encoding="utf-8")
    if kernels is not None:
        shutil.copy(kernels / "scalar_type.py", folder / "sgl_kernel")
    return str(folder)
