"""Profiles of machines, and what of a model fits into their memory."""
