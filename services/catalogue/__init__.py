"""Consumer 4 of 4. Item changes in; cards, text vectors and the change feed `items_live` out."""
