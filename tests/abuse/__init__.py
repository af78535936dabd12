"""Hostile agents on the real engine, in a server that a victim agent and a client share with them: `./justw abuse`."""
