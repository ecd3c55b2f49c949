"""Snapshots: the database's rows with the offsets that they stand for, in a folder of files.

A restore makes the stores what they were; what came later stands on the topics and comes again by
catching up. A snapshot holds content, so `forget` reaches into every one of them.
"""

from headrace.snapshots.removal import forget

__all__ = ["forget"]
