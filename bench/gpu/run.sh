#!/bin/sh
# bench/gpu/run.sh WHEELS OUT: measures the GPU of a machine that has nothing but Python with torch for CUDA and this
# checkout. WHEELS is a folder with the wheels of what torch does not bring, OUT a folder for gpu.json. Under 8 minutes.
#
# The wheels, made on a machine with a network for the Python of the other one; together 34 MB, so that they can be
# carried. The other machine also has NumPy and Pillow. What needs torchvision, spandrel or ultralytics is left out of
# the service where these are not there.
#   for name in accelerate annotated-doc annotated-types anyio certifi charset-normalizer click diffusers h11 hf-xet \
#     httpcore2 httpx2 huggingface-hub idna importlib-metadata lazy-importer markdown-it-py mdurl packaging \
#     psutil pydantic pydantic-core pygments pyyaml regex requests rich safetensors shellingham tokenizers \
#     tqdm transformers truststore typer typing-extensions typing-inspection urllib3 zipp; do
#     grep "^$name==" requirements.txt
#   done > wheels.txt
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \
#     --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d WHEELS -r wheels.txt
set -eu
wheels=$1 out=$2
cd "$(dirname "$0")/../.."
python3 -m venv --system-site-packages .venv-gpu
.venv-gpu/bin/python -m pip install --quiet --no-index --no-deps "$wheels"/*.whl
mkdir -p "$out"
exec .venv-gpu/bin/python -m bench.gpu --seconds "${SECONDS_LEFT:-440}" --out "$out/gpu.json"
