"""The manifests: every field is one that its kind has, every name leads somewhere, no rights spare.

Ray's kinds are checked by KubeRay's own schemas where those lie beside the project, and, like the
others, by `kubernetes_fields.yaml`: the fields that we use, with their types.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import ROOT
from jsonschema import Draft202012Validator

from pipeline import __version__
from pipeline.job_file import load_job

FOLDER = ROOT / "infra" / "kubernetes"
CRDS = ROOT.parent / "shared" / "data" / "kuberay-crds"
KUSTOMIZATIONS = sorted(FOLDER.rglob("kustomization.yaml"))
MANIFESTS = sorted(
    path for path in FOLDER.rglob("*.yaml") if path.name not in {"kustomization.yaml", "job.yaml"}
)
FIELDS = yaml.safe_load((ROOT / "tests" / "kubernetes_fields.yaml").read_text())
#: Kinds of value, as `kubernetes_fields.yaml` names them.
VALUES: dict[str, Mapping[str, Any]] = {
    "text": {"type": "string"},
    "number": {"type": "integer"},
    "truth": {"type": "boolean"},
    "texts": {"type": "object", "additionalProperties": {"type": "string"}},
}


def documents(path: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each is not None]


OBJECTS = [each for path in MANIFESTS for each in documents(path)]


def schema_of(fields: Any) -> dict[str, Any]:
    """The JSON schema of a part of `kubernetes_fields.yaml`: those fields, and no others."""
    if isinstance(fields, str) and fields in FIELDS["parts"]:
        return schema_of(FIELDS["parts"][fields])
    if isinstance(fields, str):
        return dict(VALUES[fields])
    if isinstance(fields, list):
        return {"type": "array", "items": schema_of(fields[0])}
    properties = {name.rstrip("!"): schema_of(part) for name, part in fields.items()}
    return {
        "type": "object",
        "properties": properties,
        "required": [name[:-1] for name in fields if name.endswith("!")],
        "additionalProperties": False,
    }


def closed(schema: Any) -> Any:
    """A schema of Kubernetes that refuses unknown fields, as the API server does when strict."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(each) for key, each in schema.items()}
    is_object = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if is_object and not schema.get("x-kubernetes-preserve-unknown-fields"):
        inner.setdefault("additionalProperties", False)
    return inner


def parts(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in an object."""
    if isinstance(value, dict):
        yield value
        for each in value.values():
            yield from parts(each)
    elif isinstance(value, list):
        for each in value:
            yield from parts(each)


def pod_templates() -> list[dict[str, Any]]:
    return [
        part for thing in OBJECTS for part in parts(thing) if "containers" in part.get("spec", {})
    ]


def named(kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in OBJECTS if each["kind"] == kind}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_every_field_is_one_that_its_kind_has(path: Path) -> None:
    """Each object has the fields that it needs, of the right type, and none that does not exist."""
    for thing in documents(path):
        schema = schema_of(FIELDS["kinds"][f"{thing['apiVersion']}/{thing['kind']}"])
        Draft202012Validator(schema).validate(thing)


@pytest.mark.skipif(not CRDS.is_dir(), reason="KubeRay's schemas do not lie beside the project")
@pytest.mark.parametrize("kind", ["RayCluster", "RayJob", "RayCronJob"])
def test_kuberay_takes_its_kinds(kind: str) -> None:
    """KubeRay's own schemas, with unknown fields refused, take our objects."""
    text = (CRDS / f"ray.io_{kind.lower()}s.yaml").read_text()
    # A megabyte each: seconds with the loader in Python.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    crd = yaml.load(text, loader)  # noqa: S506 - a safe one
    (schema,) = [
        version["schema"]["openAPIV3Schema"]
        for version in crd["spec"]["versions"]
        if version["name"] == "v1"
    ]
    spec = closed(schema["properties"]["spec"])
    assert named(kind)
    for thing in named(kind).values():
        Draft202012Validator(spec).validate(thing["spec"])


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda path: path.parent.name)
def test_a_kustomization_names_what_there_is(path: Path) -> None:
    """Each resource and file exists, each manifest is taken up, and images bear this version."""
    kustomization = yaml.safe_load(path.read_text())
    for name in kustomization["resources"]:
        target = path.parent / name
        assert (target / "kustomization.yaml").exists() or target.is_file(), name
    files = [name for each in kustomization.get("configMapGenerator", ()) for name in each["files"]]
    assert all((path.parent / name).is_file() for name in files)
    beside = {each.name for each in path.parent.glob("*.yaml")} - {"kustomization.yaml"}
    assert beside == {name for name in kustomization["resources"] if ".." not in name} | set(files)
    assert all(image["newTag"] == __version__ for image in kustomization.get("images", ()))


