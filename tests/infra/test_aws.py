"""The files for AWS: a policy with the rights that are promised and no more, a launcher file."""

import json
from pathlib import Path
from typing import Any

import botocore.session
import ray
import yaml
from botocore.validate import validate_parameters
from helpers.command import ROOT
from jsonschema import Draft202012Validator
from moto.iam.policy_validation import IAMPolicyDocumentValidator
from tokenmill import __version__

FOLDER = ROOT / "infra" / "aws"


def require_taken(service: str, operation: str, parameters: dict[str, Any]) -> None:
    """That AWS's own description of an operation takes these parameters."""
    model = botocore.session.Session().get_service_model(service)
    validate_parameters(parameters, model.operation_model(operation).input_shape)


def rights() -> dict[tuple[str, str], Any]:
    """Each action and resource that the policy allows, and under what condition."""
    policy = json.loads((FOLDER / "policy.json").read_text())
    found = {}
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        actions = statement["Action"]
        for action in [actions] if isinstance(actions, str) else actions:
            found[action, statement["Resource"]] = statement.get("Condition")
    return found


def test_a_run_may_read_its_input_and_write_its_output() -> None:
    """List and get below the input, list, get and put below the output; nothing else."""
    source, target = "arn:aws:s3:::INPUT-BUCKET", "arn:aws:s3:::OUTPUT-BUCKET"
    assert rights().keys() == {
        ("s3:ListBucket", source),
        ("s3:GetObject", f"{source}/corpus/*"),
        ("s3:ListBucket", target),
        ("s3:GetObject", f"{target}/summaries/*"),
        ("s3:PutObject", f"{target}/summaries/*"),
    }


def test_iam_takes_the_policy() -> None:
    """It is a policy by IAM's grammar."""
    IAMPolicyDocumentValidator((FOLDER / "policy.json").read_text()).validate()


def test_lists_are_of_the_prefixes_alone() -> None:
    """Neither list goes beyond its prefix."""
    lists = {resource: condition for (action, resource), condition in rights().items() if condition}
    prefixes = [keys["s3:prefix"] for condition in lists.values() for keys in condition.values()]
    assert prefixes == [["corpus", "corpus/*"], ["summaries", "summaries/*"]]


def test_unfinished_uploads_end() -> None:
    """The lifecycle aborts them below the output, and expires no object."""
    lifecycle = json.loads((FOLDER / "lifecycle.json").read_text())
    place = {"Bucket": "OUTPUT-BUCKET", "LifecycleConfiguration": lifecycle}
    require_taken("s3", "PutBucketLifecycleConfiguration", place)
    (rule,) = lifecycle["Rules"]
    assert rule["Status"] == "Enabled"
    assert rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"] >= 1
    assert not {"Expiration", "NoncurrentVersionExpiration", "Transitions"} & rule.keys()


def test_the_launcher_takes_its_file() -> None:
    """It meets Ray's own schema, EC2 takes its nodes, all ask for a token, workers are on spot."""
    cluster = yaml.safe_load((FOLDER / "cluster.yaml").read_text())
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    Draft202012Validator(schema).validate(cluster)
    types = cluster["available_node_types"]
    for node in types.values():
        require_taken("ec2", "RunInstances", {"MinCount": 1, "MaxCount": 1, **node["node_config"]})
    assert cluster["head_node_type"] in types
    assert types["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert cluster["docker"]["image"].endswith(f":{__version__}")
    starts = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    starts = [command for command in starts if "ray start" in command]
    assert len(starts) == 2
    assert all(command.startswith("RAY_AUTH_MODE=token ") for command in starts)
