"""Sweeps: what is to be run (plan), running it (workers), and the command."""
