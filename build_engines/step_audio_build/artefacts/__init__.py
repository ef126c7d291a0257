"""What is built: where it lies, what it was made from, whether it is whole."""
