"""Sweeps: what is to be run (plan), where (executor), which when (queue), and the command."""
