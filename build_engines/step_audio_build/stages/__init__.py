"""The stages of `step-audio build`, each with its manifest, and the build for a CPU."""
