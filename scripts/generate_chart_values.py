"""Generate the chart's values.schema.json and its reference page from the comments and defaults of values.yaml.

A value's type is that of its default; what a default cannot tell (choices, patterns, the shape of empty lists and maps)
stands below, by path or by the last name of the path. Every value must have words: a comment above it that begins with
`# --`, or an entry in WORDS, for fields that mean what Kubernetes says. No object is open but those whose shape is the
business of Kubernetes; so a typo stops `helm install`.
"""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from mailrail.kit.settings import DatabaseSettings, ServiceSettings
from mailrail_config.settings import ConfigSettings
from mailrail_ingress.settings import IngressSettings
from mailrail_operator.settings import OperatorSettings
from mailrail_outbound.settings import OutboundSettings
from mailrail_policy.settings import PolicySettings
from mailrail_queue.settings import QueueSettings

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy/helm/mailrail"
PAGE = ROOT / "docs/reference/chart-values.md"

Schema = dict[str, Any]


def closed(**properties: Schema) -> Schema:
    """An object with these properties and no others."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


def array(items: Schema, **more: Any) -> Schema:
    """A list of these."""
    return {"type": "array", "items": items, **more}


STRING: Schema = {"type": "string"}
NUMBER: Schema = {"type": "integer", "minimum": 0}
OPTIONAL_NUMBER: Schema = {"type": ["integer", "null"], "minimum": 0}
BOOLEAN: Schema = {"type": "boolean"}
OPTIONAL_BOOLEAN: Schema = {"type": ["boolean", "null"]}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
OPTIONAL_PORT: Schema = {"type": ["integer", "null"], "minimum": 1, "maximum": 65535}
STRINGS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
OWN_LABELS = "app\\.kubernetes\\.io/(name|instance|component|part-of|managed-by|version)|helm\\.sh/chart"
LABELS: Schema = STRINGS | {"propertyNames": {"not": {"pattern": f"^({OWN_LABELS})$"}}}
"""Labels besides the chart's own: selectors go by those, and a key that is there twice is an error."""
KUBERNETES: Schema = {"type": "object", "description": "As Kubernetes has it."}
DURATION: Schema = {"type": "string", "pattern": "^([0-9]+(\\.[0-9]+)?(h|m|s))+$"}
OPTIONAL_DURATION: Schema = {"type": "string", "pattern": "^(([0-9]+(\\.[0-9]+)?(h|m|s|ms))+)?$"}
QUANTITY: Schema = {"type": ["string", "integer", "number"], "pattern": "^[0-9.]+(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"}
CPU: Schema = {
    "type": ["string", "integer", "number"],
    "exclusiveMinimum": 0,
    "pattern": "^([1-9][0-9]*m?|[0-9]*\\.[0-9]*[1-9][0-9]*)$",
}
"""A quantity of CPU that is not 0."""
COUNT_OR_SHARE: Schema = {"type": ["integer", "string"], "minimum": 0, "pattern": "^[0-9]+%$"}
NAME: Schema = {"type": "string", "pattern": "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$", "maxLength": 253}
HOST_NAME: Schema = {"type": "string", "pattern": "^[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?$"}
CONTROLLER_NAME: Schema = {"type": "string", "pattern": "^[!-+--~]{0,128}$"}
ADDRESS: Schema = {"type": "string", "pattern": "^([0-9.]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)$"}
HOST_PORT: Schema = {"type": "string", "pattern": "^(.+:[0-9]+)?$"}
DIGEST: Schema = {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"}
PULL_POLICY: Schema = {"enum": ["Always", "IfNotPresent", "Never"]}
LOG_LEVELS = ["debug", "info", "warning", "error"]
SECCOMP: Schema = {
    "type": "object",
    "additionalProperties": False,
    "required": ["type"],
    "properties": {"type": {"enum": ["RuntimeDefault", "Localhost"]}, "localhostProfile": STRING},
}

PROBE = closed(
    initialDelaySeconds=NUMBER,
    periodSeconds=PORT | {"maximum": 3600},
    timeoutSeconds=PORT | {"maximum": 3600},
    failureThreshold=PORT | {"maximum": 3600},
    successThreshold=PORT | {"maximum": 3600},
    terminationGracePeriodSeconds=NUMBER,
)
"""What a probe may be told; what it asks is the chart's business."""

BY_NAME: dict[str, Schema] = {
    "labels": LABELS,
    "annotations": STRINGS,
    "commonLabels": LABELS,
    "commonAnnotations": STRINGS,
    "podLabels": LABELS,
    "podAnnotations": STRINGS,
    "additionalLabels": STRINGS,
    "nodeSelector": STRINGS,
    "imagePullSecrets": array(NAME),
    "pullSecrets": array(NAME),
    "affinity": closed(nodeAffinity=KUBERNETES, podAffinity=KUBERNETES, podAntiAffinity=KUBERNETES),
    "tolerations": array(
        closed(key=STRING, operator=STRING, value=STRING, effect=STRING, tolerationSeconds={"type": "integer"})
    ),
    "topologySpreadConstraints": array(KUBERNETES),
    "resources": closed(
        requests={"type": "object", "additionalProperties": QUANTITY},
        limits={"type": "object", "additionalProperties": QUANTITY},
        claims=array(KUBERNETES),
    ),
    "image": closed(registry=STRING, repository=STRING, tag=STRING, digest=DIGEST, pullPolicy=PULL_POLICY),
    "issuerRef": closed(name=STRING, kind=STRING, group=STRING),
    "extraArgs": array(STRING),
    "extraEnv": array(KUBERNETES),
    "extraEnvFrom": array(KUBERNETES),
    "extraVolumes": array(KUBERNETES),
    "extraVolumeMounts": array(KUBERNETES),
    "extraContainers": array(KUBERNETES),
    "initContainers": array(KUBERNETES),
    "extraIngress": array(KUBERNETES),
    "extraEgress": array(KUBERNETES),
    "smtpFrom": array(KUBERNETES),
    "policyFrom": array(KUBERNETES),
    "metricsFrom": array(KUBERNETES),
    "parentRefs": array(KUBERNETES),
    "hosts": array(HOST_NAME),
    "hostnames": array(HOST_NAME),
    "secretName": NAME,
    "postgresTo": array(KUBERNETES),
    "policyHosts": array(KUBERNETES),
    "relabelings": array(KUBERNETES),
    "metricRelabelings": array(KUBERNETES),
    "extraObjects": array({"type": ["object", "string"]}),
    "dnsPolicy": {"enum": ["", "ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]},
    "dnsConfig": closed(nameservers=array(STRING), searches=array(STRING), options=array(KUBERNETES)),
    "hostAliases": array(closed(ip=STRING, hostnames=array(STRING))),
    "hostUsers": OPTIONAL_BOOLEAN,
    "strategy": closed(
        type={"enum": ["RollingUpdate", "Recreate"]},
        rollingUpdate=closed(maxUnavailable=COUNT_OR_SHARE, maxSurge=COUNT_OR_SHARE),
    ),
    "behavior": KUBERNETES,
    "startupProbe": PROBE,
    "livenessProbe": PROBE,
    "readinessProbe": PROBE,
    "maxUnavailable": COUNT_OR_SHARE,
    "minReplicas": PORT | {"maximum": 1000},
    "maxReplicas": PORT | {"maximum": 1000},
    "targetCPU": CPU,
    "targetCPUUtilizationPercentage": {"type": ["integer", "null"], "minimum": 1},
    "digest": DIGEST,
    "pullPolicy": PULL_POLICY,
    "logLevel": {"enum": ["", *LOG_LEVELS]},
    "externalTrafficPolicy": {"enum": ["Local", "Cluster"]},
    "allocateLoadBalancerNodePorts": OPTIONAL_BOOLEAN,
    "loadBalancerSourceRanges": array(STRING),
    "externalIPs": array(STRING),
    "nodePort": OPTIONAL_PORT,
    "port": PORT,
    "existingSecret": NAME,
    "priorityClassName": NAME,
    "runtimeClassName": NAME,
    "storageClassName": NAME,
    "existingClaim": NAME,
    "duration": DURATION,
    "renewBefore": DURATION,
    "interval": OPTIONAL_DURATION,
    "scrapeTimeout": OPTIONAL_DURATION,
    "ttlSecondsAfterFinished": OPTIONAL_NUMBER,
    "namespace": NAME,
    "size": QUANTITY,
    "alerts": {
        "type": "object",
        "additionalProperties": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"enabled": BOOLEAN, "for": OPTIONAL_DURATION, "severity": STRING},
        },
    },
}

SETTING: dict[Any, Schema] = {bool: BOOLEAN, int: {"type": "integer"}, float: {"type": "number"}}


def settings_of(kind: type[ServiceSettings], *others: str) -> Schema:
    """The settings of one service alone; those that all have, and `others`, the chart sets by values of its own."""
    shared = {field.name for field in fields(DatabaseSettings)} | set(others)
    hints = get_type_hints(kind)
    return closed(**{f.name: SETTING.get(hints[f.name], STRING) for f in fields(kind) if f.name not in shared})


OBJECTIVE: Schema = {"type": "number", "minimum": 50, "exclusiveMaximum": 100}
"""Percent; of 100 no error budget would be left."""
BY_PATH: dict[str, Schema] = {
    "prometheusRule.slo.accepted": OBJECTIVE,
    "prometheusRule.slo.firstAttempt": OBJECTIVE,
    "prometheusRule.grafanaUrl": {"type": "string", "pattern": "^(https?://[^ ]+)?$"},
    "config.settings": settings_of(ConfigSettings),
    "queue.settings": settings_of(QueueSettings, "history_days"),
    "queue.historyDays": {"type": "integer", "minimum": 1, "maximum": 3650},
    "ingress.settings": settings_of(IngressSettings),
    "outbound.settings": settings_of(OutboundSettings, "fetch_networks"),
    "outbound.fetchNetworks": array({"type": "string", "pattern": "^[0-9A-Fa-f:.]+/[0-9]+$"}),
    "operator.settings": settings_of(OperatorSettings),
    "policy.settings": settings_of(PolicySettings, "listen", "certificate_dir"),
    "policy.service.type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    "namespaceOverride": NAME,
    "nameOverride": NAME,
    "fullnameOverride": NAME,
    "clusterDomain": HOST_NAME,
    "ipFamilies": array({"enum": ["IPv4", "IPv6"]}, minItems=1, maxItems=2, uniqueItems=True),
    "ipFamilyPolicy": {"enum": ["SingleStack", "PreferDualStack", "RequireDualStack"]},
    "log.format": {"enum": ["json", "console"]},
    "log.level": {"enum": LOG_LEVELS},
    # Restricted Pod Security, without exception: what it forbids cannot be said here.
    "podSecurityContext": {
        "type": "object",
        "additionalProperties": False,
        "required": ["runAsNonRoot", "seccompProfile"],
        "properties": {
            "runAsNonRoot": {"const": True},
            "runAsUser": {"type": ["integer", "null"], "minimum": 1},
            "runAsGroup": OPTIONAL_NUMBER,
            "fsGroup": OPTIONAL_NUMBER,
            "fsGroupChangePolicy": {"enum": ["Always", "OnRootMismatch"]},
            "supplementalGroups": array(NUMBER),
            "supplementalGroupsPolicy": {"enum": ["Merge", "Strict"]},
            "seccompProfile": SECCOMP,
            "seLinuxOptions": KUBERNETES,
            "seLinuxChangePolicy": STRING,
            "appArmorProfile": KUBERNETES,
        },
    },
    "containerSecurityContext": {
        "type": "object",
        "additionalProperties": False,
        "required": ["allowPrivilegeEscalation", "readOnlyRootFilesystem", "capabilities"],
        "properties": {
            "allowPrivilegeEscalation": {"const": False},
            "readOnlyRootFilesystem": {"const": True},
            "capabilities": {
                "type": "object",
                "additionalProperties": False,
                "required": ["drop"],
                "properties": {"drop": {"type": "array", "contains": {"const": "ALL"}}},
            },
            "runAsNonRoot": {"const": True},
            "runAsUser": {"type": ["integer", "null"], "minimum": 1},
            "runAsGroup": OPTIONAL_NUMBER,
            "seccompProfile": SECCOMP,
            "seLinuxOptions": KUBERNETES,
            "appArmorProfile": KUBERNETES,
        },
    },
    "mtls.mode": {"enum": ["generated", "certManager", "existing"]},
    "smtpCertificate.mode": {"enum": ["generated", "certManager", "none"]},
    "smtpCertificate.names": array(HOST_NAME),
    "keys.schedule": {"type": "string", "pattern": "^\\S+( \\S+){4}$"},
    "postgres.mode": {"enum": ["bundled", "external"]},
    "postgres.previous": {"enum": ["refuse", "move", "leave"]},
    "postgres.external.sslMode": {"enum": ["", "disable", "allow", "prefer", "require", "verify-ca", "verify-full"]},
    "postgres.bundled.sharedBuffers": {"type": "string", "pattern": "^[0-9]+(kB|MB|GB)$"},
    "migrations.mode": {"enum": ["job", "none"]},
    "ingress.gateway": {"type": "string", "pattern": "^([a-z0-9.-]+/[a-z0-9.-]+)?$"},
    "ingress.resolver.address": {"type": "string", "pattern": "^(system|.+:[0-9]+)?$"},
    "ingress.extraPorts": array(
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["name", "port"],
            "properties": {"name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?$"}, "port": PORT},
        }
    ),
    "outbound.resolver.address": HOST_PORT,
    "operator.resolver.address": HOST_PORT,
    "outbound.ownMX": array({"type": "string", "pattern": "^.+:[0-9]+$"}),
    "operator.namespaces": array(NAME),
    "operator.controllerName": CONTROLLER_NAME,
    "operator.formerControllerNames": array(CONTROLLER_NAME),
    "operator.egressAddresses": array(ADDRESS),
    "smtp.mx.type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    "smtp.submission.type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    "unbound.trustAnchors": array(STRING),
    "unbound.forwardTo": array({"type": "string", "pattern": "^[0-9A-Fa-f:.]+(@[0-9]+)?(#[-A-Za-z0-9.]+)?$"}),
    "unbound.command": array(STRING),
    "unbound.args": array(STRING),
    "networkPolicy.deliveryPorts": array(PORT),
    "networkPolicy.apiServerPorts": array(PORT),
    "networkPolicy.postgresPorts": array(PORT),
    "networkPolicy.dnsPorts": array(PORT, minItems=1),
    "test.domain": HOST_NAME,
}

