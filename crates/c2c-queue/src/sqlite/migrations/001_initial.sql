-- The queue, format 1.
--
-- Times: columns ending in _at are wall clock milliseconds since 1970 and are only shown.
-- Waits, deadlines and ages (not_before, wake_at, lease_until, held_since, urls_at, stored) are milliseconds of the store's own time.

-- One row: what the store itself remembers.
CREATE TABLE store (
    id          INTEGER PRIMARY KEY CHECK (id = 1),
    store_ms    INTEGER NOT NULL DEFAULT 0 CHECK (store_ms >= 0), -- store time at the last commit; 0: it never began
    boot_ms     INTEGER NOT NULL DEFAULT 0,  -- time since boot at the last commit ...
    boot_id     TEXT,                        -- ... and the boot: from there it goes on
    token       INTEGER NOT NULL DEFAULT 0,  -- last fencing token given
    position    INTEGER NOT NULL DEFAULT 0,  -- last position given
    lines       INTEGER NOT NULL DEFAULT 0,  -- history lines ever written about the queue itself
    clean       INTEGER NOT NULL DEFAULT 0 CHECK (clean IN (0, 1)),
    key_check   BLOB,                        -- a known word, sealed
    client_id   TEXT
) STRICT;
INSERT INTO store (id) VALUES (1);

CREATE TABLE media (
    id               INTEGER PRIMARY KEY AUTOINCREMENT,
    path             ANY NOT NULL,           -- TEXT where it is Unicode, BLOB where it is not
    name             TEXT NOT NULL,
    size             INTEGER NOT NULL CHECK (size >= 0),
    mtime_ns         INTEGER NOT NULL,
    device           INTEGER,
    file             INTEGER,
    volume_id        TEXT,
    mount_point      ANY,
    removable        INTEGER CHECK (removable IN (0, 1)),
    filetype         TEXT NOT NULL,
    capture_wall     INTEGER NOT NULL,
    capture_boot_id  TEXT,
    capture_boot     INTEGER,
    capture_source   TEXT NOT NULL CHECK (capture_source IN ('given', 'file_time', 'doubted')),
    capture_accepted INTEGER NOT NULL DEFAULT 0 CHECK (capture_accepted IN (0, 1)),
    channel          INTEGER NOT NULL,
    priority         INTEGER NOT NULL,
    position         INTEGER NOT NULL,
    parts            INTEGER,
    auto_version_id  TEXT,
    state            TEXT NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'registering', 'transferring', 'delivered', 'withheld', 'parked', 'failed', 'cancelled')),
    hold             TEXT CHECK (hold IN ('by_hand', 'capture_time_unknown', 'volume_away', 'file_changing', 'channel_paused')),
    held_at          INTEGER,
    held_since       INTEGER,
    tries            INTEGER NOT NULL DEFAULT 0 CHECK (tries >= 0),
    rounds           INTEGER NOT NULL DEFAULT 0 CHECK (rounds >= 0),
    tries_total      INTEGER NOT NULL DEFAULT 0 CHECK (tries_total >= 0),
    final_try        INTEGER NOT NULL DEFAULT 0 CHECK (final_try IN (0, 1)),
    parked_boot      TEXT,
    not_before       INTEGER NOT NULL DEFAULT 0,
    wake_at          INTEGER,                -- when there is something to check out; NULL: not by itself
    due              INTEGER CHECK (due IN (0, 1)), -- 1: wake_at has come; 0: it has not; NULL: no wake_at
    lease_token      INTEGER,
    lease_process    TEXT,
    lease_worker     TEXT,
    lease_until      INTEGER,
    asset_id         TEXT,
    project_id       TEXT,
    registered_at    INTEGER,
    urls_at          INTEGER,
    registrations    INTEGER NOT NULL DEFAULT 0,
    -- How many of them a person's retry has forgiven.
    registrations_before INTEGER NOT NULL DEFAULT 0 CHECK (registrations_before <= registrations),
    possible_duplicates INTEGER NOT NULL DEFAULT 0,
    chunk_count      INTEGER NOT NULL DEFAULT 0,
    chunks_ready     INTEGER NOT NULL DEFAULT 0 CHECK (chunks_ready >= 0),
    chunks_sending   INTEGER NOT NULL DEFAULT 0 CHECK (chunks_sending >= 0),
    chunks_sent      INTEGER NOT NULL DEFAULT 0 CHECK (chunks_sent >= 0),
    bytes_sent       INTEGER NOT NULL DEFAULT 0 CHECK (bytes_sent >= 0),
    bytes_resent     INTEGER NOT NULL DEFAULT 0,
    last_fault       TEXT,
    added_at         INTEGER NOT NULL,
    rested_at        INTEGER,
    lines            INTEGER NOT NULL DEFAULT 0, -- history lines ever written about it

    CHECK ((volume_id IS NULL) = (mount_point IS NULL) AND (volume_id IS NULL) = (removable IS NULL)),
    CHECK ((capture_boot_id IS NULL) = (capture_boot IS NULL)),
    CHECK ((hold IS NULL) = (held_at IS NULL) AND (hold IS NULL) = (held_since IS NULL)),
    CHECK (hold IS NULL OR state IN ('queued', 'registering', 'transferring')),
    CHECK ((wake_at IS NULL) = (due IS NULL)),
    CHECK (due IS NULL OR (hold IS NULL AND state IN ('queued', 'transferring'))),
    -- A lease on the media is the lease on its registration.
    CHECK ((lease_token IS NULL) = (state <> 'registering')),
    CHECK ((lease_token IS NULL) = (lease_process IS NULL) AND (lease_token IS NULL) = (lease_worker IS NULL)
        AND (lease_token IS NULL) = (lease_until IS NULL)),
    CHECK (state NOT IN ('transferring', 'delivered')
        OR (asset_id IS NOT NULL AND project_id IS NOT NULL AND registered_at IS NOT NULL AND urls_at IS NOT NULL
            AND chunk_count > 0)),
    CHECK (state NOT IN ('queued', 'registering', 'withheld', 'cancelled') OR (asset_id IS NULL AND chunk_count = 0)),
    CHECK (state = 'delivered' OR chunks_ready + chunks_sending + chunks_sent = chunk_count),
    CHECK (state <> 'delivered' OR (chunks_sent = chunk_count AND bytes_sent = size)),
    CHECK ((rested_at IS NULL) = (state IN ('queued', 'registering', 'transferring'))),
    CHECK ((parked_boot IS NULL) = (state <> 'parked'))
) STRICT;

