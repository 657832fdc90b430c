"""Stage 1 of serving: sources propose items, filters take out what must not be shown."""
