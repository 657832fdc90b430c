"""One file per revision, oldest first: how the tables become the next ones, and the former ones again."""
