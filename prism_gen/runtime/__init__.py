"""The runtime: loads a bundle, resolves kernels, runs one attention layer. The only part of the package that needs torch."""
