"""What an object in Weaviate is called, and what a record's version is."""

from __future__ import annotations

import uuid

NAMESPACE = uuid.UUID("5f0c1d0e-6a1b-5e0f-9d57-2f4c3b1a7e10")

# Of records r: it grows with each change of the record or of an outcome of it.
ROW_VERSION = """(r.row_version + coalesce(
         (SELECT sum(o.row_version) FROM outcomes o WHERE o.record_id = r.id), 0))::bigint"""


def key(record_id: str) -> uuid.UUID:
    """The id of a record's object."""
    return uuid.uuid5(NAMESPACE, record_id)
