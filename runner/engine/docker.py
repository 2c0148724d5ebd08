"""The only importer of the Docker SDK: a few verbs, each a blocking call for a worker thread, each failure a
refusal."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any, TypeVar

import docker
import docker.errors
import docker.tls
import msgspec
import requests

from runner.errors import RunnerError, refuse

T = TypeVar("T")

API_FLOOR = (1, 41)  # the first that knows CgroupnsMode: Docker 20.10
POOL = 64  # connections of the SDK's HTTP pool; with its default, 32 threads raised AttributeError
LABEL = "org.toolrunner."
INSTANCE_LABEL = LABEL + "instance"
SANDBOX_LABEL = LABEL + "sandbox"
INPUTS_LABEL = LABEL + "inputs"
_REMEDY = "start the Docker engine, or run scripts/setup; then `runner doctor`"


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the Docker engine says of itself and its host. Claims: sandboxes are measured one by one."""

    docker: str
    runc: str
    api: str
    kernel: str
    cgroup_version: int
    runtimes: tuple[str, ...]
    default_runtime: str
    security: tuple[str, ...]
    memory_limit: bool
    swap_limit: bool
    pids_limit: bool
    cpu_quota: bool
    root: str = ""
    architecture: str = ""
    landlock: int = 0  # the kernel's Landlock ABI, 0 = none
    freezer: bool = False


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """A local image: id (`sha256:…`), labels, size in bytes, architecture."""

    id: str
    labels: dict[str, str]
    size: int = 0
    tags: tuple[str, ...] = ()


class State(msgspec.Struct, frozen=True, kw_only=True):
    """A container as Docker sees it now. `oom` is true when the kernel killed any process of it for memory."""

    running: bool
    pid: int
    exit_code: int
    oom: bool
    image: str
    runtime: str


class Docker:
    """One connection to a Docker engine. Safe to share between threads. Every method may block."""

    def __init__(self, host: str = "", *, timeout_s: int = 60) -> None:
        """Connect to `host`, DOCKER_HOST or the local socket. Raises `RunnerError` (host) when nothing answers."""
        where = host or os.environ.get("DOCKER_HOST", "") or "unix:///var/run/docker.sock"
        try:
            _knock(where)
            self._api = docker.APIClient(base_url=where, version="auto", timeout=timeout_s, max_pool_size=POOL)
        except (docker.errors.DockerException, requests.RequestException, OSError) as error:
            raise refuse(
                "host", f"no Docker engine answers at {where}", next_step=_REMEDY, detail=str(error)
            ) from error
        self.host = where

    def close(self) -> None:
        """Close every pooled connection."""
        self._api.close()

    def facts(self) -> HostFacts:
        """Versions and capabilities of the engine."""
        with _speaking("ask the Docker engine what it can do"):
            info, version = self._api.info(), self._api.version()
        return read_facts(info, version)

    def image(self, name: str) -> Image | None:
        """The local image of this tag or id, None when there is none. Never pulls."""
        try:
            with _speaking(f"look for the image {name}"):
                found = self._api.inspect_image(name)
        except RunnerError as error:
            if isinstance(error.__cause__, docker.errors.ImageNotFound):
                return None
            raise
        return Image(
            id=found["Id"],
            labels=dict(found["Config"].get("Labels") or {}),
            size=int(found.get("Size") or 0),
            tags=tuple(found.get("RepoTags") or ()),
        )

    def create(self, body: dict[str, Any], name: str) -> str:
        """Create, not start, a container from the API's own create body. Returns its id."""
        with _speaking("create the container"):
            return str(self._api.create_container_from_config(body, name)["Id"])

    def start(self, container: str) -> None:
        """Start a created container."""
        with _speaking("start the container"):
            self._api.start(container)

    def state(self, container: str) -> State:
        """How the container is now."""
        found = self.inspect(container)
        return State(
            running=bool(found["State"]["Running"]),
            pid=int(found["State"]["Pid"]),
            exit_code=int(found["State"]["ExitCode"]),
            oom=bool(found["State"]["OOMKilled"]),
            image=str(found["Image"]),
            runtime=str(found["HostConfig"]["Runtime"]),
        )

    def inspect(self, container: str) -> dict[str, Any]:
        """Everything that the engine says of the container."""
        with _speaking("inspect the container"):
            return dict(self._api.inspect_container(container))

    def wait(self, container: str, timeout_s: float) -> int:
        """Wait until the container has stopped; its exit code."""
        with _speaking("wait for the container's end"):
            return int(self._api.wait(container, timeout=timeout_s)["StatusCode"])

    def remove(self, container: str) -> None:
        """Kill and remove the container and its anonymous volumes. One that is gone is no error."""
        try:
            with _speaking("remove the container"):
                self._api.remove_container(container, force=True, v=True)
        except RunnerError as error:
            cause = error.__cause__
            gone = isinstance(cause, docker.errors.NotFound)
            going = isinstance(cause, docker.errors.APIError) and "already in progress" in str(cause.explanation)
            if not gone and not going:
                raise

    def owned(self, instance: str) -> dict[str, str]:
        """Every container of this instance, stopped ones too: id -> sandbox id."""
        with _speaking("list containers"):
            found = self._api.containers(all=True, filters={"label": f"{INSTANCE_LABEL}={instance}"})
        return {item["Id"]: item["Labels"].get(SANDBOX_LABEL, "") for item in found}

    def load(self, archive: str, name: str) -> None:
        """Make a local image, `repository:tag`, of a root filesystem in a tar file."""
        repository, _, version = name.rpartition(":")
        with _speaking(f"import {name}"):
            said = self._api.import_image_from_file(archive, repository=repository, tag=version)
        if "error" in said:
            raise refuse("host", f"the archive does not import as {name}: {said[:400]}")

    def save(self, image: str) -> Iterator[bytes]:
        """The image of this id as an archive that `docker load` takes, piece by piece."""
        with _speaking(f"save the image {image[:19]}"):
            yield from self._api.get_image(image, chunk_size=1 << 20)

    def build(
        self, context: Any, *, recipe: str, stage: str, tag: str, arguments: dict[str, str], labels: dict[str, str]
    ) -> Iterator[str]:
        """Build an image, up to a stage of its recipe, from a tar stream with the engine's own builder, without network
        or pull; yields its lines."""
        with _speaking(f"build {tag}"):
            steps = self._api.build(
                fileobj=context,
                custom_context=True,
                dockerfile=recipe,
                target=stage,
                tag=tag,
                buildargs=arguments,
                labels=labels,
                network_mode="none",
                pull=False,
                rm=True,
                forcerm=True,
                decode=True,
            )
            for step in steps:
                if "error" in step:
                    raise refuse("host", f"the image does not build: {str(step['error']).strip()}")
                if step.get("stream", "").strip():
                    yield str(step["stream"]).rstrip("\n")


