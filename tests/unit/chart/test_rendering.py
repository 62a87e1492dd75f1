"""What the chart makes of values, by `helm template`; that whole files of values render well is `make helm-lint`'s."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from mailrail.cluster.postgres import STOP_GRACE
from mailrail.kit.settings import port_map
from mailrail_operator.settings import OperatorSettings

from testkit.chart import CHART, Object, helm_template, needs_helm, rendered

pytestmark = needs_helm

POLICY = "NetworkPolicy"
UNBOUND = {"enabled": True, "image": {"repository": "unbound", "tag": "1"}}
EXTERNAL = {"mode": "external", "external": {"existingSecret": "pg-app"}}


def ports_out(policy: Object) -> set[tuple[int, str]]:
    """Ports to which a NetworkPolicy lets anything go."""
    return {(p["port"], p["protocol"]) for rule in policy["spec"]["egress"] for p in rule.get("ports", ())}


# --- NetworkPolicies ---


@pytest.mark.parametrize("component", ["config", "queue", "outbound", "migrations"])
def test_postgres_is_reached_at_the_port_that_the_values_name_for_it(component: str, tmp_path: Path) -> None:
    values = {"postgres": {"mode": "external", "external": {"existingSecret": "db", "host": "db", "port": 6432}}}
    policy = rendered(values, tmp_path)["NetworkPolicy", f"mailrail-{component}"]
    assert (6432, "TCP") in ports_out(policy)
    bundled = [rule for rule in policy["spec"]["egress"] if "mailrail.dev/postgres" in json.dumps(rule)]
    assert (component == "migrations") == bool(bundled), "one that was used before is looked into"
    policy["spec"]["egress"] = [rule for rule in policy["spec"]["egress"] if rule not in bundled]
    assert (5432, "TCP") not in ports_out(policy)


def test_a_pooler_and_the_server_behind_it_may_have_ports_of_their_own(tmp_path: Path) -> None:
    values = {"postgres": EXTERNAL, "networkPolicy": {"postgresPorts": [6432, 5433]}}
    policy = rendered(values, tmp_path)["NetworkPolicy", "mailrail-migrations"]
    assert {(6432, "TCP"), (5433, "TCP")} <= ports_out(policy)


def test_outbound_reaches_policy_hosts_on_the_Internet_and_none_inside_unless_values_name_it_STS_26a(
    tmp_path: Path,
) -> None:
    inside = {"ipBlock": {"cidr": "10.9.0.0/16"}}
    for values, cidrs in (
        ({}, ["0.0.0.0/0", "::/0"]),
        ({"networkPolicy": {"policyHosts": [inside], "deliveryPorts": [2500]}}, ["10.9.0.0/16"]),
        ({"outbound": {"fetchNetworks": ["10.8.0.0/16"]}}, ["0.0.0.0/0", "::/0", "10.8.0.0/16"]),
    ):
        policy = rendered(values, tmp_path)["NetworkPolicy", "mailrail-outbound"]
        (rule,) = [r for r in policy["spec"]["egress"] if {"port": 443, "protocol": "TCP"} in r.get("ports", ())]
        assert rule["ports"] == [{"port": 443, "protocol": "TCP"}]
        assert [peer["ipBlock"]["cidr"] for peer in rule["to"]] == cidrs
        for peer in rule["to"] if not values else ():
            private = {"0.0.0.0/0": "10.0.0.0/8", "::/0": "fc00::/7"}[peer["ipBlock"]["cidr"]]
            assert private in peer["ipBlock"]["except"]


@pytest.mark.parametrize("component", ["config", "queue", "outbound"])
def test_who_owns_a_schema_has_the_login_as_a_file_and_the_bundled_Postgres_lets_it_in(
    component: str, tmp_path: Path
) -> None:
    objects = rendered({}, tmp_path)
    spec = objects["Deployment", f"mailrail-{component}"]["spec"]["template"]["spec"]
    (secret,) = [volume["secret"] for volume in spec["volumes"] if volume["name"] == "database"]
    assert secret["secretName"] == "mailrail-postgres"
    environment = {one["name"]: one.get("value") for one in spec["containers"][0]["env"]}
    assert environment["MAILRAIL_DATABASE_PASSWORD_FILE"] == "/etc/mailrail/database/password"
    assert environment["MAILRAIL_DATABASE_URL"].startswith("postgresql://mailrail@mailrail-postgres")
    let_in = objects["NetworkPolicy", "mailrail-postgres"]["spec"]["ingress"][0]["from"]
    assert component in [peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for peer in let_in]


@pytest.mark.parametrize("component", ["ingress", "outbound", "operator"])
@pytest.mark.parametrize("host", ["192.0.2.53", "[2001:db8::53]", "dns.example.org"])
def test_a_resolver_on_a_port_of_its_own_is_reached_by_UDP_and_TCP(component: str, host: str, tmp_path: Path) -> None:
    values = {component: {"resolver": {"address": f"{host}:5300"}}}
    policies = rendered(values, tmp_path)
    assert {(53, "UDP"), (53, "TCP"), (5300, "UDP"), (5300, "TCP")} <= ports_out(
        policies["NetworkPolicy", f"mailrail-{component}"]
    )
    assert (5300, "UDP") not in ports_out(policies["NetworkPolicy", "mailrail-queue"])


def test_unbound_reaches_the_servers_that_it_forwards_to(tmp_path: Path) -> None:
    servers = ["2001:db8::1@5301", "192.0.2.1@853#dns.example.org", "2001:db8::7"]
    unbound = {"enabled": True, "image": {"repository": "unbound", "tag": "1"}, "forwardTo": servers}
    policy = rendered({"unbound": unbound}, tmp_path)["NetworkPolicy", "mailrail-outbound"]
    assert {port for port, protocol in ports_out(policy) if protocol == "UDP"} == {53, 5301, 853}


@pytest.mark.parametrize(
    ("values", "resolver", "trusted"),
    [
        ({}, None, None),
        ({"outbound": {"resolver": {"address": "192.0.2.53:53"}}}, "192.0.2.53:53", None),
        ({"outbound": {"resolver": {"address": "192.0.2.53:53", "trustAD": True}}}, "192.0.2.53:53", "true"),
        ({"unbound": UNBOUND}, "127.0.0.1:5335", "true"),
        ({"unbound": UNBOUND, "outbound": {"resolver": {"address": "192.0.2.53:53"}}}, "127.0.0.1:5335", "true"),
    ],
)
def test_a_resolver_is_trusted_when_it_is_declared_so_or_is_the_charts_own_unbound_DANE_25(
    values: Mapping[str, Any], resolver: str | None, trusted: str | None, tmp_path: Path
) -> None:
    pod = rendered(values, tmp_path)["Deployment", "mailrail-outbound"]["spec"]["template"]["spec"]
    (outbound,) = (each for each in pod["containers"] if each["name"] == "outbound")
    variables = {each["name"]: each.get("value") for each in outbound["env"]}
    assert variables.get("MAILRAIL_OUTBOUND_RESOLVER") == resolver
    assert variables.get("MAILRAIL_OUTBOUND_RESOLVER_TRUST_AD") == trusted
    beside = [each["name"] for each in pod.get("initContainers", ()) if each.get("restartPolicy") == "Always"]
    assert ("unbound" in beside) == ("unbound" in values)


def test_a_cluster_whose_DNS_pods_have_another_port_says_so(tmp_path: Path) -> None:
    policies = rendered({"networkPolicy": {"dnsPorts": [53, 5353]}}, tmp_path)
    for (kind, name), policy in policies.items():
        if kind == "NetworkPolicy" and name != "mailrail-postgres":
            assert {(53, "UDP"), (53, "TCP"), (5353, "UDP"), (5353, "TCP")} <= ports_out(policy), name


@pytest.mark.parametrize("values", sorted((CHART / "ci").glob("*.yaml")), ids=lambda path: path.stem)
def test_no_list_is_empty_that_the_API_server_drops_so_text_and_object_are_equal(values: Path, tmp_path: Path) -> None:
    policies = [o for (kind, _), o in rendered(yaml.safe_load(values.read_text()), tmp_path).items() if kind == POLICY]
    assert len(policies) > 5
    for policy in policies:
        spec = policy["spec"]
        assert spec["policyTypes"] == ["Ingress", "Egress"], "a way without rules is closed"
        assert [way for way in ("ingress", "egress") if way in spec and not spec[way]] == [], policy["metadata"]["name"]


# --- images, Services, Jobs ---


def test_the_digest_of_all_is_not_that_of_a_component_with_a_tag_or_repository_of_its_own(tmp_path: Path) -> None:
    digest = "sha256:" + "0" * 64
    values = {
        "global": {"imageRegistry": "registry.example.org"},
        "image": {"digest": digest},
        "queue": {"image": {"tag": "9.9.9"}},
        "outbound": {"image": {"repository": "own/mailrail"}},
    }
    objects = rendered(values, tmp_path)

    def image(component: str) -> str:
        template = objects["Deployment", f"mailrail-{component}"]["spec"]["template"]
        return str(template["spec"]["containers"][0]["image"])

    version = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))["appVersion"]
    assert image("ingress") == f"registry.example.org/mailrail@{digest}"
    assert image("queue") == "registry.example.org/mailrail:9.9.9"
    assert image("outbound") == f"registry.example.org/own/mailrail:{version}"


def test_a_Service_without_a_port_is_not_made_and_helm_test_goes_with_its_way_in(tmp_path: Path) -> None:
    closed = {"enabled": False}
    values = {
        "smtp": {
            "mx": {"ports": {"smtp": closed}},
            "submission": {"ports": {"submission": closed, "submissions": closed}},
        }
    }
    objects = rendered(values, tmp_path)
    assert ("Service", "mailrail-mx") not in objects
    assert ("Service", "mailrail-submission") not in objects
    assert ("Pod", "mailrail-test") not in objects


def test_helm_test_is_one_hook_so_its_result_is_printed_once(tmp_path: Path) -> None:
    hooks = [o for o in rendered({}, tmp_path).values() if "helm.sh/hook" in o["metadata"].get("annotations", {})]
    assert [(o["kind"], o["metadata"]["name"]) for o in hooks] == [("Pod", "mailrail-test")]


def test_a_Deployment_that_is_recreated_has_no_rolling_update(tmp_path: Path) -> None:
    objects = rendered({"queue": {"strategy": {"type": "Recreate"}}}, tmp_path)
    assert objects["Deployment", "mailrail-queue"]["spec"]["strategy"] == {"type": "Recreate"}


def container_of(objects: Mapping[tuple[str, str], Object], component: str) -> Object:
    (container,) = objects["Deployment", f"mailrail-{component}"]["spec"]["template"]["spec"]["containers"]
    return dict(container)


def settings_of(objects: Mapping[tuple[str, str], Object], component: str) -> Mapping[str, str]:
    """Environment of a service's container; what comes from a field or a Secret is left out."""
    return {e["name"]: e["value"] for e in container_of(objects, component)["env"] if "value" in e}


