"""Adapters to other people's engines, through the interfaces that they offer for it. Nothing of theirs is patched."""
