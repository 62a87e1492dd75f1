-- mailrail: no-transaction
-- ListRecipients of a recipient domain, by due time. What is delivered at its first attempt is never in it.
CREATE INDEX CONCURRENTLY recipient_domain ON queue.recipient (lower(split_part(address COLLATE "C", '@', -1)), due, id) WHERE token IS NULL;
