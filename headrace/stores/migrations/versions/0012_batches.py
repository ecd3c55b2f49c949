"""Requests that wait for a provider's batches."""

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    pass


def downgrade() -> None:
    raise NotImplementedError("drop the schema instead")
