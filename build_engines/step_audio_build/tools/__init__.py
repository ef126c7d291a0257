"""Other programs, TensorRT's and TensorRT-LLM's, and what is run in a process of its own."""
