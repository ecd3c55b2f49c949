"""Search: Weaviate as a picture of PostgreSQL, and the ways to ask it."""
