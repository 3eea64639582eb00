"""What a request reaches for beyond its own container: claims, for :mod:`rda.access.policy` to judge. Pure.

A claim names one privilege, path, device, namespace, driver or image, and where in the request it stands. Reading goes
the safe way round: a field is harmless only if it is listed here as harmless; every other one that is set is a claim.
So a field that a later daemon invents is one that no policy allows, until somebody has looked at it.

Documents are canonical (:func:`rda.docker.document.canonical`): what is read here is what the daemon will obey. Bind
sources and published ports are no claims: :mod:`rda.docker.binds` and :mod:`rda.docker.ports` read them.

Sources: moby's ``api/types``, ``daemon/create.go``, ``volume/local``, ``volume/mounts`` and ``api/server/router``.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from rda.docker.document import Number, object_of, objects, text_list, text_of
from rda.docker.schemas import EXEC_CREATE, NETWORK_CREATE, SERVICE

__all__ = [
    "Claim",
    "Kind",
    "create_claims",
    "endpoint_claims",
    "exec_claims",
    "host_config_claims",
    "is_set",
    "network_claim",
    "network_claims",
    "service_claims",
    "volume_claims",
]


class Kind(Enum):
    """What is claimed; the value is the key of the policy that allows it."""

    PRIVILEGED = "privileged"
    CAPABILITY = "capabilities"  # without CAP_, in capitals
    DEVICE = "devices"  # a path of the host
    DEVICE_REQUEST = "device_requests"  # a driver, or the capabilities that it is asked for, as in gpu
    DEVICE_RULE = "device_rules"  # of the device cgroup, as in c 10:229 rwm
    HOST_NAMESPACE = "host_namespaces"  # pid, ipc, uts, network, user or cgroup
    CONTAINER = "other_containers"  # another container whose namespace, mounts or variables it gets: name or id
    NETWORK = "other_networks"  # a network by name or id
    VOLUME = "other_volumes"  # a named volume
    SECURITY_OPT = "security_opt"
    RUNTIME = "runtimes"
    SYSCTL = "sysctls"
    CGROUP_PARENT = "cgroup_parents"
    ANNOTATION = "annotations"
    LOG_DRIVER = "log_drivers"
    PROPAGATION = "propagation"  # of a bind mount: shared, rshared
    VOLUME_DRIVER = "volume_drivers"
    VOLUME_TYPE = "volume_types"  # a file system that the local driver mounts
    NETWORK_DRIVER = "network_drivers"
    NETWORK_OPTION = "network_options"
    IMAGE = "images"  # an image that is used, pulled or pushed
    REGISTRY = "registries"  # a registry that is logged in to or asked
    MADE_IMAGE = "make_images"  # an image that is made on the host: built, committed, loaded, imported, tagged
    BUILD_REMOTE = "build_remotes"  # a host that the daemon fetches a build context or an archive from
    BUILDKIT = "buildkit"  # BuildKit's own API, whose requests cannot be read here
    PLUGINS = "plugins"
    SWARM = "swarm"
    CHECKPOINTS = "checkpoints"
    FIELD = "fields"  # a field that this rda does not know


@dataclass(frozen=True)
class Claim:
    """One thing that a request reaches for.

    :ivar value: what exactly; never a secret.
    :ivar where: its place in the request, e.g. ``HostConfig.CapAdd``.
    """

    kind: Kind
    value: str
    where: str


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Fields of a create document that reach nothing outside the container, and those that are read elsewhere.
_HARMLESS_CREATE = _words(
    "Hostname Domainname User AttachStdin AttachStdout AttachStderr Tty OpenStdin StdinOnce Env Cmd ArgsEscaped "
    "WorkingDir Entrypoint NetworkDisabled MacAddress OnBuild StopSignal StopTimeout Shell Healthcheck ExposedPorts "
    "Volumes Labels"
)

#: The same of HostConfig. ContainerIDFile is read by clients only; BlkioDevice… slow a device down, and give no access.
_HARMLESS_HOST_CONFIG = _words(
    "ContainerIDFile AutoRemove ConsoleSize CapDrop Dns DnsOptions DnsSearch ExtraHosts GroupAdd PublishAllPorts "
    "PortBindings ReadonlyRootfs ShmSize Init CpuShares Memory NanoCpus BlkioWeight CpuPeriod CpuQuota "
    "CpuRealtimePeriod CpuRealtimeRuntime CpusetCpus CpusetMems KernelMemory KernelMemoryTCP MemoryReservation "
    "MemorySwap MemorySwappiness OomKillDisable PidsLimit CpuCount CpuPercent IOMaximumIOps IOMaximumBandwidth "
    "StorageOpt RestartPolicy Ulimits BlkioWeightDevice BlkioDeviceReadBps BlkioDeviceWriteBps BlkioDeviceReadIOps "
    "BlkioDeviceWriteIOps Isolation"
)

#: Modes of namespaces that are the container's own.
_OWN_NAMESPACE = {
    "PidMode": ("", "private"),
    "IpcMode": ("", "none", "private", "shareable"),
    "UTSMode": ("", "private"),
    "UsernsMode": ("", "private"),
    "CgroupnsMode": ("", "private"),
}

#: How host_namespaces names them.
_NAMESPACE_NAMES = {
    "PidMode": "pid",
    "IpcMode": "ipc",
    "UTSMode": "uts",
    "UsernsMode": "user",
    "CgroupnsMode": "cgroup",
}

#: Network modes that reach no network of anybody's: the daemon's own, and none.
_HARMLESS_NETWORKS = ("", "default", "bridge", "none")

#: Words among a mount's options that make of it something else than it seems.
_BINDING = frozenset(("bind", "rbind"))
_MOVING = frozenset(("move", "remount"))
_SHARING = frozenset(("shared", "rshared"))

_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")


def is_set(value: object) -> bool:
    """Return whether a field holds anything but its zero value."""
    if isinstance(value, Number):
        return float(value) != 0
    return value not in (None, False, 0, "", [], {})


def _is_normal(path: str) -> bool:
    """Return whether a path means the same to whoever reads it as text and to the kernel, which follows links first."""
    return path.startswith("/") and posixpath.normpath(path) == (path.rstrip("/") or "/")


def create_claims(document: Mapping[str, object]) -> Iterator[Claim]:
    """Find what a canonical create document claims.

    :raises BadRequest: something in it is not of the type that it has to be.
    """
    yield from _unknown(document, _HARMLESS_CREATE | {"Image", "HostConfig", "NetworkingConfig"}, "")
    if image := text_of(document.get("Image"), "Image"):
        yield Claim(Kind.IMAGE, image, "Image")
    yield from host_config_claims(object_of(document.get("HostConfig"), "HostConfig"), "HostConfig.")
    networking = object_of(document.get("NetworkingConfig"), "NetworkingConfig")
    yield from _unknown(networking, {"EndpointsConfig"}, "NetworkingConfig.")
    where = "NetworkingConfig.EndpointsConfig"
    for name, endpoint in object_of(networking.get("EndpointsConfig"), where).items():
        yield from network_claim(name, where)
        yield from endpoint_claims(object_of(endpoint, where), f"{where}.")


def endpoint_claims(endpoint: Mapping[str, object], where: str) -> Iterator[Claim]:
    """Find what one canonical EndpointSettings claims. Its NetworkID, where given, counts before its name."""
    yield from network_claim(text_of(endpoint.get("NetworkID"), f"{where}NetworkID"), f"{where}NetworkID")
    for link in text_list(endpoint.get("Links"), f"{where}Links"):
        yield Claim(Kind.CONTAINER, link.partition(":")[0], f"{where}Links")
    for name in object_of(endpoint.get("DriverOpts"), f"{where}DriverOpts"):
        yield Claim(Kind.NETWORK_OPTION, name, f"{where}DriverOpts")


def host_config_claims(host_config: Mapping[str, object], where: str) -> Iterator[Claim]:
    """Find what a canonical HostConfig claims; an update document has its fields too.

    :param where: put before the names of fields.
    """
    yield from _unknown(host_config, _HARMLESS_HOST_CONFIG | _READ.keys(), where)
    for name, read in _READ.items():
        if is_set(host_config.get(name)) or (name in _MEANT_WHEN_EMPTY and host_config.get(name) is not None):
            yield from read(host_config[name], where + name)


#: Fields whose empty list is not the same as none: it unmasks everything.
_MEANT_WHEN_EMPTY = ("MaskedPaths", "ReadonlyPaths")


def _texts(kind: Kind, change: Callable[[str], str] = str) -> Callable[[object, str], Iterator[Claim]]:
    """Make the reader of a list of texts, each of which is a claim."""
    return lambda value, where: (Claim(kind, change(text), where) for text in text_list(value, where))


def _text(kind: Kind) -> Callable[[object, str], Iterator[Claim]]:
    """Make the reader of a text that is a claim."""
    return lambda value, where: iter((Claim(kind, text_of(value, where), where),))


def _names(kind: Kind) -> Callable[[object, str], Iterator[Claim]]:
    """Make the reader of a map, each of whose keys is a claim."""
    return lambda value, where: (Claim(kind, name, where) for name in object_of(value, where))


def _constant(kind: Kind, text: str) -> Callable[[object, str], Iterator[Claim]]:
    """Make the reader of a field that is a claim by being set."""
    return lambda value, where: iter((Claim(kind, text, where),))


def _capability(name: str) -> str:
    return name.upper().removeprefix("CAP_")


def _container(reference: str) -> str:
    """Take the mode or alias off a reference: ``web:ro`` is web."""
    return reference.partition(":")[0]


def _namespace(value: object, where: str) -> Iterator[Claim]:
    mode, name = text_of(value, where), where.rpartition(".")[2]
    if mode.startswith("container:"):
        yield Claim(Kind.CONTAINER, mode.partition(":")[2], where)
    elif mode == "host":
        yield Claim(Kind.HOST_NAMESPACE, _NAMESPACE_NAMES[name], where)
    elif mode not in _OWN_NAMESPACE[name]:
        yield Claim(Kind.FIELD, f"{name} {mode}", where)


def _network_mode(value: object, where: str) -> Iterator[Claim]:
    mode = text_of(value, where)
    if mode.startswith("container:"):
        yield Claim(Kind.CONTAINER, mode.partition(":")[2], where)
    else:
        yield from network_claim(mode, where)


def network_claim(name: str, where: str) -> Iterator[Claim]:
    """Claim a network by name or id; whoever resolves it sees whether it is the host's after all."""
    if name == "host":
        yield Claim(Kind.HOST_NAMESPACE, "network", where)
    elif name not in _HARMLESS_NETWORKS:
        yield Claim(Kind.NETWORK, name, where)


