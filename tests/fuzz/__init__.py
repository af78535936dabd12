"""What strangers write, invented without end: ./justw fuzz."""