WORDS = {
    "enabled": "Whether it is there at all.",
    "resources": "Requests and limits.",
    "nodeSelector": "Nodes that it may run on.",
    "tolerations": "Taints that it bears.",
    "affinity": "Where it would rather run; templates allowed.",
    "priorityClassName": "Priority class.",
    "runtimeClassName": "Runtime class.",
    "dnsPolicy": "DNS policy of the pods.",
    "dnsConfig": "DNS settings of the pods.",
    "hostAliases": "Lines of /etc/hosts.",
    "extraArgs": "Arguments besides.",
    "extraEnv": "Variables besides; templates allowed, as in the five below.",
    "extraEnvFrom": "Sources of variables besides.",
    "extraVolumes": "Volumes besides.",
    "extraVolumeMounts": "Mounts of them.",
    "extraContainers": "Containers besides.",
    "initContainers": "Containers before.",
    "podLabels": "Labels of the pods.",
    "podAnnotations": "Annotations of the pods.",
    "annotations": "Annotations of it.",
    "labels": "Labels of it.",
    "strategy": "How pods are replaced.",
    "revisionHistoryLimit": "Old ReplicaSets to keep.",
    "startupProbe": "Timing of the probe; what it asks is fixed.",
    "livenessProbe": "Timing of the probe. It asks whether the event loop answers, never about Postgres.",
    "readinessProbe": "Timing of the probe. It asks whether there is a configuration and, where it matters, Postgres.",
    "maxUnavailable": "Pods that may be away at a time.",
    "serviceAccount": "ServiceAccount: whether to make it, its name (empty: by the release), annotations.",
    "minReplicas": "Pods at least.",
    "maxReplicas": "Pods at most.",
    "behavior": "How fast, as the HorizontalPodAutoscaler has it.",
    "pollingInterval": "Seconds between looks.",
    "cooldownPeriod": "Seconds before it scales down.",
    "duration": "How long a certificate is good.",
    "renewBefore": "How long before its end it is renewed.",
    "existingClaim": "A claim of your own.",
    "size": "Size of the volume.",
    "port": "Port.",
    "database": "Name of the database.",
    "backoffLimit": "Tries.",
    "type": "ClusterIP, NodePort or LoadBalancer.",
    "clusterIP": "A fixed address in the cluster.",
    "externalIPs": "Addresses of nodes.",
    "loadBalancerClass": "Class of the load balancer.",
    "loadBalancerIP": "Address to ask for.",
    "loadBalancerSourceRanges": "Who may come through the load balancer.",
    "allocateLoadBalancerNodePorts": "Whether it gets node ports, too.",
    "externalTrafficPolicy": "Local keeps the client's address.",
    "smtp": "Port for strangers.",
    "submission": "Port for STARTTLS.",
    "submissions": "Port for TLS from the first octet.",
    "namespace": "Where it is made; empty: the release's namespace.",
    "interval": "How often; empty: Prometheus's own.",
    "scrapeTimeout": "How long a scrape may take; empty: Prometheus's own.",
    "relabelings": "Relabelings besides the chart's own.",
    "metricRelabelings": "Relabelings of series.",
    "timeoutSeconds": "Seconds for all of it.",
    "className": "Class.",
    "registry": "Registry.",
    "tag": "Tag.",
    "digest": "Digest; wins over the tag.",
    "pullPolicy": "When it is pulled.",
    "command": "Command.",
    "args": "Arguments.",
    "folder": "Folder.",
    "folderAnnotation": "Annotation that names the folder.",
    "labelValue": "Value of that label.",
    "image": "Its own image.",
    "extraEgress": "Where it may go besides.",
    "podSecurityContext": "Security of every pod: the restricted standard. Any user id will do for the services.",
    "containerSecurityContext": "Security of every container.",
    **dict.fromkeys(("config", "queue", "ingress", "outbound", "operator", "cli"), "Secret of that role."),
}

