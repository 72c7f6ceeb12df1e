"""The login links that were used: each works once, also after a restart of the server."""

import sqlite3

TABLES = """
-- A nonce is no secret: a token needs its signature too. A row is removed when its token has expired.
CREATE TABLE used_login_link (nonce TEXT PRIMARY KEY, expires REAL NOT NULL) WITHOUT ROWID;
"""


def use(connection: sqlite3.Connection, nonce: str, expires: float, now: float) -> bool:
    """Whether the link was not used before; from now on it was. Times are seconds since the epoch."""
    connection.execute("DELETE FROM used_login_link WHERE expires < ?", (now,))
    added = connection.execute("INSERT OR IGNORE INTO used_login_link VALUES (?, ?)", (nonce, expires))
    return added.rowcount == 1
