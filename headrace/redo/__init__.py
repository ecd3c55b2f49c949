"""Doing work again: dead letters, what a stage misses, what an older version of it made."""