def test_the_operator_judges_by_the_port_map_that_ingress_opens_ports_by(tmp_path: Path) -> None:
    objects = rendered({}, tmp_path)
    told = settings_of(objects, "ingress")["MAILRAIL_INGRESS_PORT_MAP"]
    assert settings_of(objects, "operator")["MAILRAIL_OPERATOR_PORT_MAP"] == told
    opened = {p["containerPort"] for p in container_of(objects, "ingress")["ports"]}
    assert set(port_map("", told.split(",")).values()) <= opened


def test_the_operator_knows_the_ports_that_ingress_has_besides_those_of_its_listeners(tmp_path: Path) -> None:
    objects = rendered({}, tmp_path)
    told = settings_of(objects, "operator")["MAILRAIL_OPERATOR_INGRESS_PORTS"]
    own = OperatorSettings(ingress_ports=tuple(told.split(","))).checked_ingress_ports()
    declared = {p["containerPort"]: p["name"] for p in container_of(objects, "ingress")["ports"]}
    smtp = set(port_map("", settings_of(objects, "ingress")["MAILRAIL_INGRESS_PORT_MAP"].split(",")).values())
    assert {port: use.lower() for port, use in own.items()} == {p: n for p, n in declared.items() if p not in smtp}


def test_the_operator_is_told_its_name_and_those_that_are_gone(tmp_path: Path) -> None:
    values = {
        "operator": {"controllerName": "team.example/mail", "formerControllerNames": ["a.example/x", "b.example/x"]}
    }
    told = settings_of(rendered(values, tmp_path), "operator")
    assert told["MAILRAIL_OPERATOR_CONTROLLER_NAME"] == "team.example/mail"
    assert told["MAILRAIL_OPERATOR_FORMER_CONTROLLER_NAMES"] == "a.example/x,b.example/x"
    assert "MAILRAIL_OPERATOR_FORMER_CONTROLLER_NAMES" not in settings_of(rendered({}, tmp_path), "operator")


