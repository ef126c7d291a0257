"""Other engines beside ours, on the same weights: `python benchmarks/peers/compare.py --help`."""
