"""Searches: fixed strides found by trial and error, with Optuna.

Each trial is a run of `diffstride.sweep`, hence built on it. The sweep itself
needs nothing but Python, and so stays apart.
"""
