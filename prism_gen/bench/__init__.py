"""How fast kernels are: timing, measured ceilings, energy, and peers to measure beside them.

Owns how a figure is taken. Must not judge answers (prism_gen/verify/ does).
"""
