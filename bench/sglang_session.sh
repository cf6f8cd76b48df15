#!/usr/bin/env bash
# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
#
# Real SGLang on a GPU machine without network, whose packed parts (bench/sglang_bundle.py) travel one a call, the
# second before the machine cools:
#
#   OUT=out bench/sglang_session.sh 0     # .bundle/sglang/0
#   OUT=out bench/sglang_session.sh 1     # .bundle/sglang/1, .wheels: builds pyallreduce; the server, then its faults
#
# $STEPS chooses of the last part's steps: servers (ours, SGLang's own, NCCL), eager (ours and SGLang's own), kill, lost,
# with what is in $SGLANG, such as SGLANG='--ranks 1 --backends nccl'. SGLang compiles its small kernels when they are first used, for
# minutes; what that left, in cache.tar.xz of an earlier run's $OUT, is taken from .bundle/sglang/1 if it is there.
# $LIMIT is the seconds that all have together, 560 by default. Every step has a deadline.
set -uo pipefail
out=${OUT:?a folder for the results}
export PYTHONUNBUFFERED=1 NCCL_NVLS_ENABLE=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1
folder=/tmp/sglang
logs=$folder/logs
mkdir -p $logs $folder/site

step() {  # name, command
  local name=$1 limit=$((${LIMIT:-560} - SECONDS))
  shift
  [ "$limit" -gt 40 ] || { echo "== $name: no time left"; return; }
  timeout -s INT -k 15 "$limit" "$@" --json "$out/sglang-$name.json" --logs $logs
  echo "== $name: exit $?, at $SECONDS s"
}

if [ "$1" = 0 ]; then
  cp .bundle/sglang/0/site.tar.xz $folder/part-0
  exit
fi
test -s $folder/part-0 || { echo 'part 0 is gone'; exit 3; }
cat $folder/part-0 .bundle/sglang/1/site.tar.xz | tar -xJ -C $folder/site &
unpacking=$!
[ -e .bundle/sglang/1/cache.tar.xz ] && mkdir -p ~/.cache && tar -xJf .bundle/sglang/1/cache.tar.xz -C ~/.cache
bench/gpu_session.sh build || exit 4
wait $unpacking || { echo 'the parts are not whole'; exit 5; }
export PYTHONPATH=$folder/site
timeout 40 python3 -m compileall -q -j 0 $folder/site > /dev/null 2>&1
echo "unpacked after $SECONDS s"
[ -n "${COMMIT:-}" ] && export PYALLREDUCE_COMMIT=$COMMIT
for name in ${STEPS:-servers kill lost}; do
  expect=()
  [ -s "$out/sglang-servers.json" ] && expect=(--expect "$out/sglang-servers.json")
  # shellcheck disable=SC2086
  case $name in
    servers) step servers python3 bench/sglang_gpu.py ${SGLANG:-} ;;
    eager) step eager python3 bench/sglang_gpu.py --mode eager --backends ours stock ${SGLANG:-} ;;
    kill) step kill python3 bench/sglang_gpu.py --backends ours --kill "${expect[@]}" ${SGLANG:-} ;;
    lost) step lost python3 bench/sglang_gpu.py --backends ours --lost "${expect[@]}" ${SGLANG:-} ;;
  esac
done
tar -cJf "$out/logs.tar.xz" -C $logs .
caches=()
for name in sglang tvm-ffi flashinfer; do [ -d ~/.cache/$name ] && caches+=("$name"); done
[ ${#caches[@]} -eq 0 ] || tar -cJf "$out/cache.tar.xz" -C ~/.cache "${caches[@]}"
