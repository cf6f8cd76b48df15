# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
"""Choose the backend of a group from everybody's facts.

`decide` depends on its argument alone, so that all ranks, which hold the same facts, give the same
answer: a rank that opted out by itself would leave its peers waiting. It is a list of checks; the
first that objects gives the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

from pyallreduce.errors import InvalidCall
from pyallreduce.facts import Facts, Link, Target
from pyallreduce.reasons import Code, Reason

__all__ = ["MAX_RANKS", "Decision", "decide"]

MAX_RANKS = 8
# Enough to see a pattern; `pyallreduce info` shows the whole matrix.
_PAIRS_SHOWN = 3

Group = tuple[Facts, ...]
Check = Callable[[Group], "Reason | None"]


@dataclass(frozen=True)
class Decision:
    """The answer of all ranks: who runs the all-reduce, and why.

    `requested` is what was asked for: where it is "native" and `backend` is not, the caller raises
    `BackendUnavailable` with the reason.
    """

    backend: Literal["native", "nccl"]
    reason: Reason
    target: Target
    requested: str


def decide(facts: Sequence[Facts]) -> Decision:
    """Choose the backend for a group, from one `Facts` of each rank in any order.

    Raises:
        InvalidCall: the facts are not those of ranks 0 to N-1 of one group of N.
    """
    group = tuple(sorted(facts, key=lambda f: f.rank))
    if not group or any(f.rank != rank or f.world != len(group) for rank, f in enumerate(group)):
        seen = ", ".join(f"{f.rank} of {f.world}" for f in group) or "none"
        message = f"facts of ranks {seen}; expected each rank of one group once"
        raise InvalidCall(message)
    reason = next(_objections(group), Reason(Code.OK, _summary(group)))
    return Decision(
        backend="native" if reason.code is Code.OK else "nccl",
        reason=reason,
        target=group[0].target,
        requested=_requested(group),
    )


def _objections(group: Group) -> Iterator[Reason]:
    """Every reason against the native path, the most telling one first."""
    checks = (*_ANY_TARGET, *(_CUDA if group[0].target == "cuda" else ()))
    return (reason for reason in (check(group) for check in checks) if reason is not None)


def _requested(group: Group) -> str:
    # Where the ranks disagree, one that demands "native" must be told by all that it is not to be.
    asked = {f.backend for f in group}
    return "native" if "native" in asked else group[0].backend


# ---- for both targets ----------------------------------------------------------------------------


def _protocol(group: Group) -> Reason | None:
    return _differ(group, Code.PROTOCOL_VERSION, lambda f: f"protocol {f.protocol}")


def _config(group: Group) -> Reason | None:
    return _differ(group, Code.CONFIG_DIVERGED, lambda f: f"backend {f.backend}") or _differ(
        group, Code.CONFIG_DIVERGED, lambda f: f"settings {f.config_digest.hex()}"
    )


def _forced_nccl(group: Group) -> Reason | None:
    forced = [f for f in group if f.backend == "nccl"]
    return _veto(Code.FORCED_NCCL, forced, "PYALLREDUCE_BACKEND=nccl")


def _single_rank(group: Group) -> Reason | None:
    return Reason(Code.SINGLE_RANK, "rank 0") if len(group) == 1 else None


def _too_many_ranks(group: Group) -> Reason | None:
    if len(group) <= MAX_RANKS:
        return None
    return Reason(Code.TOO_MANY_RANKS, f"ranks 0 to {len(group) - 1}")


def _identity(group: Group) -> Reason | None:
    return _unprobed(f for f in group if not f.boot_id or not f.pid_namespace)


def _several_hosts(group: Group) -> Reason | None:
    return _differ(group, Code.SEVERAL_HOSTS, lambda f: f"boot {f.boot_id}")


def _pid_namespace(group: Group) -> Reason | None:
    return _differ(group, Code.PID_NAMESPACE, lambda f: f"namespace {f.pid_namespace}")


def _device_mixed(group: Group) -> Reason | None:
    return _differ(group, Code.DEVICE_MIXED, lambda f: {"cuda": "GPU", "host": "CPU"}[f.target])


def _module(group: Group) -> Reason | None:
    for state, code in (("missing", Code.MODULE_MISSING), ("broken", Code.MODULE_BROKEN)):
        culprits = [f for f in group if f.module == state]
        if culprits:
            return _veto(code, culprits, culprits[0].error)
    without = [f for f in group if f.target == "cuda" and f.module == "host"]
    return _veto(Code.MODULE_WITHOUT_CUDA, without)


# ---- for GPUs ------------------------------------------------------------------------------------


def _driver(group: Group) -> Reason | None:
    missing = [f for f in group if not f.driver_cuda]
    # Within one major version an older driver runs newer code.
    old = [f for f in group if f.driver_cuda // 1000 < f.build_cuda // 1000]
    if missing or not old:
        return _veto(Code.DRIVER_MISSING, missing)
    driver, build = _version(old[0].driver_cuda), _version(old[0].build_cuda)
    return _veto(Code.DRIVER_TOO_OLD, old, f"driver {driver}, built with {build}")


def _probe_failed(group: Group) -> Reason | None:
    return _unprobed(f for f in group if f.error or not f.gpu_uuid)


def _kernel(group: Group) -> Reason | None:
    without = [f for f in group if not f.has_kernel]
    what = ""
    if without:
        what = f"{without[0].gpu_name}, compute capability {without[0].capability / 10:.1f}"
    return _veto(Code.NO_KERNEL, without, what)


def _mig(group: Group) -> Reason | None:
    return _veto(Code.MIG, [f for f in group if f.mig])


def _wsl(group: Group) -> Reason | None:
    return _veto(Code.WSL, [f for f in group if f.wsl])


def _shared_gpu(group: Group) -> Reason | None:
    if all(f.share_gpu for f in group):
        return None
    users = [[f for f in group if f.gpu_uuid == uuid] for uuid in _gpus(group)]
    return _veto(Code.SHARED_GPU, next((ranks for ranks in users if len(ranks) > 1), []))


def _nccl_p2p(group: Group) -> Reason | None:
    return _veto(Code.NCCL_P2P_DISABLED, [f for f in group if f.nccl_p2p_disabled])


def _unreadable_link(group: Group) -> Reason | None:
    return _pairs(Code.PROBE_FAILED, group, lambda link: link is not None and bool(link.error))


def _peer_access(group: Group) -> Reason | None:
    # Some systems of confidential computing have a peer-to-peer path: it alone is no veto.
    secret = any(f.confidential for f in group)
    code = Code.CONFIDENTIAL_COMPUTING if secret else Code.NO_PEER_ACCESS
    return _pairs(code, group, lambda link: link is None or not link.access)


def _nvlink(group: Group) -> Reason | None:
    if len(_gpus(group)) <= 2:
        return None
    return _pairs(Code.NO_NVLINK, group, lambda link: link is None or not link.nvlink)


# The order is the order of telling: what the user chose, then who takes part, then what the
# machine lacks, from the module down to the links.
_ANY_TARGET: tuple[Check, ...] = (
    _protocol,
    _config,
    _forced_nccl,
    _single_rank,
    _too_many_ranks,
    _identity,
    _several_hosts,
    _pid_namespace,
    _device_mixed,
    _module,
)
_CUDA: tuple[Check, ...] = (
    _driver,
    _probe_failed,
    _kernel,
    _mig,
    _wsl,
    _shared_gpu,
    _nccl_p2p,
    _unreadable_link,
    _peer_access,
    _nvlink,
)


# ---- words ---------------------------------------------------------------------------------------


def _veto(code: Code, culprits: Sequence[Facts], why: str = "") -> Reason | None:
    """A reason that names the culprits, or None if there are none."""
    if not culprits:
        return None
    named = ", ".join(map(str, culprits))
    return Reason(code, f"{named}: {why}" if why else named)


def _unprobed(culprits: Iterable[Facts]) -> Reason | None:
    failed = list(culprits)
    return _veto(Code.PROBE_FAILED, failed, failed[0].error if failed else "")


def _differ(group: Group, code: Code, show: Callable[[Facts], str]) -> Reason | None:
    """A reason that tells who says what, or None if all say the same."""
    parties: dict[str, list[Facts]] = {}
    for f in group:
        parties.setdefault(show(f), []).append(f)
    if len(parties) == 1:
        return None
    return Reason(code, "; ".join(f"{_ranks(fs)}: {words}" for words, fs in parties.items()))


def _pairs(code: Code, group: Group, bad: Callable[[Link | None], bool]) -> Reason | None:
    """A reason that names the directed pairs of different GPUs whose link is bad, or None."""
    found = [
        (a, b)
        for a, b in permutations(group, 2)
        if a.gpu_uuid != b.gpu_uuid and bad(a.link_to(b.gpu_uuid))
    ]
    if not found:
        return None
    shown = [f"{a} to {b}" for a, b in found[:_PAIRS_SHOWN]]
    if len(found) > _PAIRS_SHOWN:
        shown.append(f"{len(found) - _PAIRS_SHOWN} more")
    first = found[0][0].link_to(found[0][1].gpu_uuid)
    why = f": {first.error}" if first is not None and first.error else ""
    return Reason(code, "; ".join(shown) + why)


def _summary(group: Group) -> str:
    if group[0].target == "host":
        return f"{len(group)} ranks on the CPU"
    names = sorted({f.gpu_name for f in group})
    gpus = f"{len(group)} ranks on {len(_gpus(group))}x {', '.join(names)}"
    nvlinks = [link.nvlink for a, b in permutations(group, 2) if (link := a.link_to(b.gpu_uuid))]
    if not nvlinks:
        return gpus
    return f"{gpus}, {'all pairs by NVLink' if all(nvlinks) else 'peer access by PCIe'}"


def _ranks(group: Sequence[Facts]) -> str:
    return f"rank{'s' if len(group) > 1 else ''} {', '.join(str(f.rank) for f in group)}"


def _gpus(group: Group) -> list[str]:
    """The UUIDs in use, in the order of the ranks."""
    return list(dict.fromkeys(f.gpu_uuid for f in group))


def _version(number: int) -> str:
    return f"CUDA {number // 1000}.{number % 1000 // 10}"
