"""Judge the chart: `helm lint --strict`, each file of ci values rendered, what was rendered looked at, and taken by an
API server.

Every pod must satisfy the restricted Pod Security Standard, ask for resources, hold no token of the API server unless
it needs one, mount nothing of its node, and be named by a NetworkPolicy. With KUBECONFIG set the API server judges all
objects in a dry run; kinds that it does not know are counted. What was skipped is said, and never fails the run.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy/helm/mailrail"
KUBE_VERSION = "1.32.0"
"""The oldest one that the chart promises to work on."""
RELEASE, NAMESPACE = "mailrail", "default"
WITH_TOKEN = {"operator", "keys", "migrations", "test"}
"""Components that speak with the API server."""

Object = Mapping[str, Any]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run helm; its output is the caller's to show."""
    return subprocess.run(["helm", *arguments], capture_output=True, text=True)


def pod_of(body: Object) -> Object | None:
    """The pod template in an object, if it has one."""
    match body["kind"]:
        case "Pod":
            return {"metadata": body["metadata"], "spec": body["spec"]}
        case "Deployment" | "StatefulSet" | "DaemonSet" | "Job":
            template: Object = body["spec"]["template"]
            return template
        case "CronJob":
            return pod_of({"kind": "Job", "spec": body["spec"]["jobTemplate"]["spec"]})
    return None


def complaints(body: Object, policies: list[Object]) -> Iterator[str]:
    """What is wrong with the pods of an object, in words."""
    pod = pod_of(body)
    if pod is None:
        return
    spec, labels = pod["spec"], pod["metadata"].get("labels", {})
    security = spec.get("securityContext", {})
    if security.get("runAsNonRoot") is not True:
        yield "may run as root"
    if security.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "has no seccomp profile"
    if any(spec.get(field) for field in ("hostNetwork", "hostPID", "hostIPC")):
        yield "uses a namespace of its node"
    component = labels.get("app.kubernetes.io/component", "")
    if spec.get("automountServiceAccountToken") is not (component in WITH_TOKEN):
        yield "must say whether it gets a token of the API server"
    if spec.get("enableServiceLinks") is not False:
        yield "gets variables of Services, which would pass for settings"
    for volume in spec.get("volumes", ()):
        if not set(volume) & {"emptyDir", "secret", "configMap", "projected", "persistentVolumeClaim"}:
            yield f"mounts something of its node: {volume['name']}"
    for container in (*spec.get("containers", ()), *spec.get("initContainers", ())):
        name, own = container["name"], container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"{name} may gain privileges"
        if "ALL" not in own.get("capabilities", {}).get("drop", ()) or own.get("capabilities", {}).get("add"):
            yield f"{name} keeps capabilities"
        if own.get("readOnlyRootFilesystem") is not True:
            yield f"{name} may write to its root"
        if not {"cpu", "memory"} <= set(container.get("resources", {}).get("requests", {})):
            yield f"{name} asks for no cpu or memory"
        if container.get("image", "").endswith(":latest"):
            yield f"{name} takes whatever is newest"
    selectors = [p["spec"]["podSelector"]["matchLabels"] for p in policies]
    if not any(all(labels.get(k) == v for k, v in s.items()) for s in selectors):
        yield "is named by no NetworkPolicy"


def judge(values: Path) -> tuple[list[Object], list[str]]:
    """What one file of values renders to, and what is wrong with it."""
    lint = helm("lint", "--strict", "--quiet", str(CHART), "-f", str(values))
    if lint.returncode:
        return [], [lint.stdout.strip() + lint.stderr.strip()]
    rendering = ("template", RELEASE, str(CHART), "-n", NAMESPACE, "-f", str(values), "--kube-version", KUBE_VERSION)
    done = helm(*rendering)
    if done.returncode:
        return [], [done.stderr.strip()]
    objects: list[Object] = [d for d in yaml.safe_load_all(done.stdout) if d]
    wrong: list[str] = []
    seen: set[tuple[str, str, str]] = set()
    policies = [o for o in objects if o["kind"] == "NetworkPolicy"]
    for body in objects:
        what = (body["kind"], body["metadata"].get("namespace", ""), body["metadata"]["name"])
        if what in seen:
            wrong.append(f"{what[0]} {what[2]} is there twice")
        seen.add(what)
        wrong += [f"{what[0]} {what[2]}: {words}" for words in complaints(body, policies)]
    if helm(*rendering).stdout != done.stdout:
        wrong.append("it renders otherwise the second time: something is made by chance")
    return objects, wrong


def placed(body: Object) -> Object:
    """An object as this cluster could have it: what a dry run does not make, or the cluster lacks, is left out."""
    metadata = dict(body["metadata"])
    if metadata.get("namespace"):
        metadata["namespace"] = NAMESPACE
    moved = {**body, "metadata": metadata}
    match body["kind"]:
        case "Pod":
            moved["spec"] = {k: v for k, v in body["spec"].items() if k != "serviceAccountName"}
        case "Service":
            moved["spec"] = {k: v for k, v in body["spec"].items() if k not in ("ipFamilies", "ipFamilyPolicy")}
    return moved


def dry_run(objects: list[Object], known: set[tuple[str, str]]) -> tuple[list[str], dict[str, int]]:
    """What the API server says against them, and the kinds that it does not know with how many there were."""
    asked = [o for o in objects if (o["apiVersion"], o["kind"]) in known]
    foreign: dict[str, int] = {}
    for body in objects:
        if (body["apiVersion"], body["kind"]) not in known:
            foreign[body["kind"]] = foreign.get(body["kind"], 0) + 1
    command = ["kubectl", "apply", "--dry-run=server", "--server-side", "--force-conflicts", "--field-manager=lint"]
    done = subprocess.run(
        [*command, "-f", "-"], input=yaml.safe_dump_all(map(placed, asked)), capture_output=True, text=True
    )
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return (lines if done.returncode or any("Warning" in line for line in lines) else []), foreign


def known_kinds() -> set[tuple[str, str]]:
    """(apiVersion, kind) of everything that the API server has."""
    done = subprocess.run(["kubectl", "api-resources", "--no-headers"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the API server of KUBECONFIG does not answer: {done.stderr.strip()}")
    rows = (line.split() for line in done.stdout.splitlines())
    return {(row[-3], row[-1]) for row in rows}


def main() -> int:
    """Judge; the exit status."""
    if shutil.which("helm") is None:
        print("helm is not installed: https://helm.sh/docs/intro/install", file=sys.stderr)
        return 1
    server = bool(os.environ.get("KUBECONFIG")) and shutil.which("kubectl") is not None
    known = known_kinds() if server else set()
    failed = False
    skipped: dict[str, int] = {}
    for values in sorted((CHART / "ci").glob("*-values.yaml")):
        objects, wrong = judge(values)
        if server and not wrong:
            found, foreign = dry_run(objects, known)
            wrong += found
            for kind, count in foreign.items():
                skipped[kind] = skipped.get(kind, 0) + count
        print(f"{'FAILED' if wrong else 'ok':6} {values.relative_to(ROOT)}: {len(objects)} objects")
        for line in wrong:
            print(f"       {line}")
        failed = failed or bool(wrong)
    if not server:
        print("skipped: the API server's dry run (KUBECONFIG does not name a cluster, or there is no kubectl)")
    elif skipped:
        words = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
        print(f"skipped in the API server's dry run, whose kinds it does not know: {words}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