CREATE INDEX media_by_path ON media (path);
CREATE INDEX media_by_state ON media (state, id);
CREATE INDEX media_in_line ON media (priority DESC, position, id)
    WHERE state IN ('queued', 'registering', 'transferring');
CREATE INDEX media_to_register ON media (priority DESC, position, id) WHERE due = 1 AND state = 'queued';
CREATE INDEX media_to_send ON media (priority DESC, position, id) WHERE due = 1 AND state = 'transferring';
CREATE INDEX media_waking ON media (state, wake_at) WHERE due = 0;
CREATE INDEX media_leased ON media (id) WHERE lease_token IS NOT NULL;
CREATE INDEX media_held ON media (id) WHERE hold IS NOT NULL;

CREATE TABLE chunk (
    media_id      INTEGER NOT NULL REFERENCES media (id) ON DELETE CASCADE,
    number        INTEGER NOT NULL CHECK (number >= 0),
    start         INTEGER NOT NULL CHECK (start >= 0),
    length        INTEGER NOT NULL CHECK (length >= 0),
    state         TEXT NOT NULL DEFAULT 'ready' CHECK (state IN ('ready', 'sending', 'sent')),
    tries         INTEGER NOT NULL DEFAULT 0 CHECK (tries >= 0),
    tries_total   INTEGER NOT NULL DEFAULT 0 CHECK (tries_total >= 0),
    acknowledged  INTEGER NOT NULL DEFAULT 0,
    not_before    INTEGER NOT NULL DEFAULT 0,
    lease_token   INTEGER,
    lease_process TEXT,
    lease_worker  TEXT,
    lease_until   INTEGER,
    lease_round   INTEGER,                   -- rounds of the media when it was checked out
    etag          TEXT,
    md5           TEXT,
    sent_at       INTEGER,
    url           BLOB,                      -- sealed; forgotten once sent
    UNIQUE (media_id, number),
    CHECK ((state = 'sent') = (sent_at IS NOT NULL)),
    CHECK ((state = 'sent') = (url IS NULL)),
    CHECK ((state = 'sending') = (lease_token IS NOT NULL)),
    CHECK ((lease_token IS NULL) = (lease_process IS NULL) AND (lease_token IS NULL) = (lease_worker IS NULL)
        AND (lease_token IS NULL) = (lease_until IS NULL) AND (lease_token IS NULL) = (lease_round IS NULL))
) STRICT;

