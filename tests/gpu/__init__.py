"""What only a CUDA device can show: `make test-gpu`, under ten minutes on one card, prints and writes docs/gpu.md.

With `PETL_BENCH_GPU_TESTS=cpu` the CPU stands in for the device, so that this code is not first run on a stranger's
card: what needs CUDA itself is skipped or emulated there, and nothing is written.
"""
