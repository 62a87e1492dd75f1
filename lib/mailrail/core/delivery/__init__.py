"""What an attempt means: its outcome, the next attempt's time, the site's window, the life of a recipient.

- `outcome`: a reply or a failure → delivered, relayed, deferred or failed, and whose trouble it was.
- `schedule`: when to try again, until when, and when to tell the sender (design 4, Retry).
- `judge`: both together with the DSN rules: what becomes of a recipient when an attempt ends.
- `window`: how many transactions a site may have in flight (SHD-04), and its backoff (SHD-05).
- `life`: the states of a recipient as one table.
"""