CREATE INDEX chunk_ready ON chunk (media_id, number, not_before) WHERE state = 'ready';
CREATE INDEX chunk_waking ON chunk (media_id, not_before) WHERE state = 'ready';
CREATE INDEX chunk_leased ON chunk (media_id) WHERE lease_token IS NOT NULL;
CREATE INDEX chunk_tried ON chunk (media_id) WHERE tries > 0 AND state <> 'sent';

-- The counters of a media follow its chunks one by one. Chunks are inserted and deleted only all together,
-- and the statement that does so sets the counters.
CREATE TRIGGER chunk_counters AFTER UPDATE OF state ON chunk WHEN OLD.state <> NEW.state BEGIN
    UPDATE media SET
        chunks_ready = chunks_ready + (NEW.state = 'ready') - (OLD.state = 'ready'),
        chunks_sending = chunks_sending + (NEW.state = 'sending') - (OLD.state = 'sending'),
        chunks_sent = chunks_sent + (NEW.state = 'sent') - (OLD.state = 'sent'),
        bytes_sent = bytes_sent + ((NEW.state = 'sent') - (OLD.state = 'sent')) * NEW.length
    WHERE id = NEW.media_id;
END;

CREATE TRIGGER chunk_life BEFORE UPDATE OF state ON chunk
WHEN OLD.state <> NEW.state AND NOT ((OLD.state = 'ready' AND NEW.state = 'sending')
    OR (OLD.state = 'sending' AND NEW.state IN ('ready', 'sent')))
BEGIN
    SELECT RAISE(ABORT, 'illegal move of a chunk');
END;

-- The life cycle of a media.
CREATE TABLE media_move (
    from_state TEXT NOT NULL,
    to_state   TEXT NOT NULL,
    PRIMARY KEY (from_state, to_state)
) STRICT, WITHOUT ROWID;
INSERT INTO media_move VALUES
    ('queued', 'registering'), ('queued', 'parked'), ('queued', 'failed'), ('queued', 'cancelled'),
    ('registering', 'queued'), ('registering', 'transferring'), ('registering', 'withheld'),
    ('registering', 'parked'), ('registering', 'failed'), ('registering', 'cancelled'),
    ('transferring', 'queued'), ('transferring', 'delivered'), ('transferring', 'parked'),
    ('transferring', 'failed'), ('transferring', 'cancelled'),
    ('parked', 'queued'), ('parked', 'transferring'), ('parked', 'delivered'), ('parked', 'cancelled'),
    ('parked', 'failed'),
    ('failed', 'queued'), ('failed', 'transferring'), ('failed', 'delivered'), ('failed', 'cancelled'),
    ('failed', 'failed'),
    ('withheld', 'queued'), ('withheld', 'cancelled'),
    ('cancelled', 'queued');

CREATE TRIGGER media_birth BEFORE INSERT ON media WHEN NEW.state <> 'queued' BEGIN
    SELECT RAISE(ABORT, 'a media begins as queued');
END;

CREATE TRIGGER media_life BEFORE UPDATE OF state ON media
WHEN OLD.state <> NEW.state
    AND NOT EXISTS (SELECT 1 FROM media_move WHERE from_state = OLD.state AND to_state = NEW.state)
BEGIN
    SELECT RAISE(ABORT, 'illegal move of a media');
END;

-- The queue in numbers, so that nobody ever counts rows.
CREATE TABLE tally (
    state      TEXT PRIMARY KEY,
    media      INTEGER NOT NULL DEFAULT 0 CHECK (media >= 0),
    bytes      INTEGER NOT NULL DEFAULT 0 CHECK (bytes >= 0),
    bytes_sent INTEGER NOT NULL DEFAULT 0 CHECK (bytes_sent >= 0)
) STRICT, WITHOUT ROWID;
INSERT INTO tally (state) VALUES
    ('queued'), ('registering'), ('transferring'), ('delivered'), ('withheld'), ('parked'), ('failed'), ('cancelled');

CREATE TABLE counts (
    id           INTEGER PRIMARY KEY CHECK (id = 1),
    held         INTEGER NOT NULL DEFAULT 0 CHECK (held >= 0),          -- media that are held
    chunks_ready INTEGER NOT NULL DEFAULT 0 CHECK (chunks_ready >= 0),  -- of transferring media that are not held
    chunks_due   INTEGER NOT NULL DEFAULT 0 CHECK (chunks_due >= 0)     -- of those, of media that are due
) STRICT;
INSERT INTO counts (id) VALUES (1);

CREATE TRIGGER media_tally_insert AFTER INSERT ON media BEGIN
    UPDATE tally SET media = media + 1, bytes = bytes + NEW.size WHERE state = NEW.state;
    UPDATE counts SET held = held + 1 WHERE NEW.hold IS NOT NULL;
