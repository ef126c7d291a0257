"""The LLM step's other implementation: vLLM in a process and an environment of its own.

`process` runs there, with vLLM's numpy and torch, where nothing else of ours is installed: these modules import one
another, the standard library, and what vLLM itself needs.
"""
