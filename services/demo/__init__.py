"""The demo: film data, a generated world, and the story told over the real processes."""
