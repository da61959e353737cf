"""Independent references, the models and data that they are asked about, and measures of error."""