def _cgroup(value: object, where: str) -> Iterator[Claim]:
    yield Claim(Kind.CONTAINER, text_of(value, where).removeprefix("container:"), where)


def _devices(value: object, where: str) -> Iterator[Claim]:
    for device in objects(value, where):
        path = text_of(device.get("PathOnHost"), where)
        yield Claim(Kind.DEVICE, path, where) if _is_normal(path) else Claim(Kind.FIELD, f"device {path!r}", where)


def _device_requests(value: object, where: str) -> Iterator[Claim]:
    for request in objects(value, where):
        driver = text_of(request.get("Driver"), f"{where}.Driver")
        sets = request.get("Capabilities") or []
        if not isinstance(sets, list):
            sets = [[str(sets)]]
        names = sorted({name for one in sets for name in text_list(one, f"{where}.Capabilities")})
        yield Claim(Kind.DEVICE_REQUEST, driver or ",".join(names) or "any", where)


def _oom(value: object, where: str) -> Iterator[Claim]:
    """A negative score has the kernel kill somebody else's process first."""
    if not isinstance(value, int) or value < 0:
        yield Claim(Kind.SECURITY_OPT, "oom-score-adj", where)


def _tmpfs(value: object, where: str) -> Iterator[Claim]:
    for target, options in object_of(value, where).items():
        if set(text_of(options, where).split(",")) & (_BINDING | _MOVING | _SHARING):
            yield Claim(Kind.VOLUME_TYPE, "bind in tmpfs", f"{where}[{target}]")


