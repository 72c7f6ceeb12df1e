"""GraphQL resolvers: one module per kind of object."""
