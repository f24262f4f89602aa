"""What all benchmarks share: turns, agreement, memory, limits, one schema of results."""