def _log(value: object, where: str) -> Iterator[Claim]:
    if driver := text_of(object_of(value, where).get("Type"), f"{where}.Type"):
        yield Claim(Kind.LOG_DRIVER, driver, where)


def _binds(value: object, where: str) -> Iterator[Claim]:
    """The volumes and the propagation in Binds."""
    for spec in text_list(value, where):
        source, _, rest = spec.partition(":")
        if not spec.startswith("/") and ":" in spec and _VOLUME_NAME.fullmatch(source) and rest[:1] == "/":
            yield Claim(Kind.VOLUME, source, where)
        elif not spec.startswith(("/", "\\")) and not re.match(r"[A-Za-z]:[\\/]", spec):
            yield Claim(Kind.FIELD, f"volume specification {spec.partition(':')[0]!r}", where)
        for word in set(rest.rpartition(":")[2].split(",")) & _SHARING:
            yield Claim(Kind.PROPAGATION, word, where)


def _mounts(value: object, where: str) -> Iterator[Claim]:
    for index, mount in enumerate(objects(value, where)):
        place = f"{where}[{index}]"
        kind, source = text_of(mount.get("Type"), f"{place}.Type"), text_of(mount.get("Source"), f"{place}.Source")
        yield from _unknown(mount, {"Type", "Source", "Target", "ReadOnly", "Consistency", "BindOptions",
                                    "VolumeOptions", "TmpfsOptions"}, f"{place}.")  # fmt: skip
        if kind == "bind":
            options = object_of(mount.get("BindOptions"), f"{place}.BindOptions")
            if (propagation := text_of(options.get("Propagation"), place)) in _SHARING:
                yield Claim(Kind.PROPAGATION, propagation, place)
            if not source.startswith(("/", "\\")) and not re.match(r"[A-Za-z]:[\\/]", source):
                yield Claim(Kind.FIELD, "bind source that is no absolute path", place)
        elif kind == "volume":
            if source and _VOLUME_NAME.fullmatch(source):
                yield Claim(Kind.VOLUME, source, place)
            elif source:
                yield Claim(Kind.FIELD, f"volume name {source!r}", place)
            driver = object_of(object_of(mount.get("VolumeOptions"), place).get("DriverConfig"), place)
            yield from _driver(driver.get("Name"), driver.get("Options"), place)
        elif kind != "tmpfs":
            yield Claim(Kind.FIELD, f"mount type {kind!r}", place)


