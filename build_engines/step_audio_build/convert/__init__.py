"""Checkpoints in, checkpoints out: the decoder for TensorRT-LLM, the encoder as ONNX, small ones from nothing."""
