"""Scripts for maintainers. Not installed with the package."""
