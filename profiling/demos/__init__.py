"""Demonstrations: what they draw and print, and the data that they need."""
