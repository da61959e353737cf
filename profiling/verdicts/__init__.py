"""Verdicts on records: what became slower, whether the automatic choice was a good one, and the table that it follows."""
