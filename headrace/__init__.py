"""Headrace: raw text records on Kafka, enriched progressively by independent groups."""

__version__ = "0.1.0"
