"""Agent Harness: runs autonomous agents around the clock, each run in a throwaway Docker container."""
