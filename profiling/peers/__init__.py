"""Peers: packages that a user would take instead, and a loop that one would write oneself, beside ours in one process."""
