"""Events: users, items, queries, slates. The product's three functions and what plugs into them."""
