"""Scans of recurrences over batched series: lanes, elements, drivers. Knows no model parameters and no dispatch."""
