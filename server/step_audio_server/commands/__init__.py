"""The `step-audio` command and what it runs by itself."""
