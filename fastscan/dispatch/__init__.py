"""Which implementation runs: the one that was named, or the one that the crossover table says is fastest here."""
