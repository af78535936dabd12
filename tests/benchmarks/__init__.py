"""Benchmarks: `./justw bench`. Every figure that matters is a ratio of two things measured in turns, in one run."""
