"""What all benchmarks share: rounds, agreement, memory, limits, one schema of results."""
