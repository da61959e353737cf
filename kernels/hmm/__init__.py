"""Hidden Markov models as recurrences: filters, smoothers, samplers, most likely paths."""
