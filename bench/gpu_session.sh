#!/usr/bin/env bash
# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
#
# One call on a GPU machine: build, test, measure. Writes logs and JSON to $OUT; ends with a short table.
# Each step has a deadline, and a step that fails does not stop the others.
set -uo pipefail
out=${OUT:?a folder for the results}
steps=${*:-build tests latency check sanitizer}
gpus=$(nvidia-smi -L | wc -l)
ranks=$((gpus > 2 ? gpus : 2))
export PYTHONUNBUFFERED=1 CUDAARCHS=${CUDAARCHS:-90-real}
[ -n "${COMMIT:-}" ] && export PYALLREDUCE_COMMIT=$COMMIT
PATH="$(python3 -c "import pathlib, sys; print(pathlib.Path(sys.executable).parent)"):$PATH"
declare -A verdict
run() {  # name, deadline in seconds, command
  local name=$1 limit=$2; shift 2
  local start=$SECONDS
  timeout "$limit" "$@" > "$out/$name.log" 2>&1
  verdict[$name]="exit $? after $((SECONDS - start)) s"
  printf '== %s: %s\n' "$name" "${verdict[$name]}"; tail -n "${TAIL:-25}" "$out/$name.log"
}
share=(env PYALLREDUCE_SHARE_GPU=1)
# The peers travel in the ignored folder .peers: FlashInfer's and SGLang's wheels and sources, or vLLM's library.
# They are unpacked outside the checkout, once a machine, and only the comparison sees them. With them goes what
# an earlier `compile` left in peers-cache.tar.xz, on any machine of the same image: even one GPU is enough for it.
peers() {
  local site=${TMPDIR:-/tmp}/peers-site
  if [ ! -e "$site/unpacked" ]; then
    python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" .peers/*.whl \
      && touch "$site/unpacked"
    if [ -e .peers/stable.so.xz ]; then
      mkdir -p "$site/vllm" && xz -dc .peers/stable.so.xz > "$site/vllm/_C_stable_libtorch.abi3.so"
    fi
    if [ -e .peers/peers-cache.tar.xz ]; then
      mkdir -p "$site/flashinfer/data/aot" ~/.cache
      tar -xJf .peers/peers-cache.tar.xz -C "$site/flashinfer/data" aot
      tar -xJf .peers/peers-cache.tar.xz -C ~/.cache sglang
    fi
  fi
  with_peers=(env "PYTHONPATH=$site:$PWD/.peers${PYTHONPATH:+:$PYTHONPATH}" FLASHINFER_CUDA_ARCH_LIST=9.0a)
}
compile() {
  local most=$ranks; [ "$gpus" -eq 1 ] && most=4 # for other machines: nothing waits for it here
  "${with_peers[@]}" timeout 1000 python3 bench/compile_peers.py 2 "$most"
  local made; made=$(mktemp -d)
  for library in ~/.cache/flashinfer/*/*/cached_ops/*/*.so; do
    [ -e "$library" ] || return # it was made before
    install -D "$library" "$made/aot/$(basename "$library" .so)/$(basename "$library")"
  done
  tar -cJf "$out/peers-cache.tar.xz" -C "$made" aot -C ~/.cache sglang
}
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader -i 0 | grep -oiE '[a-z]+[0-9]+' | head -n 1 | tr '[:upper:]' '[:lower:]')
# What the machine lacks is carried as wheels in the ignored folder .wheels (platformdirs, so far). A build that
# does not import would cost every step its time.
build() {
  if [ -d .wheels ]; then python3 -m pip install -q --no-index --no-deps .wheels/*.whl || return; fi
  python3 -m pip install -q --no-build-isolation --no-deps -e . && python3 -c 'from pyallreduce import Communicator'
}
export -f build
for step in $steps; do
  case $step in
    build)
      run build 200 bash -c build
      [[ ${verdict[build]} == 'exit 0 '* ]] || exit 1 ;;
    tests) run tests 300 python3 -m pytest -q -rs -m gpu tests/gpu -p no:cacheprovider ;;
    latency) run latency 120 python3 tests/gpu/latency.py "$out/latency.json" ;;
    check)
      if [ "$gpus" -ge 2 ]; then run check 300 pyallreduce check --json "$out/check.json"
      else run check 200 "${share[@]}" pyallreduce check --quick --ranks 2 --json "$out/check.json"; fi ;;
    # In the background: minutes of the CPU, behind the steps that follow. What comes of it goes to $OUT, for .peers.
    compile)
      peers
      compile > "$out/compile.log" 2>&1 &
      compiling=$! ;;
    # More arguments in $COMPARE and $SWEEP, such as COMPARE='--modes graph --samples 30'; the commit in $COMMIT.
    compare)
      [ -n "${compiling:-}" ] && wait "$compiling"
      peers
      # shellcheck disable=SC2086
      TAIL=110 run compare "${COMPARE_SECONDS:-580}" "${with_peers[@]}" pyallreduce bench --compare \
        --timeout $((${COMPARE_SECONDS:-580} - 20)) ${COMMIT:+--commit "$COMMIT"} \
        -o "$out/compare-${gpu:-gpu}-$gpus.json" ${COMPARE:-} ;;
    # In $RACERS: how builds are raced, such as RACERS=--alternate.
    # shellcheck disable=SC2086
    sweep) run sweep 300 python3 bench/sweep.py "$out/sweep.json" --timeout 290 ${SWEEP:-} ;;
    race) run race 250 python3 bench/race.py "bench/races/${RACE:-apart}.json" "$out/race" -b "${RACE_FROM:-1K}" -e "${RACE_TO:-64M}" --samples 15 ${RACERS:---shipped} ;;
    types) run types 120 pyallreduce bench -b 1K -e 16M -f 4 -d all -G 25 --backend auto --json "$out/types.json" ;;
    tune) run tune 120 pyallreduce tune --output "$out/tuning.json" ;;
    bench) run bench 300 pyallreduce bench -b 1K -e 256M -f 2 --eager --json "$out/bench.json" ;;
    sanitizer) run sanitizer 200 "${share[@]}" compute-sanitizer --tool memcheck --error-exitcode 9 \
      --target-processes all pyallreduce check --quick -d bfloat16 --ranks 2 ;;
    cost)
      run cost 200 python3 bench/safety_cost.py "$out/safety-cost.json" --bare "${BARE:-${TMPDIR:-/tmp}/bare}" ;;
    drill) run drill 300 python3 bench/fault_drill.py "$out/drill.json" --gpus "$gpus" --ranks "$ranks" ${DRILL:---kills 5 --starts 50} ;;
    eager)
      [ -n "${compiling:-}" ] && wait "$compiling"
      peers
      # shellcheck disable=SC2086
      run eager 150 "${with_peers[@]}" python3 bench/eager_host.py "$out/eager-host.json" --deadline 140 ${EAGER:-} ;;
    late) run late 60 python3 bench/late.py "$out/late.json" ;;
    soak) run soak 200 python3 bench/soak.py "$out/soak.json" ${SOAK:---seconds 40} ;;
    synccheck) run synccheck 200 compute-sanitizer --tool synccheck --error-exitcode 9 \
      python3 -m pytest -q -m gpu tests/gpu/test_kernels.py -k 'special or differ' -p no:cacheprovider ;;
  esac
done
wait # for what runs in the background
echo '== summary'
for step in $steps; do printf '%-10s %s\n' "$step" "${verdict[$step]:-}"; done
