"""Dead letters that somebody has put aside."""

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    pass


def downgrade() -> None:
    raise NotImplementedError("drop the schema instead")
