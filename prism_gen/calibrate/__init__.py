"""Thresholds of every layer and list of blocks, found offline on text: `python -m prism_gen calibrate`.

Owns the search (curves.py or measured.py, allocate.py, search.py). What it finds is a SelectionProfile
(prism_gen/profile.py).
"""
