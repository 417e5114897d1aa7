"""Perplexity of a real model whose layers attend to selected blocks only: the judge of every selection rule."""
