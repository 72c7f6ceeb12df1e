"""Extracts of the blocks of long histories; see server/history_blocks.py."""

import sqlite3


def next_block(connection: sqlite3.Connection, run_id: int, rewrites: int) -> int:
    """The number of the first block after those with an extract since the last rewrite of the history."""
    query = "SELECT COALESCE(MAX(number) + 1, 0) FROM history_extract WHERE run_id = ? AND rewrites = ?"
    return int(connection.execute(query, (run_id, rewrites)).fetchone()[0])


def write(connection: sqlite3.Connection, run_id: int, number: int, rewrites: int, extract: str) -> None:
    """Stores the extract of a block, in place of an older one."""
    connection.execute(
        "INSERT OR REPLACE INTO history_extract (run_id, number, rewrites, extract) VALUES (?, ?, ?, ?)",
        (run_id, number, rewrites, extract),
    )


def read(connection: sqlite3.Connection, run_id: int, rewrites: int) -> dict[int, str]:
    """By number of block the extracts since the last rewrite of the history."""
    query = "SELECT number, extract FROM history_extract WHERE run_id = ? AND rewrites = ?"
    return dict(tuple(row) for row in connection.execute(query, (run_id, rewrites)))
