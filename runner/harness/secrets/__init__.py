"""Secrets: what they are, how they are encrypted, and how they are kept out of what a run shows.

Where they are stored is the store's business, see `harness.ports.Store`; who puts the two together is `harness.vault`.
"""
