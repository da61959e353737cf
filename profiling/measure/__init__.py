"""Measures cases into a record: what they run, what they are held against, and how long they take."""
