"""The signature of what accounts submit (DKIM-08a): by the domain of its author, and by those that sign, too.

Who signs is settled with the header, for the body is then made fit for every hop before it is hashed (DKIM-09). The
fields are put above the message once it has ended. Mail that cannot be signed goes unsigned, and a metric counts it.
"""

from mailrail.core.dkim.sign import MessageSigner, SigningError
from mailrail_ingress import metrics
from mailrail_ingress.checks.header import author_domains
from mailrail_ingress.checks.verdicts import CheckedMessage, Edit


def choose_signer(message: CheckedMessage) -> None:
    """Who signs: keys of each domain that is in From."""
    signers = message.signers
    if not signers:
        return
    domains = author_domains(message)
    keys = tuple(key for domain in domains for key in signers.of(domain))
    if keys:
        # Two authors' domains may have one domain that signs for both.
        message.signer = MessageSigner(tuple({key.name: key for key in keys}.values()))
    elif any(map(signers.has_keys, domains)):
        metrics.SIGNATURES.inc("failed")


def sign(message: CheckedMessage) -> Edit | None:
    """The DKIM-Signature fields, for the top of the message."""
    signer = message.signer
    if signer is None:
        return None
    try:
        fields = signer.finish(message.now)
    except SigningError:  # such as more fields than verifiers would read
        metrics.SIGNATURES.inc("failed")
        return None
    metrics.SIGNATURES.inc("signed")
    return Edit(added=fields)
