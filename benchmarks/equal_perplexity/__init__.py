"""Time of an attention layer at equal perplexity: dense attention, the paper's estimator, sub-blocks, a mixture."""