def test_the_jobs_are_valid() -> None:
    """The job that each overlay carries loads."""
    jobs = list(FOLDER.rglob("job.yaml"))
    assert jobs
    for path in jobs:
        load_job(path)


def test_a_cluster_is_the_same_in_each_overlay() -> None:
    """A standing cluster, a run's own and a night's own differ in nothing."""
    (cluster,) = named("RayCluster").values()
    (job,) = named("RayJob").values()
    (nightly,) = named("RayCronJob").values()
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    night = nightly["spec"]["jobTemplate"]
    assert {**night, "activeDeadlineSeconds": job["spec"]["activeDeadlineSeconds"]} == job["spec"]


def test_every_name_leads_somewhere() -> None:
    """Service accounts, roles, clusters' services and tokens, mounts and ports are there."""
    for template in pod_templates():
        spec = template["spec"]
        assert spec["serviceAccountName"] in named("ServiceAccount")
        volumes = {volume["name"] for volume in spec.get("volumes", ())}
        for container in spec["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes
    for binding in named("RoleBinding").values():
        assert binding["roleRef"]["name"] in named("Role")
        assert all(subject["name"] in named("ServiceAccount") for subject in binding["subjects"])
    (night,) = named("CronJob").values()
    (container,) = night["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    (cluster,) = named("RayCluster")
    assert f"http://{cluster}-head-svc:8265" in container["command"]
    assert container["env"][1]["valueFrom"]["secretKeyRef"]["name"] == cluster


def test_policies_and_monitors_reach_every_pod() -> None:
    """Each pod bears the label that they select, and Ray's pods have the port that is scraped."""
    (policy,) = named("NetworkPolicy").values()
    (monitor,) = named("PodMonitor").values()
    label = policy["spec"]["podSelector"]["matchLabels"]
    assert monitor["spec"]["selector"]["matchLabels"] == label
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    for template in pod_templates():
        assert template["metadata"]["labels"] == label
        for container in template["spec"]["containers"]:
            if container["name"].startswith("ray-"):
                assert endpoint["port"] in {port["name"] for port in container["ports"]}


def test_no_pod_runs_as_root_or_gains_rights() -> None:
    """All pods meet the restricted standard, the autoscaler included; memory has limits."""
    assert pod_templates()
    for template in pod_templates():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert_gains_nothing(container)
    for part in parts(OBJECTS):
        if "autoscalerOptions" in part:
            assert_gains_nothing(part["autoscalerOptions"])


def assert_gains_nothing(container: Mapping[str, Any]) -> None:
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]


def test_only_the_autoscaler_speaks_to_kubernetes() -> None:
    """No pod but a head has its account's token, and no role is for everything or for secrets."""
    for template in pod_templates():
        is_head = template["spec"]["serviceAccountName"] == "tokenmill-head"
        assert template["spec"].get("automountServiceAccountToken", True) is is_head
    rules = [rule for role in named("Role").values() for rule in role["rules"]]
    for rule in rules:
        for values in rule.values():
            assert "*" not in values
        assert "secrets" not in rule["resources"]


def test_clusters_ask_for_a_token() -> None:
    """Ray runs the code of anyone who reaches it, unless it wants a token."""
    clusters = [part for part in parts(OBJECTS) if "headGroupSpec" in part]
    assert len(clusters) == 3
    assert all(cluster["authOptions"] == {"mode": "token"} for cluster in clusters)


def test_no_secret_stands_in_a_manifest() -> None:
    """There is no Secret, and no variable with a secret's name has a value."""
    assert not named("Secret")
    for part in parts(OBJECTS):
        for variable in part.get("env", ()):
            is_secret = any(word in variable["name"] for word in ("TOKEN", "KEY", "SECRET"))
            assert not (is_secret and "value" in variable)


def test_nights_do_not_overlap() -> None:
    """The CronJob waits for a night's end; the RayCronJob's nights end before the next begins."""
    (night,) = named("CronJob").values()
    assert night["spec"]["concurrencyPolicy"] == "Forbid"
    (container,) = night["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert "--no-wait" not in container["command"]
    (other,) = named("RayCronJob").values()
    assert other["spec"]["jobTemplate"]["activeDeadlineSeconds"] < 24 * 3600
