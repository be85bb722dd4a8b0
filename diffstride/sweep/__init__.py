"""Sweeps: training with every combination of settings."""
