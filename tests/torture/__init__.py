"""The oracle test: the product under faults, watched from outside, and checked against its promises afterwards."""