def _driver(name: object, options: object, where: str) -> Iterator[Claim]:
    """What a volume's driver is asked to do; a bind of an absolute path is read by :mod:`rda.docker.binds`."""
    driver = text_of(name, f"{where} driver")
    if driver not in ("", "local"):
        yield Claim(Kind.VOLUME_DRIVER, driver, where)
        return
    values = object_of(options, f"{where} options")
    if not values.keys() - {"size"}:
        return
    words = set(text_of(values.get("o"), f"{where} option o").split(","))
    device = text_of(values.get("device"), f"{where} option device")
    file_system = text_of(values.get("type"), f"{where} option type")
    for word in words & _SHARING:
        yield Claim(Kind.PROPAGATION, word, where)
    if words & _MOVING:
        yield Claim(Kind.VOLUME_TYPE, "remount", where)
    elif words & _BINDING:
        if not (_is_normal(device) or device.startswith("\\") or re.match(r"[A-Za-z]:[\\/]", device)):
            yield Claim(Kind.VOLUME_TYPE, "bind of a path that is relative or not in normal form", where)
    else:
        yield Claim(Kind.VOLUME_TYPE, file_system or "none", where)


def volume_claims(document: Mapping[str, object]) -> Iterator[Claim]:
    """Find what a canonical volumes/create document claims."""
    yield from _unknown(document, {"Name", "Driver", "DriverOpts", "Labels"}, "")
    yield from _driver(document.get("Driver"), document.get("DriverOpts"), "DriverOpts")


#: HostConfig's fields that reach out, and how each is read. Mounts' and Binds' paths: see :mod:`rda.docker.binds`.
_READ: dict[str, Callable[[object, str], Iterator[Claim]]] = {
    "Privileged": _constant(Kind.PRIVILEGED, "privileged"),
    "CapAdd": _texts(Kind.CAPABILITY, _capability),
    "Capabilities": _texts(Kind.CAPABILITY, _capability),
    "Devices": _devices,
    "DeviceRequests": _device_requests,
    "DeviceCgroupRules": _texts(Kind.DEVICE_RULE),
    "NetworkMode": _network_mode,
    "PidMode": _namespace,
    "IpcMode": _namespace,
    "UTSMode": _namespace,
    "UsernsMode": _namespace,
    "CgroupnsMode": _namespace,
    "Cgroup": _cgroup,
    "CgroupParent": _text(Kind.CGROUP_PARENT),
    "SecurityOpt": _texts(Kind.SECURITY_OPT),
    "MaskedPaths": _constant(Kind.SECURITY_OPT, "systempaths=unconfined"),
    "ReadonlyPaths": _constant(Kind.SECURITY_OPT, "systempaths=unconfined"),
    "OomScoreAdj": _oom,
    "Runtime": _text(Kind.RUNTIME),
    "Sysctls": _names(Kind.SYSCTL),
    "Annotations": _names(Kind.ANNOTATION),
    "LogConfig": _log,
    "VolumeDriver": lambda value, where: _driver(value, None, where),
    "VolumesFrom": _texts(Kind.CONTAINER, _container),
    "Links": _texts(Kind.CONTAINER, _container),
    "Binds": _binds,
    "Mounts": _mounts,
    "Tmpfs": _tmpfs,
}


def exec_claims(document: Mapping[str, object]) -> Iterator[Claim]:
    """Find what a canonical exec document claims."""
    yield from _unknown(document, frozenset(EXEC_CREATE.fields), "")
    if is_set(document.get("Privileged")):
        yield Claim(Kind.PRIVILEGED, "privileged", "Privileged")


