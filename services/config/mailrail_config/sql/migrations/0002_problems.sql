-- What a consumer cannot carry out of the revision that it runs (CFG-05).
ALTER TABLE consumers ADD COLUMN problems bytea NOT NULL DEFAULT '';  -- mailrail.config.v1.Consumer with only `problems` and `gateway` set
