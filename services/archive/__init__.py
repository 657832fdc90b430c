"""The archive: every accepted event once, in parquet parts; what could not be read, kept whole; data brought in."""