def network_claims(document: Mapping[str, object]) -> Iterator[Claim]:
    """Find what a canonical networks/create document claims."""
    yield from _unknown(document, frozenset(NETWORK_CREATE.fields), "")
    driver = text_of(document.get("Driver"), "Driver")
    if driver not in ("", "default"):
        yield Claim(Kind.NETWORK_DRIVER, driver, "Driver")
    for name in object_of(document.get("Options"), "Options"):
        yield Claim(Kind.NETWORK_OPTION, name, "Options")
    ipam = object_of(document.get("IPAM"), "IPAM")
    if (driver := text_of(ipam.get("Driver"), "IPAM.Driver")) not in ("", "default"):
        yield Claim(Kind.NETWORK_DRIVER, driver, "IPAM.Driver")
    if is_set(ipam.get("Options")):
        yield Claim(Kind.NETWORK_OPTION, "IPAM", "IPAM.Options")
    if is_set(document.get("ConfigOnly")) or is_set(document.get("ConfigFrom")):
        yield Claim(Kind.NETWORK_DRIVER, "config-only", "ConfigFrom")
    if is_set(document.get("Ingress")) or text_of(document.get("Scope"), "Scope") not in ("", "local"):
        yield Claim(Kind.SWARM, "swarm", "Scope")


#: What of a swarm service reaches nothing outside its tasks.
_HARMLESS_SERVICE = _words(
    "Command Args Hostname Env Dir User Groups StopSignal TTY OpenStdin ReadOnly StopGracePeriod Healthcheck Hosts "
    "DNSConfig Labels Init Isolation Ulimits CapabilityDrop Secrets Configs"
)


def service_claims(document: Mapping[str, object]) -> Iterator[Claim]:
    """Find what a canonical service document claims beside being a service."""
    yield from _unknown(document, frozenset(SERVICE.fields), "")
    task = object_of(document.get("TaskTemplate"), "TaskTemplate")
    known = {"ContainerSpec", "PluginSpec", "NetworkAttachmentSpec", "Resources", "RestartPolicy", "Placement",
             "ForceUpdate", "Networks", "LogDriver", "Runtime"}  # fmt: skip
    yield from _unknown(task, known, "TaskTemplate.")
    if is_set(task.get("PluginSpec")) or text_of(task.get("Runtime"), "Runtime") not in ("", "container"):
        yield Claim(Kind.PLUGINS, "plugins", "TaskTemplate.PluginSpec")
    if is_set(task.get("NetworkAttachmentSpec")):
        yield Claim(Kind.FIELD, "NetworkAttachmentSpec", "TaskTemplate")
    for network in [*objects(task.get("Networks"), "Networks"), *objects(document.get("Networks"), "Networks")]:
        yield from network_claim(text_of(network.get("Target"), "Target"), "TaskTemplate.Networks")
    if driver := text_of(object_of(task.get("LogDriver"), "LogDriver").get("Name"), "LogDriver.Name"):
        yield Claim(Kind.LOG_DRIVER, driver, "TaskTemplate.LogDriver")
    for port in objects(object_of(document.get("EndpointSpec"), "EndpointSpec").get("Ports"), "EndpointSpec.Ports"):
        if is_set(port.get("PublishedPort")) or port.get("TargetPort"):
            yield Claim(Kind.HOST_NAMESPACE, "network", "EndpointSpec.Ports")
    spec = object_of(task.get("ContainerSpec"), "TaskTemplate.ContainerSpec")
    yield from _container_spec(spec, "TaskTemplate.ContainerSpec.")


def _container_spec(spec: Mapping[str, object], where: str) -> Iterator[Claim]:
    read = {"Image", "Mounts", "CapabilityAdd", "Privileges", "Sysctls", "OomScoreAdj"}
    yield from _unknown(spec, _HARMLESS_SERVICE | read, where)
    if image := text_of(spec.get("Image"), f"{where}Image"):
        yield Claim(Kind.IMAGE, image, f"{where}Image")
    if is_set(spec.get("Privileges")):
        yield Claim(Kind.SECURITY_OPT, "privileges", f"{where}Privileges")
    yield from _READ["CapAdd"](spec.get("CapabilityAdd"), f"{where}CapabilityAdd")
    yield from _READ["Sysctls"](spec.get("Sysctls"), f"{where}Sysctls")
    yield from _READ["Mounts"](spec.get("Mounts"), f"{where}Mounts")
    if is_set(spec.get("OomScoreAdj")):
        yield from _oom(spec["OomScoreAdj"], f"{where}OomScoreAdj")


def _unknown(holder: Mapping[str, object], known: Iterable[str], where: str) -> Iterator[Claim]:
    """Claim every field that is set and not known."""
    for name in holder.keys() - set(known):
        if is_set(holder[name]):
            yield Claim(Kind.FIELD, name, where + name)