def test_a_Job_of_migrations_may_go_at_once(tmp_path: Path) -> None:
    objects = rendered({"migrations": {"ttlSecondsAfterFinished": 0}}, tmp_path)
    (job,) = [o for (kind, name), o in objects.items() if kind == "Job" and name.startswith("mailrail-migrate-")]
    assert job["spec"]["ttlSecondsAfterFinished"] == 0


def test_the_keys_job_reads_no_Secret_but_those_that_it_makes(tmp_path: Path) -> None:
    values = {"mtls": {"mode": "certManager"}, "smtpCertificate": {"mode": "none"}, "postgres": EXTERNAL}
    (_, named) = rendered(values, tmp_path)["Role", "mailrail-keys"]["rules"]
    assert named["resourceNames"] == ["mailrail-sealing-keys"]


@pytest.mark.parametrize("scaler", ["autoscaling", "keda"])
def test_what_is_scaled_has_no_replicas_of_the_charts_and_a_budget(scaler: str, tmp_path: Path) -> None:
    scaling = {"enabled": True} | ({"serverAddress": "http://prometheus:9090"} if scaler == "keda" else {})
    objects = rendered({"outbound": {"replicaCount": 1, scaler: scaling}}, tmp_path)
    assert "replicas" not in objects["Deployment", "mailrail-outbound"]["spec"]
    assert objects["PodDisruptionBudget", "mailrail-outbound"]["spec"]["maxUnavailable"] == 1


@pytest.mark.parametrize(
    ("values", "target"),
    [
        ({}, {"type": "AverageValue", "averageValue": "500m"}),
        ({"targetCPU": 0.8}, {"type": "AverageValue", "averageValue": "0.8"}),
        ({"targetCPUUtilizationPercentage": 90}, {"type": "Utilization", "averageUtilization": 90}),
    ],
)
def test_CPU_to_scale_by_is_that_of_a_pod_unless_a_share_of_the_request_is_named(
    values: dict[str, Any], target: Object, tmp_path: Path
) -> None:
    objects = rendered({"ingress": {"autoscaling": {"enabled": True} | values}}, tmp_path)
    (metric,) = objects["HorizontalPodAutoscaler", "mailrail-ingress"]["spec"]["metrics"]
    assert metric["resource"] == {"name": "cpu", "target": target}


# --- certificates of cert-manager ---


CERT_MANAGER = {"mtls": {"mode": "certManager"}}
SMTP_TOO = {"smtpCertificate": {"mode": "certManager", "certManager": {"issuerRef": {"name": "ca"}}}}
ROLES = ("config", "queue", "ingress", "outbound", "policy", "operator", "cli")


def issued(objects: Mapping[tuple[str, str], Object]) -> dict[str, Object]:
    """The spec of each Certificate by the Secret that it is written into."""
    return {o["spec"]["secretName"]: o["spec"] for (kind, _), o in objects.items() if kind == "Certificate"}


