"""What a right kernel is: inputs, exact answers in float64, guards around outputs, and the verdict.

Owns the judgement that `prism_gen verify`, `tune` and tools/gpu_check.py share. Must not time.
"""
