"""${message}.

Frozen once released: it imports no models, because they go on changing. SQLite and PostgreSQL both run it, inside
one transaction. There is no `downgrade`.
"""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}
