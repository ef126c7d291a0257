"""How a server is started: on a CPU, or on GPUs under mpirun."""
