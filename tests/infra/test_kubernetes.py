"""The manifests: every field is one that its kind has, every name leads somewhere, no rights spare.

kustomize builds each overlay, and Kubernetes' own schemas take what is of its kinds, pod templates
in other kinds included. Ray's kinds are checked by KubeRay's schemas where those are next to the
project, and always, as Prometheus's kind is, by `kubernetes_fields.yaml`: the fields that we use.
"""

import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helpers.command import ROOT, program
from jsonschema import Draft202012Validator
from tokenmill import __version__
from tokenmill.cli import app
from tokenmill.errors import ExitCode
from tokenmill.job.loader import load_job
from typer.main import get_command

FOLDER = ROOT / "infra" / "kubernetes"
CRDS = ROOT.parent / "shared" / "data" / "kuberay-crds"
#: Of Kubernetes, whose schemas are taken.
VERSION = "1.37"
KUSTOMIZATIONS = sorted(FOLDER.rglob("kustomization.yaml"))
MANIFESTS = sorted(
    path for path in FOLDER.rglob("*.yaml") if path.name not in {"kustomization.yaml", "job.yaml"}
)
JOBS = sorted(FOLDER.rglob("job.yaml"))
FIELDS = yaml.safe_load((ROOT / "tests" / "infra" / "kubernetes_fields.yaml").read_text())
#: Kinds of value, as `kubernetes_fields.yaml` names them.
VALUES: dict[str, Mapping[str, Any]] = {
    "text": {"type": "string"},
    "number": {"type": "integer"},
    "truth": {"type": "boolean"},
    "texts": {"type": "object", "additionalProperties": {"type": "string"}},
    "object": {"type": "object"},
    "pod": {"type": "object"},
}


def documents(text: str) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(text) if each is not None]


OBJECTS = [each for path in MANIFESTS for each in documents(path.read_text())]


@cache
def built(folder: Path) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send."""
    command = [program("kubectl"), "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return documents(done.stdout)


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


def pod_templates(objects: list[dict[str, Any]] = OBJECTS) -> list[dict[str, Any]]:
    return [part for part in parts(objects) if "containers" in (part.get("spec") or {})]


def named(kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in OBJECTS if each["kind"] == kind}


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda path: path.parent.name)
def test_kubernetes_takes_what_kustomize_builds(path: Path) -> None:
    """Strictly: no field that its kind lacks, none missing, each of its type; pods everywhere."""
    objects = built(path.parent)
    assert {thing["kind"] for thing in objects} >= {"Namespace", "NetworkPolicy", "PodMonitor"}
    for thing in objects:
        if (known := f"{thing['apiVersion']}/{thing['kind']}") in FIELDS["kinds"]:
            Draft202012Validator(schema_of(FIELDS["kinds"][known])).validate(thing)
        else:
            kubernetes_validate.validate(thing, VERSION, strict=True)
    for template in pod_templates(objects):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "template": template}
        kubernetes_validate.validate(pod, VERSION, strict=True)


@pytest.mark.parametrize(
    "mistake",
    [
        {"restartPolicies": "Never"},
        {"containers": [{"image": "tokenmill"}]},
        {"containers": [{"name": "a", "resources": {"limits": 3}}]},
    ],
)
def test_a_mistake_in_a_pod_is_noticed(mistake: dict[str, Any]) -> None:
    """An unknown field, a missing one and a wrong type are refused."""
    spec = {"containers": [{"name": "submit"}], **mistake}
    pod = {"apiVersion": "v1", "kind": "PodTemplate", "template": {"spec": spec}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, VERSION, strict=True)


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda path: path.parent.name)
def test_what_is_built_is_in_our_namespace(path: Path) -> None:
    """Every object but the namespace itself, and every image is the one with a registry."""
    for thing in built(path.parent):
        place = thing["metadata"].get("namespace")
        assert place == (None if thing["kind"] == "Namespace" else "tokenmill")
    images = {
        container["image"]
        for template in pod_templates(built(path.parent))
        for container in template["spec"]["containers"]
    }
    assert images <= {f"registry.example.com/tokenmill:{__version__}"}


@pytest.mark.skipif(not CRDS.is_dir(), reason="KubeRay's schemas are not next to the project")
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
    """Each resource and file exists, each manifest is used, and images have this version."""
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
    """The job that each overlay carries loads; those of nights have a day in both paths."""
    jobs = {path.parent.name: load_job(path, ["date=2026-11-28"]) for path in JOBS}
    assert jobs.keys() == {"cluster", "nightly", "raycronjob", "run"}
    for name, job in jobs.items():
        is_nightly = name in {"nightly", "raycronjob"}
        for place in (job.input.path, job.output.path):
            assert place.endswith("/dt=2026-11-28/") is is_nightly


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.parent.name)
def test_an_overlay_carries_its_own_job(path: Path) -> None:
    """The job next to the kustomization is the one in the cluster's ConfigMap."""
    (carried,) = [thing for thing in built(path.parent) if thing["kind"] == "ConfigMap"]
    assert carried["metadata"]["name"] == "tokenmill-job"
    assert carried["data"] == {"job.yaml": path.read_text()}


