"""Consumer 2 of 4. Events and slates in; item counts, co-visits and hour rows of `item_stats` out."""
