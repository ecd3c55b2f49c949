"""Nodes, edges, and what people decided about them."""

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    pass


def downgrade() -> None:
    raise NotImplementedError("drop the schema instead")
