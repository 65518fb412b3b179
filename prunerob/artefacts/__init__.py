"""Artefacts: files of a network that run elsewhere, and what is known of them."""
