"""One command that measures the package on a CUDA GPU, without a network: ``python -m bench.gpu``. See
``bench/gpu/__main__.py``."""
