#!/bin/sh
# bench/gpu/run.sh WHEELS OUT: measures the GPU of a machine that has nothing but Python with torch for CUDA and this
# checkout. WHEELS is a folder with the wheels of what torch does not bring, OUT a folder for gpu.json. Under 8 minutes.
#
# The wheels, made on a machine with a network for the Python of the other one; together 26 MB, so that they can be
# carried. What needs torchvision, spandrel or ultralytics is left out of the service where these are not there.
#   grep -E '^(transformers|diffusers|accelerate|tokenizers|huggingface-hub|httpx2|httpcore2|truststore|pydantic|pydantic-core|annotated-types|typing-inspection|typing-extensions|importlib-metadata|zipp|regex|safetensors)==' \
#     requirements.txt > wheels.txt
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \
#     --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d WHEELS -r wheels.txt
set -eu
wheels=$1 out=$2
cd "$(dirname "$0")/../.."
python3 -m venv --system-site-packages .venv-gpu
.venv-gpu/bin/python -m pip install --quiet --no-index --no-deps "$wheels"/*.whl
mkdir -p "$out"
exec .venv-gpu/bin/python -m bench.gpu --seconds "${SECONDS_LEFT:-440}" --out "$out/gpu.json"
