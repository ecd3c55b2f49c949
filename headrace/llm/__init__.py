"""The one way to a language model."""