WHOLE = {"podSecurityContext", "containerSecurityContext"}
"""Block maps that are one value."""


@dataclass(frozen=True)
class Value:
    """One value of the chart."""

    path: str
    default: Any
    words: str

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rsplit(".", 1)[-1]


def comment_above(lines: list[str], line: int) -> tuple[str, bool]:
    """The comment right above a line, and whether it is one of a value (`# --`)."""
    block: list[str] = []
    at = line - 1
    while at >= 0 and lines[at].strip().startswith("#"):
        block.insert(0, lines[at].strip().removeprefix("#").strip())
        at -= 1
    text = " ".join(block)
    return text.removeprefix("-- ").strip(), text.startswith("-- ")


def walk(node: yaml.MappingNode, lines: list[str], path: str = "") -> Iterator[Value]:
    """Every value: maps in block style are gone into, those in flow style are one value."""
    for key, value in node.value:
        here = f"{path}.{key.value}" if path else key.value
        text, own = comment_above(lines, key.start_mark.line)
        if isinstance(value, yaml.MappingNode) and not value.flow_style and here not in WHOLE and not own:
            if key.value == "resources":
                yield Value(here, yaml.SafeLoader("").construct_document(value), WORDS["resources"])
            else:
                yield from walk(value, lines, here)
            continue
        words = text if own else WORDS.get(key.value, "")
        if not words:
            raise SystemExit(f"values.yaml:{key.start_mark.line + 1}: {here} says nowhere what it is for (`# -- ...`)")
        yield Value(here, yaml.SafeLoader("").construct_document(value), words)


