"""Commands: one command is one module with a function `run`."""