END;

CREATE TRIGGER media_tally_delete AFTER DELETE ON media BEGIN
    UPDATE tally SET media = media - 1, bytes = bytes - OLD.size, bytes_sent = bytes_sent - OLD.bytes_sent
        WHERE state = OLD.state;
    UPDATE counts SET
        held = held - (OLD.hold IS NOT NULL),
        chunks_ready = chunks_ready
            - CASE WHEN OLD.state = 'transferring' AND OLD.hold IS NULL THEN OLD.chunks_ready ELSE 0 END,
        chunks_due = chunks_due - CASE WHEN OLD.state = 'transferring' AND OLD.due = 1 THEN OLD.chunks_ready ELSE 0 END;
END;

CREATE TRIGGER media_tally_update AFTER UPDATE OF state, size, bytes_sent ON media
WHEN OLD.state <> NEW.state OR OLD.size <> NEW.size OR OLD.bytes_sent <> NEW.bytes_sent
BEGIN
    UPDATE tally SET media = media - 1, bytes = bytes - OLD.size, bytes_sent = bytes_sent - OLD.bytes_sent
        WHERE state = OLD.state;
    UPDATE tally SET media = media + 1, bytes = bytes + NEW.size, bytes_sent = bytes_sent + NEW.bytes_sent
        WHERE state = NEW.state;
END;

CREATE TRIGGER media_counts_update AFTER UPDATE OF state, hold, chunks_ready, due ON media
WHEN OLD.state <> NEW.state OR OLD.hold IS NOT NEW.hold OR OLD.chunks_ready <> NEW.chunks_ready OR OLD.due IS NOT NEW.due
BEGIN
    UPDATE counts SET
        held = held + (NEW.hold IS NOT NULL) - (OLD.hold IS NOT NULL),
        chunks_ready = chunks_ready
            + CASE WHEN NEW.state = 'transferring' AND NEW.hold IS NULL THEN NEW.chunks_ready ELSE 0 END
            - CASE WHEN OLD.state = 'transferring' AND OLD.hold IS NULL THEN OLD.chunks_ready ELSE 0 END,
        chunks_due = chunks_due
            + CASE WHEN NEW.state = 'transferring' AND NEW.due = 1 THEN NEW.chunks_ready ELSE 0 END
            - CASE WHEN OLD.state = 'transferring' AND OLD.due = 1 THEN OLD.chunks_ready ELSE 0 END;
END;

CREATE TABLE history (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    media_id INTEGER REFERENCES media (id) ON DELETE CASCADE, -- NULL: about the queue itself
    line     INTEGER NOT NULL,                                -- number of the line within its media, from 1
    at       INTEGER NOT NULL,
    event    TEXT NOT NULL
) STRICT;
CREATE INDEX history_by_media ON history (media_id, line);

-- Receipts outlive their media.
CREATE TABLE receipt (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    media_id     INTEGER NOT NULL UNIQUE,
    project_id   TEXT NOT NULL,
    delivered_at INTEGER NOT NULL,
    sealed       INTEGER NOT NULL DEFAULT 0 CHECK (sealed IN (0, 1)),
    body         TEXT NOT NULL
) STRICT;
CREATE INDEX receipt_unsealed ON receipt (id) WHERE sealed = 0;

-- One row: the pairing of this unit with one project.
CREATE TABLE connection (
    id               INTEGER PRIMARY KEY CHECK (id = 1),
    identity         TEXT,
    access           BLOB,                   -- sealed
    refresh          BLOB,                   -- sealed
    expires_in_ms    INTEGER,
    stored           INTEGER,
    tokens_stored_at INTEGER,
    refreshing       INTEGER NOT NULL DEFAULT 0 CHECK (refreshing IN (0, 1)),
    lost             TEXT,
    announce         INTEGER NOT NULL DEFAULT 0 CHECK (announce IN (0, 1)), -- tokens of a new pairing came
    CHECK ((access IS NULL) = (refresh IS NULL) AND (access IS NULL) = (expires_in_ms IS NULL)
        AND (access IS NULL) = (stored IS NULL) AND (access IS NULL) = (tokens_stored_at IS NULL)),
    CHECK (lost IS NULL OR access IS NULL)
) STRICT;
INSERT INTO connection (id) VALUES (1);

-- Server time at the start of each boot, as far as it was learned.
CREATE TABLE anchor (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    boot_id         TEXT NOT NULL UNIQUE,
    server_epoch_ms INTEGER NOT NULL
) STRICT;
