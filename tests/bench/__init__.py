"""`make bench`: Mailrail and Postfix in turn, on this machine, from smtp-source to smtp-sink.

Same generator, same sink, same disk, both durable (Postfix syncs its queue files, Mailrail commits to Postgres before
250). What is measured: messages a second from the first connection to the last message in the sink, CPU
milliseconds a message by process (user and system, reaped children included), and memory. Never a timed test:
identical runs differ by 20 %, and ratios below 1.3 mean nothing.
"""
