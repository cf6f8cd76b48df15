#!/usr/bin/env bash
# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
#
# Real vLLM on a GPU machine without network, whose packed parts `a` and `b` travel one a call, the second before the
# machine cools:
#
#   OUT=out bench/vllm_session.sh a     # .bundle/a, .wheels: vLLM's library; builds pyallreduce
#   OUT=out bench/vllm_session.sh b     # .bundle/b, .wheels: the rest; the story, then ours beside stock and NCCL
#
# $STEPS chooses of b's steps: story (down by Ctrl-C), kill (by SIGKILL of a worker), graphs (with expandable_segments),
# lost (an edge drops writes: NCCL in the same start), raises (an error of a worker that vLLM does not hear),
# compare (with $VLLM, such as VLLM='--layers 80 --backends stock ours'), compiled (vLLM's default mode, ours and stock),
# sleep (ours alone, through vLLM's sleep mode), paired (ours, stock and NCCL in turn within one start; $PAIRED, '--paired 32' by default), paired-compiled (the same in vLLM's default mode).
# $LIMIT is the seconds that they have together, 565 by default. Every step has a deadline, and what it leaves running is ended.
set -uo pipefail
out=${OUT:?a folder for the results}
export PYTHONUNBUFFERED=1
site=/tmp/vl
logs=/tmp/logs

part_a() {
  mkdir -p $site/vllm
  xz -dc .bundle/a/stable.so.xz > $site/vllm/_C_stable_libtorch.abi3.so &
  local unpacking=$!
  bench/gpu_session.sh build || return
  wait $unpacking
  (cd / && python3 -c "
from importlib.metadata import entry_points
print([e.value for e in entry_points(group='vllm.general_plugins')])")
}

step() {  # name, deadline in seconds, command
  local name=$1 limit=$2
  shift 2
  [ "$limit" -gt 60 ] || { echo "== $name: no time left"; return; }
  timeout -s INT -k 15 "$limit" "$@" --json "$out/$name.json" --logs $logs
  echo "== $name: exit $?, at $SECONDS s"
  tar czf "$out/logs.tgz" -C $logs .
}

part_b() {
  mkdir -p $logs /tmp/site
  test -s $site/vllm/_C_stable_libtorch.abi3.so || { echo 'part a is gone'; return 3; }
  python3 -m pip install -q --no-index --no-deps --no-compile --target /tmp/site .bundle/b/*.whl &
  local installing=$!
  tar xJf .bundle/b/vllm_py.tar.xz -C $site
  # vLLM's sleep mode wants this small library of its wheel, which the packed parts lack: put it beside them.
  [ ! -e .bundle/b/cumem_allocator.abi3.so ] || cp .bundle/b/cumem_allocator.abi3.so $site/vllm/
  xz -dc .bundle/b/fa3.so.xz > $site/vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so
  wait $installing
  timeout 40 python3 -m compileall -q -j 0 $site/vllm /tmp/site > /dev/null 2>&1
  export PYTHONPATH=$site:/tmp/site
  python3 -c 'from pyallreduce import Communicator' || return 4
  echo "unpacked after $SECONDS s"
  local limit=${LIMIT:-565} cycle=(python3 bench/vllm_story_gpu.py --cycles 1)
  for name in ${STEPS:-story compare kill}; do
    case $name in
      story) step story $((limit - SECONDS)) "${cycle[@]}" ;;
      kill)
        local expect=()
        [ -s "$out/story.json" ] && expect=(--expect "$out/story.json")
        step story-kill $((limit - SECONDS)) "${cycle[@]}" --first 1 "${expect[@]}"
        ;;
      graphs) step story-graphs $((limit - SECONDS)) "${cycle[@]}" --mode graphs --expandable ;;
      lost) step story-lost $((limit - SECONDS)) "${cycle[@]}" --lost ;;
      raises) step story-raises $((limit - SECONDS)) "${cycle[@]}" --raises ;;
      # shellcheck disable=SC2086
      compare) step vllm $((limit - SECONDS)) python3 bench/vllm_gpu.py --deadline 120 ${VLLM:---layers 32} ;;
      # shellcheck disable=SC2086
      compiled)
        step vllm-compiled $((limit - SECONDS)) python3 bench/vllm_gpu.py --deadline 170 --mode compiled --backends ${COMPILED:-stock ours ours stock} ;;
      # shellcheck disable=SC2086
      paired) step vllm-paired $((limit - SECONDS)) python3 bench/vllm_gpu.py --deadline 400 ${PAIRED:---paired 32} ;;
      paired-compiled)
        step vllm-paired-compiled $((limit - SECONDS)) python3 bench/vllm_gpu.py --paired 16 --deadline 250 --mode compiled ;;
      # shellcheck disable=SC2086
      sleep) step sleep $((limit - SECONDS)) python3 bench/vllm_gpu.py --deadline 160 --backends ours --sleep ${SLEEP:-} ;;
    esac
  done
  for log in $logs/story*.log; do
    echo "-- $log"
    grep -aE 'the all-reduces|ERROR|shutdown\]' "$log" | cut -c1-240 | tail -n 12
  done
}

[ -n "${COMMIT:-}" ] && export PYALLREDUCE_COMMIT=$COMMIT
"part_$1"
