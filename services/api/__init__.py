"""The HTTP edge: bodies into records, records into JSON. No business rule lives here."""
