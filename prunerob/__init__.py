"""Train, prune and attack image classifiers: what does compression do to robustness?"""

__version__ = "0.1.0"
