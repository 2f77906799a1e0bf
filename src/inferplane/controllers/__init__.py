"""Loops that bring the world to what the store says."""
