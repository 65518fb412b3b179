"""Runs: the folders of `fit`, the weights in them, and what several ranks tell each other."""
