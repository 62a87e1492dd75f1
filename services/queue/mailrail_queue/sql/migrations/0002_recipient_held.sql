-- mailrail: no-transaction
-- ListRecipients of what is on hold, by due time; with the shard, the count of it. Few are on hold, so it costs mail nothing.
CREATE INDEX CONCURRENTLY recipient_held ON queue.recipient (due, id) INCLUDE (shard) WHERE held_since IS NOT NULL AND token IS NULL;
