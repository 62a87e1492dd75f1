"""The operator: custom resources in, revisions to the config service, conditions back into their status.

model.py     what was read and what is to be written: values
store.py     the resources as last read, by kind; replaced whole by every authoritative list
plan.py      pure: compile result + consumers + what the status says now → what to write, which events to record
dns.py       which DNS records a MailDomain needs: looks up what mailrail.core.dnscheck asks for
app.py       the loop: wait for a change, gather, compile, publish, plan, write
watches.py   kopf, thin: events become entries of the store and a nudge, nothing else
writer.py    statuses and events to the API server, beside the loop
lease.py     who leads; whoever loses the lease exits
clients.py   the config service: epoch, publish, consumers
"""
