"""The tables of artifacts.

An artifact is a version of its collection once it is committed; a link makes it a member of other collections
too. A manifest lists the artifact's files as entries. The content of a file is stored once, under its digest.
"""

TABLES = """
CREATE TABLE artifact_collection (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    project_id INTEGER NOT NULL REFERENCES project (id) ON DELETE CASCADE,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    type TEXT NOT NULL,
    description TEXT,
    tags TEXT NOT NULL DEFAULT '[]',
    -- Versions are numbered by a counter, so that the number of a deleted version is not used again.
    next_version INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    UNIQUE (project_id, name)
);
CREATE INDEX artifact_collection_of_type ON artifact_collection (project_id, type);
CREATE TABLE artifact (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    collection_id INTEGER NOT NULL REFERENCES artifact_collection (id) ON DELETE CASCADE,
    run_id INTEGER REFERENCES run (id) ON DELETE SET NULL,
    state TEXT NOT NULL,
    version INTEGER,
    digest TEXT NOT NULL,
    distributed_id TEXT,
    description TEXT,
    metadata TEXT,
    tags TEXT NOT NULL DEFAULT '[]',
    requested_aliases TEXT NOT NULL DEFAULT '[]',
    ttl_seconds INTEGER,
    ttl_is_inherited INTEGER NOT NULL DEFAULT 1,
    history_step INTEGER,
    manifest_id INTEGER,
    size INTEGER NOT NULL DEFAULT 0,
    file_count INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    UNIQUE (collection_id, version)
);
CREATE INDEX artifact_by_digest ON artifact (collection_id, digest);
CREATE INDEX artifact_created_by ON artifact (run_id);
CREATE INDEX artifact_pending ON artifact (updated_at) WHERE state = 'PENDING';
-- The id by which a client knows an artifact that it logs; several clients may log the same content.
CREATE TABLE artifact_client (
    client_id TEXT PRIMARY KEY,
    artifact_id INTEGER NOT NULL REFERENCES artifact (id) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX artifact_client_of ON artifact_client (artifact_id);
CREATE TABLE artifact_member (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    collection_id INTEGER NOT NULL REFERENCES artifact_collection (id) ON DELETE CASCADE,
    artifact_id INTEGER NOT NULL REFERENCES artifact (id) ON DELETE CASCADE,
    version INTEGER NOT NULL,
    created_at REAL NOT NULL,
    UNIQUE (collection_id, version),
    UNIQUE (collection_id, artifact_id)
);
CREATE INDEX artifact_member_of ON artifact_member (artifact_id);
CREATE TABLE artifact_alias (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    collection_id INTEGER NOT NULL REFERENCES artifact_collection (id) ON DELETE CASCADE,
    member_id INTEGER NOT NULL REFERENCES artifact_member (id) ON DELETE CASCADE,
    alias TEXT NOT NULL,
    UNIQUE (collection_id, alias)
);
CREATE INDEX artifact_alias_of ON artifact_alias (member_id);
-- Which runs logged and used an artifact. Several runs may log the same content.
CREATE TABLE artifact_run (
    -- In the order of the key: SQLite 3.40's quick_check reports another order as damage.
    run_id INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    role TEXT NOT NULL,
    artifact_id INTEGER NOT NULL REFERENCES artifact (id) ON DELETE CASCADE,
    PRIMARY KEY (run_id, role, artifact_id)
) WITHOUT ROWID;
CREATE INDEX artifact_run_of ON artifact_run (artifact_id, role);
CREATE TABLE artifact_manifest (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    artifact_id INTEGER NOT NULL REFERENCES artifact (id) ON DELETE CASCADE,
    kind TEXT NOT NULL,
    base_artifact_id INTEGER,
    digest TEXT NOT NULL,
    -- The manifest without its contents, as JSON; NULL until it is uploaded.
    head TEXT
);
CREATE INDEX artifact_manifest_of ON artifact_manifest (artifact_id);
CREATE TABLE artifact_entry (
    manifest_id INTEGER NOT NULL REFERENCES artifact_manifest (id) ON DELETE CASCADE,
    path TEXT NOT NULL,
    digest TEXT NOT NULL,
    size INTEGER NOT NULL,
    -- The URI of a reference; NULL for a stored file.
    ref TEXT,
    -- The entry's other values, as JSON.
    other TEXT NOT NULL,
    PRIMARY KEY (manifest_id, path)
) WITHOUT ROWID;
CREATE INDEX artifact_entry_by_digest ON artifact_entry (digest) WHERE ref IS NULL;
-- The contents on disk. `checksums` has one checksum per block, to verify what is read.
CREATE TABLE artifact_content (
    digest TEXT PRIMARY KEY,
    size INTEGER NOT NULL,
    checksums BLOB NOT NULL,
    is_damaged INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL
);
-- Contents that an artifact under construction needs before its manifest says so.
CREATE TABLE artifact_claim (
    artifact_id INTEGER NOT NULL REFERENCES artifact (id) ON DELETE CASCADE,
    digest TEXT NOT NULL,
    PRIMARY KEY (artifact_id, digest)
) WITHOUT ROWID;
CREATE INDEX artifact_claim_by_digest ON artifact_claim (digest);
CREATE TABLE artifact_upload (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    artifact_id INTEGER NOT NULL REFERENCES artifact (id) ON DELETE CASCADE,
    digest TEXT NOT NULL,
    part_digests TEXT NOT NULL,
    part_size INTEGER
);
CREATE INDEX artifact_upload_of ON artifact_upload (artifact_id);
CREATE TABLE artifact_part (
    upload_id INTEGER NOT NULL REFERENCES artifact_upload (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    size INTEGER NOT NULL,
    PRIMARY KEY (upload_id, number)
) WITHOUT ROWID;
"""
