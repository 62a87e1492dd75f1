-- How many recipients each shard has, as its owner counted them last: GetStats and the gauges answer from this, whatever waits (QRY-07).
CREATE TABLE queue.census (
    shard   smallint PRIMARY KEY,  -- read whole
    counted timestamptz NOT NULL DEFAULT now(),
    waiting bigint NOT NULL,  -- neither leased nor on hold
    due     bigint NOT NULL,  -- of those
    held    bigint NOT NULL,  -- on hold, and not leased
    CONSTRAINT census_shard CHECK (shard BETWEEN 0 AND 255)
) WITH (fillfactor = 50);