def test_a_cluster_is_the_same_in_each_overlay() -> None:
    """A permanent cluster, a run's own and a nightly one are alike; nightly runs have a date."""
    (cluster,) = named("RayCluster").values()
    (job,) = named("RayJob").values()
    (nightly,) = named("RayCronJob").values()
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    night = dict(nightly["spec"]["jobTemplate"])
    night["entrypoint"] = night["entrypoint"].removesuffix(" --date yesterday")
    night["activeDeadlineSeconds"] = job["spec"]["activeDeadlineSeconds"]
    assert night == job["spec"]


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
    container, variables = submitter()
    (cluster,) = named("RayCluster")
    assert variables["RAY_API_SERVER_ADDRESS"]["value"] == f"http://{cluster}-head-svc:8265"
    assert variables["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == cluster
    (mount,) = container["volumeMounts"]
    assert f"{mount['mountPath']}/job.yaml" in container["command"]


def submitter() -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The CronJob's container, and its variables by their names."""
    (night,) = named("CronJob").values()
    (container,) = night["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    return container, {variable["name"]: variable for variable in container["env"]}


def test_a_night_submits_a_command_that_there_is() -> None:
    """With options of `tokenmill submit`; it follows the run, and each try means the same day."""
    container, _ = submitter()
    program, command, *arguments = [*container["command"], *container["args"]]
    assert program == "tokenmill"
    get_command(app).commands[command].make_context(command, [*arguments])  # type: ignore[attr-defined]
    assert {"--follow", "--date"} <= set(arguments)
    assert "AWS" not in str(container)


def test_policies_and_monitors_reach_every_pod() -> None:
    """Each pod has the label that they select, and Ray's pods have the port that is scraped."""
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
    """The CronJob's pod lives as long as its run, and no other one starts meanwhile."""
    (night,) = named("CronJob").values()
    assert night["spec"]["concurrencyPolicy"] == "Forbid"
    container, _ = submitter()
    assert "--follow" in container["args"]


def test_every_try_of_a_night_means_the_same_day() -> None:
    """`yesterday` is another day after midnight: until then all tries have begun."""
    (night,) = named("CronJob").values()
    spec = night["spec"]
    assert spec["schedule"].split()[:2] == ["0", "1"]
    latest_start_s = 3600 + spec["startingDeadlineSeconds"]
    assert latest_start_s + spec["jobTemplate"]["spec"]["activeDeadlineSeconds"] <= 24 * 3600
    (other,) = named("RayCronJob").values()
    assert other["spec"]["schedule"] == spec["schedule"]
    # An hour for the second try's cluster.
    assert 3600 + other["spec"]["jobTemplate"]["activeDeadlineSeconds"] + 3600 <= 24 * 3600


def test_only_what_may_end_otherwise_is_tried_again() -> None:
    """Not a mistake, not too many rejects, not a run that somebody stopped."""
    (night,) = named("CronJob").values()
    spec = night["spec"]["jobTemplate"]["spec"]
    moved, final = spec["podFailurePolicy"]["rules"]
    assert moved["action"] == "Ignore"
    assert final["action"] == "FailJob"
    assert final["onExitCodes"]["containerName"] == submitter()[0]["name"]
    assert final["onExitCodes"]["values"] == [
        *(ExitCode.USER_ERROR, ExitCode.OVER_REJECT_BUDGET, ExitCode.STOPPED),
    ]


def test_the_role_of_the_submitter_is_no_more_than_runs_take() -> None:
    """It starts and ends RayJobs and looks at clusters, pods and logs; it changes nothing else."""
    (role,) = named("Role").values()
    changing = {
        (group, resource)
        for rule in role["rules"]
        if not set(rule["verbs"]) <= {"get", "list", "watch"}
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert changing == {("ray.io", "rayjobs")}
    (binding,) = named("RoleBinding").values()
    assert [subject["name"] for subject in binding["subjects"]] == ["tokenmill-submitter"]


def test_gpus_are_on_spot_nodes_and_come_and_go() -> None:
    """Each cluster has GPUs from none on, on spot nodes, and nodes without for the rest."""
    for cluster in (part for part in parts(OBJECTS) if "workerGroupSpecs" in part):
        assert cluster["enableInTreeAutoscaling"] is True
        gpu, cpu = cluster["workerGroupSpecs"]
        assert (gpu["groupName"], gpu["minReplicas"], cpu["groupName"]) == ("gpu", 0, "cpu")
        assert "spot" in gpu["template"]["spec"]["nodeSelector"].values()
        (worker,) = gpu["template"]["spec"]["containers"]
        assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert "nodeSelector" not in cpu["template"]["spec"]
