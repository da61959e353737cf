"""Linear-Gaussian models as recurrences: filters, smoothers, samplers and scores."""