def read_facts(info: dict[str, Any], version: dict[str, Any]) -> HostFacts:
    """The engine's `info` and `version` answers as facts. Missing fields count as missing abilities."""
    runc: dict[str, Any] = next((part for part in version.get("Components") or () if part.get("Name") == "runc"), {})
    return HostFacts(
        docker=str(version.get("Version", "")),
        runc=str(runc.get("Version", "")),
        api=str(version.get("ApiVersion", "0.0")),
        kernel=str(info.get("KernelVersion", "")),
        cgroup_version=int(info.get("CgroupVersion") or 1),
        runtimes=tuple(sorted(info.get("Runtimes") or ())),
        default_runtime=str(info.get("DefaultRuntime", "")),
        security=tuple(info.get("SecurityOptions") or ()),
        memory_limit=bool(info.get("MemoryLimit")),
        swap_limit=bool(info.get("SwapLimit")),
        pids_limit=bool(info.get("PidsLimit")),
        cpu_quota=bool(info.get("CpuCfsQuota")),
        root=str(info.get("DockerRootDir", "")),
        architecture=str(info.get("Architecture", "")),
    )


def _knock(where: str) -> None:
    """Fail at once when nothing listens on a local socket: the SDK would retry, and leave a socket unclosed."""
    if where.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect("/" + where.removeprefix("unix://").lstrip("/"))


@contextlib.contextmanager
def _speaking(what: str) -> Iterator[None]:
    """Turn every way the SDK can fail into one refusal; the cause stays attached for those who must tell apart."""
    try:
        yield
    except docker.errors.APIError as error:
        said = str(error.explanation or error)[:400]
        raise refuse("unavailable", f"the Docker engine would not {what}: {said}", detail=str(error)) from error
    except (docker.errors.DockerException, requests.RequestException, OSError) as error:
        raise refuse(
            "unavailable",
            f"the Docker engine did not answer when asked to {what}",
            next_step=_REMEDY,
            detail=str(error),
        ) from error
