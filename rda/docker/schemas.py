"""Which keys of which request documents fold, and to what: the fields of the daemon's Go structs.

Only these documents are rewritten; of each, all fields that decide about the host (binds, ports, privileges) are
here, so that whoever judges a canonical document finds them under one spelling.

Source: the Engine API reference, version 1.45, and moby's ``api/types/container`` and ``api/types/mount``.
"""

from __future__ import annotations

from rda.docker.document import DATA, Many, Named, Schema, Struct

__all__ = [
    "CONTAINER_CREATE",
    "EXEC_CREATE",
    "HOST_CONFIG",
    "LOGIN",
    "NETWORK_CONNECT",
    "NETWORK_CREATE",
    "SERVICE",
    "VOLUME_CREATE",
]


def _fields(names: str) -> dict[str, Schema]:
    """Name fields that are read as they are."""
    return dict.fromkeys(names.split(), DATA)


_DRIVER = Struct({"Name": DATA, "Options": Named(DATA)})

_MOUNT = Struct(
    {
        **_fields("Type Source Target ReadOnly Consistency"),
        "BindOptions": Struct(
            _fields("Propagation NonRecursive CreateMountpoint ReadOnlyNonRecursive ReadOnlyForceRecursive")
        ),
        "VolumeOptions": Struct({**_fields("NoCopy Subpath"), "Labels": Named(DATA), "DriverConfig": _DRIVER}),
        "TmpfsOptions": Struct(_fields("SizeBytes Mode Options")),
        "ClusterOptions": Struct({}),
    }
)

HOST_CONFIG = Struct(
    {
        **_fields(
            "Binds ContainerIDFile NetworkMode AutoRemove VolumeDriver VolumesFrom ConsoleSize CapAdd CapDrop "
            "CgroupnsMode Dns DnsOptions DnsSearch ExtraHosts GroupAdd IpcMode Cgroup Links OomScoreAdj PidMode "
            "Privileged PublishAllPorts ReadonlyRootfs SecurityOpt UTSMode UsernsMode ShmSize Runtime Isolation "
            "MaskedPaths ReadonlyPaths Init Capabilities CpuShares Memory NanoCpus CgroupParent BlkioWeight CpuPeriod "
            "CpuQuota CpuRealtimePeriod CpuRealtimeRuntime CpusetCpus CpusetMems DeviceCgroupRules KernelMemory "
            "KernelMemoryTCP MemoryReservation MemorySwap MemorySwappiness OomKillDisable PidsLimit CpuCount "
            "CpuPercent IOMaximumIOps IOMaximumBandwidth"
        ),
        "Annotations": Named(DATA),
        "StorageOpt": Named(DATA),
        "Sysctls": Named(DATA),
        "Tmpfs": Named(DATA),
        "PortBindings": Named(Many(Struct(_fields("HostIp HostPort")))),
        "Mounts": Many(_MOUNT),
        "LogConfig": Struct({"Type": DATA, "Config": Named(DATA)}),
        "RestartPolicy": Struct(_fields("Name MaximumRetryCount")),
        "Devices": Many(Struct(_fields("PathOnHost PathInContainer CgroupPermissions"))),
        "DeviceRequests": Many(
            Struct({**_fields("Driver Count DeviceIDs Capabilities"), "Options": Named(DATA)}),
        ),
        "Ulimits": Many(Struct(_fields("Name Soft Hard"))),
        "BlkioWeightDevice": Many(Struct(_fields("Path Weight"))),
        "BlkioDeviceReadBps": Many(Struct(_fields("Path Rate"))),
        "BlkioDeviceWriteBps": Many(Struct(_fields("Path Rate"))),
        "BlkioDeviceReadIOps": Many(Struct(_fields("Path Rate"))),
        "BlkioDeviceWriteIOps": Many(Struct(_fields("Path Rate"))),
    }
)

_ENDPOINT = Struct(
    {
        **_fields("Links Aliases NetworkID EndpointID MacAddress DNSNames"),
        "IPAMConfig": Struct(_fields("IPv4Address IPv6Address LinkLocalIPs")),
        "DriverOpts": Named(DATA),
    }
)

CONTAINER_CREATE = Struct(
    {
        **_fields(
            "Hostname Domainname User AttachStdin AttachStdout AttachStderr Tty OpenStdin StdinOnce Env Cmd "
            "ArgsEscaped Image WorkingDir Entrypoint NetworkDisabled MacAddress OnBuild StopSignal StopTimeout Shell"
        ),
        "Healthcheck": Struct(_fields("Test Interval Timeout StartPeriod StartInterval Retries")),
        "ExposedPorts": Named(DATA),
        "Volumes": Named(DATA),
        "Labels": Named(DATA),
        "HostConfig": HOST_CONFIG,
        "NetworkingConfig": Struct({"EndpointsConfig": Named(_ENDPOINT)}),
    }
)

VOLUME_CREATE = Struct(
    {"Name": DATA, "Driver": DATA, "DriverOpts": Named(DATA), "Labels": Named(DATA), "ClusterVolumeSpec": Struct({})}
)

EXEC_CREATE = Struct(
    _fields(
        "User Privileged Tty ConsoleSize AttachStdin AttachStderr AttachStdout Detach DetachKeys Env WorkingDir Cmd"
    )
)

NETWORK_CREATE = Struct(
    {
        **_fields(
            "Name CheckDuplicate Driver Scope EnableIPv4 EnableIPv6 Internal Attachable Ingress ConfigOnly ConfigFrom"
        ),
        "IPAM": Struct({"Driver": DATA, "Options": Named(DATA), "Config": DATA}),
        "Options": Named(DATA),
        "Labels": Named(DATA),
    }
)

#: networks/{id}/connect and /disconnect.
NETWORK_CONNECT = Struct({"Container": DATA, "Force": DATA, "EndpointConfig": _ENDPOINT})

#: What ``/auth`` takes.
LOGIN = Struct(_fields("username password email auth serveraddress identitytoken registrytoken"))

_TASK = Struct(
    {
        **_fields("Resources RestartPolicy Placement ForceUpdate Runtime"),
        "ContainerSpec": Struct(
            {
                **_fields(
                    "Image Command Args Hostname Env Dir User Groups Privileges StopSignal TTY OpenStdin ReadOnly "
                    "StopGracePeriod Healthcheck Hosts DNSConfig Secrets Configs Isolation Init CapabilityAdd "
                    "CapabilityDrop Ulimits OomScoreAdj"
                ),
                "Labels": Named(DATA),
                "Sysctls": Named(DATA),
                "Mounts": Many(_MOUNT),
            }
        ),
        "PluginSpec": Struct({}),
        "NetworkAttachmentSpec": Struct({}),
        "Networks": Many(Struct(_fields("Target Aliases DriverOpts"))),
        "LogDriver": Struct({"Name": DATA, "Options": Named(DATA)}),
    }
)

SERVICE = Struct(
    {
        **_fields("Name Mode UpdateConfig RollbackConfig"),
        "Labels": Named(DATA),
        "TaskTemplate": _TASK,
        "Networks": Many(Struct(_fields("Target Aliases DriverOpts"))),
        "EndpointSpec": Struct(
            {"Mode": DATA, "Ports": Many(Struct(_fields("Name Protocol TargetPort PublishedPort PublishMode")))}
        ),
    }
)