def schema_of(path: str, default: Any) -> Schema:
    """The schema of a value, by its path, its name, or its default."""
    name = path.rsplit(".", 1)[-1]
    if path in BY_PATH:
        return BY_PATH[path]
    if name in BY_NAME and (name != "image" or path.split(".")[0] not in ("image", "unbound")):
        return BY_NAME[name]
    match default:
        case bool():
            return BOOLEAN
        case int():
            return NUMBER
        case str():
            return STRING
        case dict() if default:
            return closed(**{k: schema_of(f"{path}.{k}", v) for k, v in default.items()})
        case _:
            raise SystemExit(f"values.yaml: the default of {path} does not tell its type; say it in this script")


def required(*path: str, value: Schema) -> Schema:
    """That something deep inside is there, and looks so."""
    schema = value
    for name in reversed(path):
        schema = {"required": [name], "properties": {name: schema}}
    return schema


NOT_EMPTY: Schema = {"minLength": 1}
CONDITIONS: list[Schema] = [
    {
        "if": required("postgres", "mode", value={"const": "external"}),
        "then": required("postgres", "external", "existingSecret", value=NOT_EMPTY),
    },
    {
        "if": required("smtpCertificate", "mode", value={"const": "certManager"}),
        "then": required("smtpCertificate", "certManager", "issuerRef", "name", value=NOT_EMPTY),
    },
    *(
        {
            "if": required("mtls", "mode", value={"const": "existing"}),
            "then": required("mtls", "existingSecrets", role, value=NOT_EMPTY),
        }
        for role in ("config", "queue", "ingress", "outbound", "operator", "cli")
    ),
    *(
        {
            "if": required(component, "keda", "enabled", value={"const": True}),
            "then": {
                "allOf": [
                    required(component, "keda", "serverAddress", value=NOT_EMPTY),
                    required(component, "autoscaling", "enabled", value={"const": False}),
                ]
            },
        }
        for component in ("queue", "outbound")
    ),
    {
        "if": required("unbound", "enabled", value={"const": True}),
        "then": required("unbound", "image", "repository", value=NOT_EMPTY),
    },
]


