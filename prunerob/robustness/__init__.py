"""Robustness: what a test measures, and how it is written, shown and doubted."""
