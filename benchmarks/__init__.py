"""Studies of this repository, and their results. Not installed with the package."""