def schema(values: dict[str, Any], described: list[Value]) -> str:
    """The whole of values.schema.json."""
    whole = closed(**{name: schema_of(name, default) for name, default in values.items()})
    for value in described:
        place = whole
        for part in value.path.split("."):
            properties = place.get("properties", {})
            if part not in properties:
                break
            properties[part] = place = dict(properties[part])  # shared ones are not to be described twice
            if "properties" in place:
                place["properties"] = dict(place["properties"])
        else:
            place["description"] = value.words
    # What Helm adds to the values of a dependency.
    whole["properties"]["global"]["additionalProperties"] = True
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Values of Mailrail's chart"}
    return json.dumps({**head, **whole, "allOf": CONDITIONS}, indent=2) + "\n"


def page(text: str, described: list[Value]) -> str:
    """The reference page."""
    lines = text.splitlines()
    node = yaml.compose(text)
    assert isinstance(node, yaml.MappingNode)
    titles = {key.value: comment_above(lines, key.start_mark.line) for key, _ in node.value}
    out = [
        "<!-- Written by scripts/generate_chart_values.py; `make generate` writes it anew. -->",
        "",
        "# Values of the chart",
        "",
        "`helm install` refuses any other key, and values that cannot be, with the message of `values.schema.json`.",
        "`helm show values` prints the same with its defaults in place.",
    ]
    section = ""
    for value in described:
        head = value.path.split(".")[0]
        if "." not in value.path:
            head = "At the top"
        if head != section:
            section = head
            about, own = titles.get(head, ("", False))
            out += ["", f"## {head}", ""]
            if about and not own:
                out += [about, ""]
            out += ["| value | default | meaning |", "|---|---|---|"]
        default = json.dumps(value.default, ensure_ascii=False)
        words = re.sub(r"\|", "\\|", value.words)
        out.append(f"| `{value.path}` | `{default}` | {words} |")
    return "\n".join(out) + "\n"


def main() -> int:
    """Write both files."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    node = yaml.compose(text)
    assert isinstance(node, yaml.MappingNode)
    described = list(walk(node, text.splitlines()))
    (CHART / "values.schema.json").write_text(schema(yaml.safe_load(text), described), encoding="utf-8")
    top = [v for v in described if "." not in v.path]
    PAGE.write_text(page(text, top + [v for v in described if "." in v.path]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
