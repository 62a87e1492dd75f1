-- mailrail: no-transaction
-- ListRecipients of what an administrator bound to a transport, by due time. Few are, so it costs mail nothing.
CREATE INDEX CONCURRENTLY recipient_bound ON queue.recipient (override_transport COLLATE "C", due, id)
    WHERE override_transport IS NOT NULL AND token IS NULL;
