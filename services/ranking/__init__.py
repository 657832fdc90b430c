"""Stage 2 of serving: candidates get scores, the best get places and reasons."""
