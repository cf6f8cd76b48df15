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
export PYTHONUNBUFFERED=1
PATH="$(python3 -c "import pathlib, sys; print(pathlib.Path(sys.executable).parent)"):$PATH"
declare -A verdict
run() {  # name, deadline in seconds, command
  local name=$1 limit=$2; shift 2
  local start=$SECONDS
  timeout "$limit" "$@" > "$out/$name.log" 2>&1
  verdict[$name]="exit $? after $((SECONDS - start)) s"
  printf '== %s: %s\n' "$name" "${verdict[$name]}"; tail -n 25 "$out/$name.log"
}
share=(env PYALLREDUCE_SHARE_GPU=1)
for step in $steps; do
  case $step in
    build) run build 200 env CUDAARCHS=90-real python3 -m pip install --no-build-isolation --no-deps -e . ;;
    tests) run tests 300 python3 -m pytest -q -rs -m gpu tests/gpu -p no:cacheprovider ;;
    latency) run latency 120 python3 tests/gpu/latency.py "$out/latency.json" ;;
    check)
      if [ "$gpus" -ge 2 ]; then run check 300 pyallreduce check --json "$out/check.json"
      else run check 200 "${share[@]}" pyallreduce check --quick --ranks 2 --json "$out/check.json"; fi ;;
    bench) run bench 300 pyallreduce bench -b 1K -e 256M -f 2 --eager --json "$out/bench.json" ;;
    sanitizer) run sanitizer 200 "${share[@]}" compute-sanitizer --tool memcheck --error-exitcode 9 \
      --target-processes all pyallreduce check --quick -d bfloat16 --ranks 2 ;;
    synccheck) run synccheck 200 compute-sanitizer --tool synccheck --error-exitcode 9 \
      python3 -m pytest -q -m gpu tests/gpu/test_kernels.py -k 'special or differ' -p no:cacheprovider ;;
  esac
done
echo '== summary'
for step in $steps; do printf '%-10s %s\n' "$step" "${verdict[$step]:-}"; done
