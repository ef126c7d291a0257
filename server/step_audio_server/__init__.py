"""The server: the model repository's assembly, its start on a CPU or on GPUs, its life; the `step-audio` command."""
