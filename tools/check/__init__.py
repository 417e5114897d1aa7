"""The parts of tools/gpu_check.py: what it runs, on what inputs, and how it judges the answers."""
