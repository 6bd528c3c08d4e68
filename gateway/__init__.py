"""Masking Gateway: swaps an internal credential for the vendor's, after recording and limiting the call."""

__version__ = "0.1.0"
