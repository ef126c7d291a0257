"""The CPU stand-in of NVIDIA's `tensorrtllm` backend, in four parts."""