def secrets_of_pods(objects: Mapping[tuple[str, str], Object]) -> set[str]:
    """The Secrets with certificates for gRPC that Deployments and the pod of `helm test` mount."""
    specs = [o["spec"]["template"]["spec"] for (kind, _), o in objects.items() if kind == "Deployment"]
    specs.append(objects["Pod", "mailrail-test"]["spec"])
    return {v["secret"]["secretName"] for spec in specs for v in spec["volumes"] if v["name"] == "tls"}


def test_cert_manager_and_the_keys_job_share_no_Secret_for_gRPC_so_another_mode_is_in_force_at_once(
    tmp_path: Path,
) -> None:
    (_, named) = rendered({}, tmp_path)["Role", "mailrail-keys"]["rules"]
    objects = rendered(CERT_MANAGER | {"toolbox": {"enabled": True}}, tmp_path)
    assert secrets_of_pods(objects) == {f"mailrail-cert-manager-{role}-tls" for role in ROLES}
    assert secrets_of_pods(objects) <= set(issued(objects))
    assert not set(issued(objects)) & set(named["resourceNames"])
    assert objects["Issuer", "mailrail-ca"]["spec"]["ca"]["secretName"] in issued(objects)


def test_what_cert_manager_writes_has_the_labels_that_the_uninstall_goes_by(tmp_path: Path) -> None:
    objects = rendered(CERT_MANAGER | SMTP_TOO, tmp_path, release="post")
    specs = issued(objects).values()
    assert len(specs) == len(ROLES) + 2
    for spec in specs:
        labels = spec["secretTemplate"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "post"
        assert labels["app.kubernetes.io/part-of"] == "mailrail"


def test_a_renewed_authority_of_cert_manager_keeps_its_key_so_what_it_signed_before_stays_good(tmp_path: Path) -> None:
    authority = issued(rendered(CERT_MANAGER, tmp_path))["mailrail-cert-manager-ca"]
    assert authority["privateKey"]["rotationPolicy"] == "Never"


# --- what holds all mail ---


POSTGRES = ("StatefulSet", "mailrail-postgres")
NO_VOLUME = {"postgres": {"bundled": {"persistence": {"enabled": False}}}}
CLAIM = {"postgres": {"bundled": {"persistence": {"existingClaim": "mine"}}}}
LARGE = {"postgres": {"bundled": {"persistence": {"size": "50Gi", "storageClassName": "fast"}}}}
KEPT = {"helm.sh/resource-policy": "keep", "argocd.argoproj.io/sync-options": "Prune=false,Delete=false"}
"""What Helm and Argo CD leave when it is no longer in the release, or the release goes."""
IMMUTABLE = ("selector", "serviceName", "volumeClaimTemplates", "podManagementPolicy")
"""What the API server refuses to change in the spec of a StatefulSet."""


def server_of(objects: Mapping[tuple[str, str], Object]) -> Object:
    """The StatefulSet of the bundled Postgres."""
    (found,) = [body for (kind, _), body in objects.items() if kind == "StatefulSet"]
    return found


def place_of(objects: Mapping[tuple[str, str], Object], component: str = "queue") -> str:
    """The database that pods of a component wait for."""
    volumes = objects["Deployment", f"mailrail-{component}"]["spec"]["template"]["spec"]["volumes"]
    (record,) = [v["configMap"] for v in volumes if v["name"] == "database-in-use"]
    assert record["name"] == "mailrail-database"
    return str(record["items"][0]["key"])


def arguments_of_the_job(objects: Mapping[tuple[str, str], Object]) -> list[str]:
    (job,) = [o for (kind, name), o in objects.items() if kind == "Job" and "-migrate-" in name]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return list(container["args"])


def newer_chart(folder: Path) -> Path:
    """The chart as its next release."""
    chart = folder / "chart"
    shutil.copytree(CHART, chart)
    about = yaml.safe_load((chart / "Chart.yaml").read_text(encoding="utf-8"))
    (chart / "Chart.yaml").write_text(yaml.safe_dump(about | {"version": "9.8.7", "appVersion": "9.8.7"}))
    return chart


@pytest.mark.parametrize("where", [{}, NO_VOLUME, CLAIM, LARGE], ids=["volume", "no volume", "own claim", "large"])
def test_an_upgrade_that_is_not_of_Postgres_leaves_its_pod_and_its_volume_alone(
    where: Mapping[str, Any], tmp_path: Path
) -> None:
    ours = {
        "image": {"tag": "9.8.7", "digest": "sha256:" + "0" * 64, "pullPolicy": "Always"},
        "commonLabels": {"team": "mail"},
        "commonAnnotations": {"example.org/contact": "mail-team"},
        "log": {"level": "debug"},
        "queue": {"replicaCount": 5, "podLabels": {"a": "b"}},
        "migrations": {"mode": "none"},
    }
    before = server_of(rendered(where, tmp_path))
    after = server_of(rendered({**where, **ours}, tmp_path, newer_chart(tmp_path)))
    assert after["metadata"]["labels"] != before["metadata"]["labels"], "it is the newer chart"
    assert after["spec"] == before["spec"]


def test_the_bundled_Postgres_has_a_volume_by_default_which_nobody_deletes_with_the_release(tmp_path: Path) -> None:
    spec = rendered({}, tmp_path)[POSTGRES]["spec"]
    (claim,) = spec["volumeClaimTemplates"]
    assert "storageClassName" not in claim["spec"], "the default class of the cluster"
    (container,) = spec["template"]["spec"]["containers"]
    assert {"name": claim["metadata"]["name"], "mountPath": "/var/lib/mailrail"} in container["volumeMounts"]
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    assert spec["updateStrategy"] == {"type": "RollingUpdate"}


def test_whoever_scrapes_the_services_may_scrape_the_bundled_Postgres(tmp_path: Path) -> None:
    scraper = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    objects = rendered({"podMonitor": {"enabled": True}, "networkPolicy": {"metricsFrom": scraper}}, tmp_path)
    (container,) = objects[POSTGRES]["spec"]["template"]["spec"]["containers"]
    (port,) = [one["containerPort"] for one in container["ports"] if one["name"] == "metrics"]
    (listen,) = [one["value"] for one in container["env"] if one["name"] == "MAILRAIL_METRICS_LISTEN"]
    assert listen.endswith(f":{port}")
    rules = objects["NetworkPolicy", "mailrail-postgres"]["spec"]["ingress"]
    (metrics,) = [rule for rule in rules if rule["ports"] == [{"port": "metrics", "protocol": "TCP"}]]
    assert metrics["from"] == scraper
    (monitor,) = [body for (kind, _), body in objects.items() if kind == "PodMonitor"]
    labels = objects[POSTGRES]["spec"]["template"]["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert [one["port"] for one in monitor["spec"]["podMetricsEndpoints"]] == ["metrics"]


def test_without_a_volume_neither_an_upgrade_nor_a_drain_ends_the_pod(tmp_path: Path) -> None:
    objects = rendered(NO_VOLUME, tmp_path)
    server = server_of(objects)
    assert server["spec"]["updateStrategy"] == {"type": "OnDelete"}
    budget = objects["PodDisruptionBudget", server["metadata"]["name"]]
    assert budget["spec"]["maxUnavailable"] == 0
    assert budget["spec"]["selector"] == server["spec"]["selector"]
    assert ("PodDisruptionBudget", "mailrail-postgres") not in rendered({}, tmp_path), "a drain moves one with a volume"


@pytest.mark.parametrize("where", [{}, NO_VOLUME, CLAIM, LARGE], ids=["volume", "no volume", "own claim", "large"])
def test_all_that_belongs_to_the_bundled_Postgres_stays_when_the_release_goes_or_names_another(
    where: Mapping[str, Any], tmp_path: Path
) -> None:
    objects = rendered(where, tmp_path)
    labels = server_of(objects)["spec"]["selector"]["matchLabels"]
    its = [o for o in objects.values() if labels.items() <= o["metadata"].get("labels", {}).items()]
    assert {"StatefulSet", "Service", "ServiceAccount", "NetworkPolicy"} <= {o["kind"] for o in its}
    assert [o["kind"] for o in its if not KEPT.items() <= o["metadata"].get("annotations", {}).items()] == []


def test_values_that_name_another_volume_name_another_Postgres_beside_the_one_with_the_mail(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}
    for values in ({}, NO_VOLUME, CLAIM, LARGE, {"postgres": {"bundled": {"persistence": {"size": "4Gi"}}}}):
        objects = rendered(values, tmp_path)
        server = server_of(objects)
        name = server["metadata"]["name"]
        assert len(name) - len("mailrail") <= 12, "its pods bear a label of 63 characters: this name and a hash"
        assert name not in seen
        assert place_of(objects) == place_of(objects, "config") == f"bundled.{name}"
        assert ("Service", name) in objects
        assert server["spec"]["serviceName"] == name
        for other in seen.values():
            assert server["spec"]["selector"] != other["spec"]["selector"]
        seen[name] = server
    assert next(iter(seen)) == "mailrail-postgres"


CHANGES: list[Mapping[str, Any]] = [
    {"postgres": {"bundled": {"sharedBuffers": "256MB", "resources": {"limits": {"memory": "2Gi"}}}}},
    {"postgres": {"bundled": {"image": {"tag": "2.0.0"}, "nodeSelector": {"a": "b"}, "priorityClassName": "x"}}},
    {"postgres": {"bundled": {"existingSecret": "mine", "serviceAccount": {"create": False}}}},
    {"postgres": {"previous": "move"}, "clusterDomain": "example.org", "podSecurityContext": {"fsGroup": 5}},
    {"global": {"imageRegistry": "r.example.org", "imagePullSecrets": ["pull"]}, "networkPolicy": {"enabled": False}},
    NO_VOLUME,
    CLAIM,
    LARGE,
    {"postgres": EXTERNAL},
]


@pytest.mark.parametrize("change", CHANGES, ids=range(len(CHANGES)))
def test_no_change_of_values_asks_for_what_Kubernetes_forbids_of_a_StatefulSet(
    change: Mapping[str, Any], tmp_path: Path
) -> None:
    before = server_of(rendered({}, tmp_path))
    after = rendered(change, tmp_path).get(("StatefulSet", before["metadata"]["name"]))
    if after is not None:
        assert {f: after["spec"].get(f) for f in IMMUTABLE} == {f: before["spec"].get(f) for f in IMMUTABLE}


def test_pods_that_use_a_database_wait_until_the_migrations_Job_agrees_to_it(tmp_path: Path) -> None:
    external = {"postgres": {"mode": "external", "external": {"existingSecret": "db", "host": "db", "port": 6432}}}
    other = {"postgres": {"mode": "external", "external": {"existingSecret": "db", "host": "db2", "port": 6432}}}
    places = []
    for values in ({}, {"postgres": EXTERNAL}, external, other):
        objects = rendered({**values, "commonLabels": {"team": "mail"}}, tmp_path)
        assert f"--place={place_of(objects)}" in arguments_of_the_job(objects)
        container = objects["Deployment", "mailrail-queue"]["spec"]["template"]["spec"]["containers"][0]
        assert "database-in-use" in {mount["name"] for mount in container["volumeMounts"]}, "unused ones do not count"
        places.append(place_of(objects))
    assert len(set(places)) == len(places)
    by_hand = rendered({"migrations": {"mode": "none"}}, tmp_path)
    assert "database-in-use" not in json.dumps(by_hand["Deployment", "mailrail-queue"])


def test_the_migrations_Job_may_look_at_named_objects_alone_and_reaches_any_bundled_Postgres(tmp_path: Path) -> None:
    objects = rendered({"postgres": EXTERNAL}, tmp_path)
    create, *named = objects["Role", "mailrail-migrations"]["rules"]
    assert (create["resources"], create["verbs"]) == (["configmaps"], ["create"])
    assert {(*r["resources"], *r["verbs"], *r["resourceNames"]) for r in named} == {
        ("configmaps", "get", "update", "mailrail-database"),
        ("statefulsets", "get", "mailrail-postgres"),
        ("persistentvolumeclaims", "get", "data-mailrail-postgres-0"),
    }
    peers = [
        peer["podSelector"]["matchLabels"]
        for rule in objects[POLICY, "mailrail-migrations"]["spec"]["egress"]
        for peer in rule.get("to", ())
    ]
    for values in ({}, NO_VOLUME, LARGE):
        pod = server_of(rendered(values, tmp_path))["spec"]["template"]["metadata"]["labels"]
        assert [peer for peer in peers if peer.items() <= pod.items()]


def test_the_bundled_Postgres_gets_its_schema_again_by_itself(tmp_path: Path) -> None:
    def migrates(values: Mapping[str, Any]) -> bool:
        return "MAILRAIL_CONFIG_MIGRATE" in json.dumps(rendered(values, tmp_path)["Deployment", "mailrail-config"])

    assert migrates({})
    assert not migrates({"postgres": EXTERNAL})
    assert not migrates({"migrations": {"mode": "none"}})


def test_Postgres_has_an_image_of_its_own(tmp_path: Path) -> None:
    values = {
        "image": {"registry": "registry.example.org", "tag": "9.9.9"},
        "postgres": {"bundled": {"image": {"tag": "2.0.0"}}},
    }
    (container,) = rendered(values, tmp_path)[POSTGRES]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example.org/mailrail:2.0.0"


def test_a_fast_shutdown_of_Postgres_ends_before_the_kubelet_kills_it(tmp_path: Path) -> None:
    for values in ({}, NO_VOLUME):
        pod = server_of(rendered(values, tmp_path))["spec"]["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] >= STOP_GRACE + 5


def test_files_on_the_volume_are_given_to_the_group_once_unless_the_values_say_otherwise(tmp_path: Path) -> None:
    def policy(values: Mapping[str, Any]) -> object:
        pod = rendered(values, tmp_path)[POSTGRES]["spec"]["template"]["spec"]
        return pod["securityContext"]["fsGroupChangePolicy"]

    own = {"podSecurityContext": {"fsGroupChangePolicy": "Always"}}
    assert (policy({}), policy(own)) == ("OnRootMismatch", "Always")


def test_helm_test_looks_at_the_claim_that_the_bundled_Postgres_has_and_at_no_other(tmp_path: Path) -> None:
    for values, claim in (
        ({}, "data-mailrail-postgres-0"),
        (CLAIM, "mine"),
        (NO_VOLUME, ""),
        ({"postgres": EXTERNAL}, ""),
    ):
        objects = rendered(values, tmp_path)
        (container,) = objects["Pod", "mailrail-test"]["spec"]["containers"]
        named = [name for rule in objects["Role", "mailrail-test"]["rules"] for name in rule.get("resourceNames", ())]
        assert [a for a in container["args"] if a.startswith("--claim=")] == ([f"--claim={claim}"] if claim else [])
        assert [name for name in named if name != "mailrail-test"] == ([claim] if claim else [])


def test_the_kinds_stay_with_all_objects_when_the_release_goes_or_leaves_them_to_another(tmp_path: Path) -> None:
    kinds = [o for (kind, _), o in rendered({}, tmp_path).items() if kind == "CustomResourceDefinition"]
    assert len(kinds) == 5
    for kind in kinds:
        assert KEPT.items() <= kind["metadata"]["annotations"].items(), kind["metadata"]["name"]


def test_no_template_looks_at_the_cluster() -> None:
    for path in (CHART / "templates").iterdir():
        assert "lookup " not in path.read_text(encoding="utf-8"), path.name


# --- what the schema refuses ---


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"queue": {"settings": {"lingre": 0.1}}}, "'lingre' not allowed"),
        ({"queue": {"settings": {"linger": "soon"}}}, "want number"),
        ({"config": {"settings": {"look_seconds": 1}}}, "'look_seconds' not allowed"),
        ({"commonLabels": {"app.kubernetes.io/component": "x"}}, "app.kubernetes.io/component"),
        ({"queue": {"podLabels": {"app.kubernetes.io/name": "x"}}}, "app.kubernetes.io/name"),
        ({"operator": {"egressAddresses": ["mx.example.org"]}}, "/operator/egressAddresses/0"),
        ({"unbound": {"forwardTo": ["dns.example.org"]}}, "/unbound/forwardTo/0"),
        ({"networkPolicy": {"postgresPorts": [0]}}, "/networkPolicy/postgresPorts/0"),
        ({"queue": {"autoscaling": {"targetCPU": "0m"}}}, "/queue/autoscaling/targetCPU"),
        ({"queue": {"autoscaling": {"targetCPU": 0}}}, "/queue/autoscaling/targetCPU"),
        ({"queue": {"autoscaling": {"targetCPUUtilizationPercentage": 0}}}, "/targetCPUUtilizationPercentage"),
    ],
)
def test_a_value_that_cannot_be_stops_helm_with_the_words_of_the_schema(
    values: Mapping[str, Any], words: str, tmp_path: Path
) -> None:
    done = helm_template(values, tmp_path)
    assert done.returncode != 0
    assert words in done.stderr


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"outbound": {"resolver": {"trustAD": True}}},
            "outbound.resolver.trustAD: whom? The cluster's DNS cannot be trusted.",
        ),
        (
            {"ingress": {"autoscaling": {"enabled": True, "minReplicas": 5, "maxReplicas": 2}}},
            "ingress.autoscaling: minReplicas (5) is more than maxReplicas (2)",
        ),
        (
            {"queue": {"keda": {"enabled": True, "serverAddress": "http://p", "minReplicas": 11}}},
            "queue.keda: minReplicas (11) is more than maxReplicas (10)",
        ),
        (
            {"mtls": {"mode": "certManager", "certManager": {"renewBefore": "9000h"}}},
            "mtls.certManager.renewBefore (9000h) must be less than its duration (2160h)",
        ),
        (
            {"mtls": {"mode": "certManager", "certManager": {"duration": "1h30m", "renewBefore": "90m"}}},
            "mtls.certManager.renewBefore (90m) must be less than its duration (1h30m)",
        ),
        (
            {"mtls": {"mode": "certManager", "certManager": {"duration": "59m", "renewBefore": "9m"}}},
            "mtls.certManager.duration is 59m, and cert-manager issues nothing for less than 1h",
        ),
        (
            {"mtls": {"mode": "certManager", "certManager": {"renewBefore": "4m59s"}}},
            "mtls.certManager.renewBefore is 4m59s, and cert-manager wants 5m at least",
        ),
        (
            {
                "smtpCertificate": {
                    "mode": "certManager",
                    "certManager": {"issuerRef": {"name": "ca"}, "renewBefore": "2160h"},
                }
            },
            "smtpCertificate.certManager.renewBefore (2160h) must be less than its duration (2160h)",
        ),
    ],
)
def test_values_that_contradict_each_other_stop_helm_with_a_sentence(
    values: Mapping[str, Any], words: str, tmp_path: Path
) -> None:
    done = helm_template(values, tmp_path)
    assert done.returncode != 0
    assert words in done.stderr


