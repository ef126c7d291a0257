"""Step-Audio-R1.1 on Triton: the core, importable with no Triton and no GPU."""
