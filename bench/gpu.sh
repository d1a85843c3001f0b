#!/usr/bin/env bash
# All that only a GPU can show, in one go: its tests, the bench beside the peers, and `clip embed` from files.
#
# Usage: bench/gpu.sh [--dry-run]
#
# Two minutes for `pytest -m cuda`, eight for the bench, four for the files; a step that takes longer is ended, and the
# next one follows. Python is PYTHON, else .venv/bin/python. The figures stand in bench/results.jsonl and, for LOG.md, at
# the end of what is printed; the README's tables are written. Exits with 1 where a step failed.
# --dry-run takes the same steps on a CPU, with small models, few images and no peers, and writes neither file.
set -uo pipefail
cd "$(dirname "$0")/.."

dry=
if [ "${1:-}" = --dry-run ]; then dry=1; fi
python=${PYTHON:-.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

step() { # seconds, name, command: run it within its time, keep what it prints, and say how it ended
    local limit=$1 name=$2 began=$SECONDS code=0
    shift 2
    printf '\n== %s: %s\n' "$name" "$*"
    timeout --signal=INT --kill-after=20 "$limit" "$@" 2>&1 | tee "$work/$name" || code=$?
    if [ "$code" -ne 0 ]; then failed=1; fi
    printf '%s: exit code %d after %d s of %d\n' "$name" "$code" $((SECONDS - began)) "$limit" | tee -a "$work/steps"
}

if [ -n "$dry" ]; then
    results=$work/results.jsonl
    step 600 tests "$python" -m pytest -q -m cuda tests/parity/test_cuda.py
    step 600 bench env PIP_NO_INDEX=1 "$python" bench/run.py --device cpu --rows encode --models RN50 --precisions fp32 --peers ours \
        --pairs 1 --output "$results"
    step 600 files "$python" bench/device_feed.py --device cpu --model sketch --images 300 --files 40 --workers 2
    step 60 table "$python" bench/run.py --table "$results"
else
    results=bench/results.jsonl
    "$python" -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "torch sees no GPU")' || exit 1
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee -a "$work/steps"
    step 120 tests "$python" -m pytest -q -m cuda --durations=5 tests/parity/test_cuda.py
    step 480 bench "$python" bench/run.py --device cuda --rows encode,latency,jpeg-web --models ViT-B/32,ViT-L/14 \
        --pairs 3 --output "$results"
    step 120 files "$python" bench/device_feed.py --model ViT-B/32
    step 120 files-large "$python" bench/device_feed.py --model ViT-L/14 --images 40000
    step 60 table "$python" bench/run.py --table "$results" --write README.md
fi

printf '\n== For LOG.md: commit %s, torch %s\n' "$(git rev-parse --short HEAD)" \
    "$("$python" -c 'import torch; print(torch.__version__)')"
cat "$work/steps"
for name in tests bench files files-large; do
    if [ -f "$work/$name" ]; then printf -- '-- %s\n' "$name" && tail -n 12 "$work/$name"; fi
done
exit $failed
