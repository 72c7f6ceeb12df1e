"""How each GraphQL field gets its value: one module per type of thing."""
