"""What a user would run instead, beside ours, in one process: packages, and a loop that one would write oneself."""
