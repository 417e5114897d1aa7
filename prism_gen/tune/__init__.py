"""Which schedule is fastest on a GPU: candidates built, verified, and raced on a grid of shapes.

Owns the search and its journal. Timing and judgement are those of bench/ and verify/; the result is tuning_table.py's.
"""