# --- rights ---


@pytest.mark.parametrize("elsewhere", [{"clusterWide": True}, {"namespaces": ["team"]}])
def test_who_administers_another_namespace_may_not_write_gateways_there(
    elsewhere: dict[str, Any], tmp_path: Path
) -> None:
    """A gateway that the operator watches may claim any domain and any port of the installation."""

    def writers(values: Mapping[str, Any]) -> set[str]:
        return {
            name
            for (kind, name), role in rendered(values, tmp_path).items()
            if kind == "ClusterRole" and any(label.split("/")[-1].startswith("aggregate-to") for label in labels(role))
            if any("mailgateways" in r["resources"] and "create" in r["verbs"] for r in role["rules"])
        }

    def labels(role: Object) -> Mapping[str, str]:
        found: Mapping[str, str] = role["metadata"]["labels"]
        return found

    assert len(writers({"postgres": EXTERNAL})) == 1
    assert writers({"postgres": EXTERNAL, "operator": elsewhere}) == set()


def test_outbound_is_told_which_networks_of_ours_policies_may_be_fetched_from(tmp_path: Path) -> None:
    for networks, told in (([], []), (["10.8.0.0/16", "fd00::/8"], ["10.8.0.0/16,fd00::/8"])):
        deployment = rendered({"outbound": {"fetchNetworks": networks}}, tmp_path)["Deployment", "mailrail-outbound"]
        environment = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
        assert [e["value"] for e in environment if e["name"] == "MAILRAIL_OUTBOUND_FETCH_NETWORKS"] == told


