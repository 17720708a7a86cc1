"""What every other package builds on: components, errors, parameter paths, weighted sums."""
