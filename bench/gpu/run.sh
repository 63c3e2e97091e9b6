#!/bin/sh
# bench/gpu/run.sh WHEELS OUT [ARGUMENTS]: measures the GPU of a machine without a network that has Python with torch
# for CUDA, and this checkout. WHEELS is a folder with the wheels of what is missing there, OUT a folder for gpu.json,
# gpu.log and pictures; ARGUMENTS are those of python -m bench.gpu. Under 8 minutes.
#
# The weights (34 GB) go to FOLDER; without it to memory where 40 GB of that are free, else into the checkout.
#
# The wheels, made on a machine with a network for the Python of the other one; together 11 MB, so that they can be
# carried. The other machine also has torchvision, transformers, accelerate and what these need. What needs spandrel or
# ultralytics is left out of the service where these cannot be imported: ultralytics needs cv2, which is not carried.
#   for name in annotated-types diffusers einops importlib-metadata lazy-importer pydantic pydantic-core spandrel \
#     typing-inspection ultralytics-opencv-headless ultralytics-platform ultralytics-thop; do
#     grep "^$name==" requirements.txt
#   done > wheels.txt
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \
#     --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d WHEELS -r wheels.txt
set -eu
wheels=$(cd "$1" && pwd) out=$2
shift 2
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/../.."
python3 -c 'import sys, torch; torch.cuda.is_available() or "--small" in sys.argv or sys.exit("error: torch finds no CUDA device")' "$@"
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl
python3 -m compileall -q -j 0 "$site"  # every measure is a process that imports it
free=$(df -k --output=avail /dev/shm 2>/dev/null | tail -n 1)
if [ "${free:-0}" -gt 40000000 ]; then memory=/dev/shm/random-flux; else memory=weights/random-flux; fi
ulimit -c 0
export PYTHONPATH="$site" PYTHONUNBUFFERED=1 TORCH_LOGS="${TORCH_LOGS-recompiles,perf_hints}"
python3 -m bench.gpu --seconds "${SECONDS_LEFT:-440}" --folder "${FOLDER:-$memory}" --out "$out/gpu.json" "$@"
