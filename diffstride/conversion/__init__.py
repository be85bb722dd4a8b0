"""The downsampling of any Keras model, by layers of one's choice."""

from diffstride.conversion.model import POLICIES, convert

__all__ = ["POLICIES", "convert"]
