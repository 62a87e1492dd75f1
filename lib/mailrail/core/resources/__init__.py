"""The custom resources of `mailrail.dev/v1alpha1`, as typed models: one definition for local mode and the cluster.

`read` turns a document (JSON) into a model or says what is wrong with it. The CRDs, the reference page and every
message come from these models.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from mailrail.core.resources.account import MailAccount
from mailrail.core.resources.base import API_VERSION, Resource
from mailrail.core.resources.domain import MailDomain
from mailrail.core.resources.gateway import MailGateway
from mailrail.core.resources.problems import InvalidResource, Problem, explain
from mailrail.core.resources.route import MailRoute
from mailrail.core.resources.transport import MailTransport

KINDS: Final[Mapping[str, type[Resource]]] = {
    "MailGateway": MailGateway,
    "MailDomain": MailDomain,
    "MailAccount": MailAccount,
    "MailTransport": MailTransport,
    "MailRoute": MailRoute,
}
"""Every kind, in the order in which a reader needs them."""

AnyResource = MailGateway | MailDomain | MailAccount | MailTransport | MailRoute


def read(source: str, kind: str) -> AnyResource:
    """The resource of that kind in a JSON text. Raises InvalidResource with every problem found."""
    model = KINDS[kind]
    try:
        return model.model_validate_json(source)  # type: ignore[return-value]
    except ValidationError as error:
        raise explain(model, error) from error


def canonical(document: Mapping[str, Any]) -> str:
    """What counts of a document, as canonical JSON: identity and spec. Two documents that mean the same are equal.

    Kubernetes' own fields (labels, managedFields, resourceVersion) and `status` change without meaning; they are left
    out, so that an unchanged object is recognised.
    """
    metadata = document.get("metadata")
    kept: dict[str, Any] = {key: value for key, value in document.items() if key not in ("metadata", "status")}
    if isinstance(metadata, Mapping):
        kept["metadata"] = {k: metadata[k] for k in ("name", "namespace", "uid") if k in metadata}
        if isinstance(created := metadata.get("creationTimestamp"), str):  # `null` in what tools print
            kept["metadata"]["creationTimestamp"] = created
    elif metadata is not None:
        kept["metadata"] = metadata
    return json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


__all__ = [
    "API_VERSION",
    "KINDS",
    "AnyResource",
    "InvalidResource",
    "MailAccount",
    "MailDomain",
    "MailGateway",
    "MailRoute",
    "MailTransport",
    "Problem",
    "Resource",
    "canonical",
    "read",
]