# --- policies of our own domains ---


def of_policy(values: Mapping[str, Any], folder: Path) -> dict[str, Object]:
    """What belongs to the policy service, by kind."""
    found = rendered(values, folder).items()
    return {kind: each for (kind, name), each in found if each["metadata"]["labels"].get(COMPONENT) == "policy"}


COMPONENT = "app.kubernetes.io/component"
PATH = "/.well-known/mta-sts.txt"
HOSTS = ["mta-sts.a.example", "mta-sts.b.example"]


def test_policies_are_served_by_two_pods_without_keys_or_database_STS_23a(tmp_path: Path) -> None:
    made = of_policy({}, tmp_path)
    assert made.keys() == {"Deployment", "Service", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy"}
    assert made["Deployment"]["spec"]["replicas"] == 2
    pod = made["Deployment"]["spec"]["template"]["spec"]
    assert {volume["name"] for volume in pod["volumes"]} == {"tls", "cache", "tmp"}
    (container,) = pod["containers"]
    assert container["args"] == ["serve", "policy"]
    assert not [env for env in container["env"] if "DATABASE" in env["name"] or "SEALING" in env["name"]]
    assert made["Service"]["spec"]["type"] == "ClusterIP"


def test_anybody_may_ask_for_a_policy_and_the_pod_may_ask_config_alone(tmp_path: Path) -> None:
    rules = of_policy({}, tmp_path)[POLICY]["spec"]
    assert {"ports": [{"port": "http", "protocol": "TCP"}]} in rules["ingress"]
    assert {port for rule in rules["egress"] for port in (p["port"] for p in rule["ports"])} == {53, 7001}
    proxies = [{"namespaceSelector": {"matchLabels": {"app": "proxy"}}}]
    closed = of_policy({"networkPolicy": {"policyFrom": proxies}}, tmp_path)[POLICY]["spec"]["ingress"]
    assert {"ports": [{"port": "http", "protocol": "TCP"}], "from": proxies} in closed
    config = rendered({}, tmp_path)[POLICY, "mailrail-config"]["spec"]["ingress"]
    assert '"app.kubernetes.io/component": "policy"' in json.dumps(config)


def test_an_ingress_passes_the_hosts_on_with_that_path_alone(tmp_path: Path) -> None:
    values = {"policy": {"ingress": {"enabled": True, "className": "edge", "hosts": HOSTS}}}
    ingress = of_policy(values, tmp_path)["Ingress"]["spec"]
    assert ingress["tls"] == [{"hosts": HOSTS, "secretName": "mailrail-policy-hosts"}]
    assert [rule["host"] for rule in ingress["rules"]] == HOSTS
    for rule in ingress["rules"]:
        (path,) = rule["http"]["paths"]
        assert (path["path"], path["pathType"]) == (PATH, "Exact")
        assert path["backend"]["service"] == {"name": "mailrail-policy", "port": {"name": "http"}}


def test_an_http_route_passes_the_hosts_on_with_that_path_alone(tmp_path: Path) -> None:
    parents = [{"name": "edge", "namespace": "gateways", "sectionName": "https"}]
    values = {"policy": {"httpRoute": {"enabled": True, "parentRefs": parents, "hostnames": HOSTS}}}
    route = of_policy(values, tmp_path)["HTTPRoute"]["spec"]
    assert (route["parentRefs"], route["hostnames"]) == (parents, HOSTS)
    (rule,) = route["rules"]
    assert rule["matches"] == [{"path": {"type": "Exact", "value": PATH}}]
    assert rule["backendRefs"] == [{"name": "mailrail-policy", "port": 80}]


def test_with_a_certificate_of_its_own_it_speaks_https_right_behind_a_load_balancer(tmp_path: Path) -> None:
    service = {"type": "LoadBalancer", "port": 443}
    values = {"policy": {"certificate": {"secretName": "hosts"}, "service": service}}
    made = of_policy(values, tmp_path)
    (container,) = made["Deployment"]["spec"]["template"]["spec"]["containers"]
    (folder,) = [e["value"] for e in container["env"] if e["name"] == "MAILRAIL_POLICY_CERTIFICATE_DIR"]
    (mount,) = [m for m in container["volumeMounts"] if m["mountPath"] == folder]
    volumes = {v["name"]: v for v in made["Deployment"]["spec"]["template"]["spec"]["volumes"]}
    assert volumes[mount["name"]]["secret"]["secretName"] == "hosts"
    assert made["Service"]["spec"]["ports"][0]["port"] == 443


@pytest.mark.parametrize("way", [{"ingress": {"enabled": True}}, {"httpRoute": {"enabled": True, "hostnames": HOSTS}}])
def test_a_way_to_no_host_is_refused(way: Mapping[str, Any], tmp_path: Path) -> None:
    assert helm_template({"policy": way}, tmp_path).returncode != 0


def test_who_gave_each_secret_before_there_was_a_policy_service_goes_on_without_one(tmp_path: Path) -> None:
    given = {role: f"tls-{role}" for role in ("config", "queue", "ingress", "outbound", "operator", "cli")}
    mtls = {"mode": "existing", "existingSecrets": given}
    assert of_policy({"mtls": mtls}, tmp_path) == {}
    mtls = {"mode": "existing", "existingSecrets": given | {"policy": "tls-policy"}}
    made = of_policy({"mtls": mtls}, tmp_path)
    volumes = made["Deployment"]["spec"]["template"]["spec"]["volumes"]
    assert volumes[0]["secret"]["secretName"] == "tls-policy"
    assert of_policy({"policy": {"enabled": False}}, tmp_path) == {}
