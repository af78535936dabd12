"""The HTTP server of Agent Harness, and the command that starts it."""
