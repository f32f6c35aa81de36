-- Format 2: the checksum of each chunk, and a small memory that belongs to no project.

-- CRC-64/NVME of what was sent, its 64 bits as a signed number. NULL where it was not computed.
ALTER TABLE chunk ADD COLUMN crc64nvme INTEGER;

CREATE TABLE memory (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL,
    turn  INTEGER NOT NULL                   -- grows with each change of the table; the lowest is the oldest
) STRICT;
