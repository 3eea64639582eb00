"""What policies allow and refuse, rule by rule."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from rda.access.policy import FLAGS, LIMITS, LISTS, PRESETS, Facts, Policy, judge, refused
from rda.access.policy_config import Access, read_access
from rda.config_table import TableReader
from rda.docker import routes
from rda.docker.claims import Claim, Kind
from rda.docker.endpoints import ENDPOINTS, JUDGED, canonical_body, claims_of
from rda.docker.ports import Published
from rda.docker.rewrite import canonical_create
from rda.errors import BadRequest, ConfigError

DEVELOPER = PRESETS["developer"]


def access(**table: Any) -> Access:
    problems: list[str] = []
    found = read_access(TableReader("", table, problems), "default")
    if problems:
        raise ConfigError(problems)
    return found


def policy(**table: Any) -> Policy:
    found = access(policy=table).policy
    assert found is not None
    return found


def rules_for(
    method: str, target: str, body: dict[str, Any] | None = None, policy: Policy = DEVELOPER, **facts: Any
) -> list[str]:
    """The rules that refuse a call."""
    call = routes.match(method.encode(), target.encode(), table=JUDGED)
    document = canonical_body(call, body or {})
    known = call.route.name != "unknown"
    given = Facts(method=method, path=call.path, known=known, **facts)
    return [refusal.rule for refusal in judge(given, claims_of(call, document), policy)]


class CreateTests(SynchronousTestCase):
    def refuses(self, rule: str, policy: Policy = DEVELOPER, **host_config: Any) -> None:
        body = {"Image": "alpine", "HostConfig": host_config}
        self.assertEqual(set(rules_for("POST", "/containers/create", body, policy)), {rule}, host_config)

    def allows(self, policy: Policy = DEVELOPER, **host_config: Any) -> None:
        body = {"Image": "alpine", "HostConfig": host_config}
        self.assertEqual(rules_for("POST", "/containers/create", body, policy), [], host_config)

    def test_ordinary(self) -> None:
        """What docker run sends of its own accord is allowed."""
        self.allows(
            Binds=None, ContainerIDFile="", LogConfig={"Type": "", "Config": {}}, NetworkMode="default",
            PortBindings={}, RestartPolicy={"Name": "no", "MaximumRetryCount": 0}, AutoRemove=False, VolumeDriver="",
            VolumesFrom=None, ConsoleSize=[24, 80], CapAdd=None, CapDrop=None, CgroupnsMode="", Dns=[], PidMode="",
            IpcMode="", Cgroup="", Links=None, OomScoreAdj=0, Privileged=False, SecurityOpt=None, UTSMode="",
            UsernsMode="", ShmSize=0, Isolation="", CpuShares=0, Memory=0, CgroupParent="", BlkioWeightDevice=[],
            Devices=[], DeviceCgroupRules=None, DeviceRequests=None, MaskedPaths=None, ReadonlyPaths=None,
        )  # fmt: skip

    def test_each_privilege(self) -> None:
        """Every way to the host in HostConfig is refused, by the rule of its name."""
        for rule, host_config in PRIVILEGES:
            self.refuses(rule, **host_config)

    def test_device_requests_by_capability(self) -> None:
        """A request that names no driver is for what it asks a driver to be able to do, in whatever order."""
        mine = policy(device_requests=["compute,gpu"])
        self.allows(mine, DeviceRequests=[{"Capabilities": [["gpu", "compute"]]}])
        self.refuses("device_requests", mine, DeviceRequests=[{"Capabilities": [["gpu", "video"]]}])
        self.refuses("device_requests", mine, DeviceRequests=[{"Count": 1}])

    def test_each_can_be_allowed(self) -> None:
        """What the open preset allows, it allows."""
        for _, host_config in PRIVILEGES:
            self.allows(PRESETS["open"], **host_config)

    def test_harmless(self) -> None:
        """What a container may have of its own is no privilege."""
        for host_config in HARMLESS:
            self.allows(**host_config)

    def test_lists(self) -> None:
        """A list in the configuration replaces the preset's."""
        mine = policy(capabilities=["NET_ADMIN"], devices=["/dev/fuse"], host_namespaces=["ipc"], runtimes=["kata*"])
        self.allows(mine, CapAdd=["CAP_NET_ADMIN"])
        self.allows(mine, CapAdd=["net_admin"])
        self.allows(mine, Devices=[{"PathOnHost": "/dev/fuse"}], IpcMode="host", Runtime="kata-qemu")
        self.refuses("capabilities", mine, CapAdd=["CHOWN"])
        self.refuses("devices", mine, Devices=[{"PathOnHost": "/dev/fuse2"}])
        self.refuses("fields", mine, Devices=[{"PathOnHost": "/dev/fuse/../sda"}])
        self.refuses("host_namespaces", mine, PidMode="host")

    def test_denial_wins(self) -> None:
        """What is denied stays denied, whatever allows it."""
        mine = policy(preset="open", deny_capabilities=["SYS_ADMIN", "ALL"])
        self.allows(mine, CapAdd=["SYS_PTRACE"])
        self.refuses("deny_capabilities", mine, CapAdd=["sys_admin"])
        self.refuses("deny_capabilities", mine, CapAdd=["ALL"])

    def test_foreign_containers(self) -> None:
        """Only containers that were not made here are other ones."""
        body = {"Image": "alpine", "HostConfig": {"VolumesFrom": ["db:ro"], "PidMode": "container:web"}}
        self.assertEqual(rules_for("POST", "/containers/create", body), [])
        rules = rules_for("POST", "/containers/create", body, foreign=frozenset(("db", "web")))
        self.assertEqual(rules, ["other_containers"] * 2)

    def test_wrong_types(self) -> None:
        """A list that is a text is refused: the daemon would read it as a list of one."""
        for name in ("CapAdd", "SecurityOpt", "VolumesFrom", "Binds", "DeviceCgroupRules"):
            with self.assertRaises(BadRequest):
                rules_for("POST", "/containers/create", {"HostConfig": {name: "SYS_ADMIN"}})

    def test_unknown_fields(self) -> None:
        """A field that nobody here knows is refused when it says something."""
        self.assertEqual(rules_for("POST", "/containers/create", {"Escape": True}), ["fields"])
        self.assertEqual(rules_for("POST", "/containers/create", {"Escape": False}), [])
        self.assertEqual(rules_for("POST", "/containers/create", {"Escape": 1}, policy(fields=["Escape"])), [])

    def test_networks(self) -> None:
        """The host's network is the host's under any endpoint; DriverOpts are options."""
        endpoints = {"NetworkingConfig": {"EndpointsConfig": {"host": {}}}}
        self.assertEqual(rules_for("POST", "/containers/create", endpoints), ["host_namespaces"])
        sysctls = {"DriverOpts": {"com.docker.network.endpoint.sysctls": "net.ipv4.conf.IFNAME.forwarding=1"}}
        options = {"NetworkingConfig": {"EndpointsConfig": {"mine": sysctls}}}
        self.assertEqual(rules_for("POST", "/containers/create", options), ["network_options"])

    def test_network_id_counts(self) -> None:
        """The daemon prefers an endpoint's NetworkID to its name, and so it is a claim of its own."""
        endpoints = {"NetworkingConfig": {"EndpointsConfig": {"mine": {"networkid": "theirs"}}}}
        call = routes.match(b"POST", b"/containers/create", table=JUDGED)
        found = list(claims_of(call, canonical_body(call, endpoints)))
        self.assertIn(Claim(Kind.NETWORK, "theirs", "NetworkingConfig.EndpointsConfig.NetworkID"), found)


#: What reaches the host, and the rule that it meets.
PRIVILEGES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("privileged", {"Privileged": True}),
    ("privileged", {"Privileged": 1}),
    ("capabilities", {"CapAdd": ["SYS_ADMIN"]}),
    ("capabilities", {"CapAdd": ["ALL"]}),
    ("capabilities", {"CapAdd": ["cap_net_admin"]}),
    ("capabilities", {"Capabilities": ["SYS_MODULE"]}),
    ("devices", {"Devices": [{"PathOnHost": "/dev/sda", "PathInContainer": "/dev/x", "CgroupPermissions": "rwm"}]}),
    ("device_requests", {"DeviceRequests": [{"Driver": "", "Count": -1, "Capabilities": [["gpu"]]}]}),
    ("device_requests", {"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["vendor.com/class=all"]}]}),
    ("device_rules", {"DeviceCgroupRules": ["b *:* rwm"]}),
    ("host_namespaces", {"PidMode": "host"}),
    ("host_namespaces", {"IpcMode": "host"}),
    ("host_namespaces", {"UTSMode": "host"}),
    ("host_namespaces", {"UsernsMode": "host"}),
    ("host_namespaces", {"CgroupnsMode": "host"}),
    ("host_namespaces", {"NetworkMode": "host"}),
    ("security_opt", {"SecurityOpt": ["seccomp=unconfined"]}),
    ("security_opt", {"SecurityOpt": ["apparmor:unconfined"]}),
    ("security_opt", {"SecurityOpt": ["label=disable"]}),
    ("security_opt", {"SecurityOpt": ["no-new-privileges=false"]}),
    ("security_opt", {"SecurityOpt": ["systempaths=unconfined"]}),
    ("security_opt", {"MaskedPaths": []}),
    ("security_opt", {"ReadonlyPaths": []}),
    ("security_opt", {"OomScoreAdj": -1000}),
    ("runtimes", {"Runtime": "other"}),
    ("sysctls", {"Sysctls": {"kernel.core_pattern": "|/x"}}),
    ("cgroup_parents", {"CgroupParent": "/"}),
    ("annotations", {"Annotations": {"io.katacontainers.config": "x"}}),
    ("log_drivers", {"LogConfig": {"Type": "syslog", "Config": {"syslog-address": "unix:///run/x"}}}),
    ("propagation", {"Binds": ["/a:/b:ro,rshared"]}),
    ("propagation", {"Binds": ["/a:/b:shared"]}),
    ("propagation", {"Mounts": [{"Type": "bind", "Source": "/a", "BindOptions": {"Propagation": "rshared"}}]}),
    ("volume_drivers", {"VolumeDriver": "rexray"}),
    ("volume_drivers", {"Mounts": [{"Type": "volume", "VolumeOptions": {"DriverConfig": {"Name": "rexray"}}}]}),
    ("volume_types", {"Mounts": [{"Type": "volume", "VolumeOptions": {"DriverConfig": {"Options": {
        "type": "ext4", "device": "/dev/sda1"}}}}]}),
    ("volume_types", {"Mounts": [{"Type": "volume", "VolumeOptions": {"DriverConfig": {"Name": "local", "Options": {
        "type": "overlay", "device": "overlay", "o": "lowerdir=/etc,upperdir=/a,workdir=/b"}}}}]}),
    ("volume_types", {"Mounts": [{"Type": "volume", "VolumeOptions": {"DriverConfig": {"Options": {
        "type": "none", "device": "etc", "o": "bind"}}}}]}),
    ("volume_types", {"Mounts": [{"Type": "volume", "VolumeOptions": {"DriverConfig": {"Options": {
        "type": "none", "device": "/srv/link/../etc", "o": "rbind"}}}}]}),
    ("volume_types", {"Mounts": [{"Type": "volume", "VolumeOptions": {"DriverConfig": {"Options": {
        "type": "tmpfs", "device": "tmpfs", "o": "remount,size=1g"}}}}]}),
    ("volume_types", {"Tmpfs": {"/x": "rbind"}}),
    ("fields", {"Mounts": [{"Type": "npipe", "Source": "x", "Target": "/x"}]}),
    ("fields", {"Mounts": [{"Type": "cluster", "Source": "x", "Target": "/x"}]}),
    ("fields", {"Mounts": [{"Type": "bind", "Source": "etc", "Target": "/x"}]}),
    ("fields", {"Binds": ["../etc:/x"]}),
    ("fields", {"PidMode": "hosT"}),
    ("fields", {"HostAccess": "all"}),
)  # fmt: skip

HARMLESS: tuple[dict[str, Any], ...] = (
    {"CapAdd": ["NET_BIND_SERVICE", "chown"]},
    {"CapDrop": ["ALL"]},
    {"SecurityOpt": ["no-new-privileges", "no-new-privileges:true"]},
    {"Sysctls": {"net.core.somaxconn": "1024"}},
    {"NetworkMode": "none"},
    {"NetworkMode": "mine", "IpcMode": "private", "CgroupnsMode": "private"},
    {"PidMode": "container:web"},
    {"Binds": ["data:/data", "/anonymous", "data:/x:ro,nocopy", "/a:/b:ro,z,rslave"]},
    {"Mounts": [{"Type": "volume", "Source": "v", "Target": "/x"}, {"Type": "tmpfs", "Target": "/y"}]},
    {"Mounts": [{"Type": "volume", "VolumeOptions": {"DriverConfig": {"Options": {"type": "tmpfs", "device": "tmpfs",
                                                                                  "o": "size=1m,uid=1"}}}}]},
    {"Tmpfs": {"/x": "rw,size=1m"}},
    {"OomScoreAdj": 500},
    {"LogConfig": {"Type": "json-file", "Config": {"max-size": "1m"}}},
    {"Runtime": "runc"},
)  # fmt: skip


class PathTests(SynchronousTestCase):
    def rules(self, policy: Policy, local: tuple[str, ...] = (), remote: tuple[str, ...] = ()) -> list[str]:
        facts = Facts(local=tuple((p, p) for p in local), remote=tuple((p, p) for p in remote))
        return [one.rule for one in judge(facts, (), policy)]

    def test_binds(self) -> None:
        """A bind source is judged by where it leads."""
        mine = policy(binds=["/home/me/src"])
        self.assertEqual(self.rules(mine, ("/home/me/src", "/home/me/src/app")), [])
        self.assertEqual(self.rules(mine, ("/home/me", "/home/me/src2")), ["binds"] * 2)
        link = Facts(local=(("/home/me/src/link", "/etc"),))
        (refusal,) = judge(link, (), mine)
        self.assertEqual(str(refusal), "/home/me/src/link (which is /etc) (rule binds)")

    def test_denied_below(self) -> None:
        """What lies above something denied shows it, and is denied too."""
        mine = policy(deny_binds=["/home/me/.ssh", "/home/*/.gnupg"])
        self.assertEqual(self.rules(mine, ("/home/me/.ssh/id", "/home/me/.ssh")), ["deny_binds"] * 2)
        self.assertEqual(self.rules(mine, ("/home/me", "/", "/home")), ["deny_binds"] * 3)
        self.assertEqual(self.rules(mine, ("/srv", "/home/me/src")), [])
        mine = policy(deny_binds=["/home/*/.gnupg", "/srv/**/private"])
        self.assertEqual(self.rules(mine, ("/home/me", "/home/me/.gnupg/x", "/srv/a", "/srv/a/private/b")),
                         ["deny_binds"] * 4)  # fmt: skip
        self.assertEqual(self.rules(mine, ("/home/me/src", "/data")), [])

    def test_users_own(self) -> None:
        """{user} is the caller's name, and only a name that is one segment."""
        mine = policy(binds=["/home/{user}"])
        self.assertEqual(self.rules(mine.of("ann"), ("/home/ann/src",)), [])
        self.assertEqual(self.rules(mine.of("ann"), ("/home/bob",)), ["binds"])
        for name in ("", "..", "*", "ann/..", "a**", "/"):
            self.assertEqual(self.rules(mine.of(name), ("/home/ann",)), ["binds"], name)

    def test_remote_paths(self) -> None:
        """Paths of the remote host are refused but for those listed; the socket has a rule of its own."""
        self.assertEqual(self.rules(DEVELOPER, remote=("/etc/localtime",)), [])
        self.assertEqual(self.rules(DEVELOPER, remote=("/etc/localtime/x", "/srv", "/proc")), ["remote_paths"] * 3)
        closed = policy(preset="open", docker_socket=False)
        sockets = ("/var/run/docker.sock", "/run/docker.sock", "/run", "/", "/var", "/run/containerd", "/run/user/1000",
                   "/run/user/1000/docker.sock", "/var/run/containerd/x/containerd.sock", "/run/systemd/private")  # fmt: skip # noqa: E501
        self.assertEqual(self.rules(closed, remote=sockets), ["docker_socket"] * len(sockets))
        self.assertEqual(self.rules(closed, remote=("/run/mine.sock", "/srv", "/runner")), [])
        mine = policy(docker_socket=True)
        self.assertEqual(self.rules(mine, remote=("/var/run/docker.sock",)), [])
        self.assertEqual(self.rules(mine, remote=("/run",)), ["remote_paths"])

    def test_ports(self) -> None:
        """Local ports and addresses are judged, those that rda chooses are not."""
        mine = policy(ports=["8000-8999"], addresses=["127.0.0.1"], deny_ports=["8080"])

        def rules(*ports: Published) -> list[str]:
            return [one.rule for one in judge(Facts(ports=ports), (), mine)]

        self.assertEqual(rules(Published(80, "tcp", "", 8000, 8000), Published(80, "tcp")), [])
        self.assertEqual(rules(Published(80, "tcp", "", 80, 80)), ["ports"])
        self.assertEqual(rules(Published(80, "tcp", "", 8900, 9000)), ["ports"])
        self.assertEqual(rules(Published(80, "tcp", "", 8000, 8100)), ["deny_ports"])
        self.assertEqual(rules(Published(80, "tcp", "0.0.0.0", 8000, 8000)), ["addresses"])
        self.assertEqual(rules(Published(80, "tcp", "127.0.0.1", 0, 0)), [])

    def test_quotas(self) -> None:
        """A limit counts what there is and what is wanted."""
        mine = policy(max_containers=2)
        for used, rules in ((1, []), (2, ["max_containers"])):
            facts = Facts(used={"max_containers": used}, wanted={"max_containers": 1})
            self.assertEqual([one.rule for one in judge(facts, (), mine)], rules)
        over = Facts(used={"max_containers": 5})
        self.assertEqual(judge(over, (), mine), ())


class EndpointTests(SynchronousTestCase):
    def test_presets(self) -> None:
        """Each preset lets through what it says."""
        start, ping, listing = ("POST", "/containers/x/start"), ("GET", "/_ping"), ("GET", "/containers/json")
        for name, allowed in (
            ("open", (start, ping, listing)),
            ("developer", (start, ping, listing)),
            ("read-only", (ping, listing)),
            ("nothing", (ping,)),
        ):
            for method, path in (start, ping, listing):
                rules = rules_for(method, path, policy=PRESETS[name])
                self.assertEqual(rules, [] if (method, path) in allowed else ["endpoints"], name)
        rules = rules_for("GET", "/containers/x/attach/ws", policy=PRESETS["read-only"])
        self.assertEqual(rules, ["deny_endpoints"])

    def test_any_spelling(self) -> None:
        """An endpoint is judged in its normal form."""
        mine = policy(deny_endpoints=["POST /containers/*/start"])
        for target in ("/containers/x/start", "/v1.45/containers/x/start", "//containers/./x/%73tart", "/a/../containers/x/start"):  # fmt: skip # noqa: E501
            self.assertEqual(rules_for("POST", target, policy=mine), ["deny_endpoints"], target)

    def test_unknown(self) -> None:
        """A change through an endpoint that nobody here knows is refused, unless it is named."""
        self.assertEqual(rules_for("POST", "/new/thing"), ["unknown_endpoints"])
        self.assertEqual(rules_for("PATCH", "/containers/x"), ["unknown_endpoints"])
        self.assertEqual(rules_for("GET", "/new/thing"), [])
        self.assertEqual(rules_for("POST", "/new/thing", policy=policy(unknown_endpoints=["POST /new/**"])), [])

    def test_every_endpoint_once(self) -> None:
        """The table of all endpoints has each once, under the name that the shorter table has for it."""
        keys = [(route.method, route.pattern) for route in ENDPOINTS]
        self.assertEqual(len(keys), len(set(keys)))
        names = {(route.method, route.pattern): route.name for route in ENDPOINTS}
        for route in routes.ROUTES:
            self.assertEqual(names[route.method, route.pattern], route.name)

    def test_whole_groups(self) -> None:
        """Plugins, swarm, BuildKit's API and checkpoints are refused whole."""
        for rule, method, target in (
            ("plugins", "POST", "/plugins/pull?remote=x"),
            ("plugins", "POST", "/plugins/x/enable"),
            ("plugins", "POST", "/plugins/create?name=x"),
            ("plugins", "DELETE", "/plugins/x"),
            ("swarm", "POST", "/swarm/init"),
            ("swarm", "POST", "/swarm/join"),
            ("swarm", "GET", "/swarm/unlockkey"),
            ("swarm", "POST", "/secrets/create"),
            ("swarm", "POST", "/nodes/x/update"),
            ("swarm", "POST", "/services/create"),
            ("swarm", "DELETE", "/services/x"),
            ("buildkit", "POST", "/grpc"),
            ("checkpoints", "POST", "/containers/x/checkpoints"),
            ("checkpoints", "DELETE", "/containers/x/checkpoints/y?dir=/etc"),
            ("checkpoints", "GET", "/containers/x/checkpoints?dir=/etc"),
            ("checkpoints", "POST", "/containers/x/start?checkpoint=a&checkpoint-dir=/etc"),
        ):
            self.assertEqual(rules_for(method, target), [rule], target)
            self.assertEqual(rules_for(method, target, policy=PRESETS["open"]), [], target)

    def test_builds(self) -> None:
        """A build may not use the host's network, other cgroups, or a context from elsewhere."""
        for query, rules in (
            ("t=app&dockerfile=Dockerfile&remote=client-session&networkmode=default", []),
            ("networkmode=host", ["host_namespaces"]),
            ("networkmode=bridge&networkmode=host", ["host_namespaces"]),
            ("remote=https://user:secret@example.com/x.tar", ["build_remotes"]),
            ("remote=git@example.com:x", ["build_remotes"]),
            ("cgroupparent=/", ["cgroup_parents"]),
            ("securityopt=%5B%22seccomp=unconfined%22%5D", ["security_opt"]),
        ):
            self.assertEqual(rules_for("POST", f"/build?{query}"), rules, query)
        self.assertEqual(rules_for("POST", "/build?t=x", policy=policy(make_images=False)), ["make_images"])

    def test_no_secret_in_refusals(self) -> None:
        """Of an address only its host is told."""
        call = routes.match(b"POST", b"/build?remote=https://user:secret@example.com/x", table=JUDGED)
        refusals = judge(Facts(), claims_of(call, {}), DEVELOPER)
        error = str(refused(refusals, DEVELOPER.scope))
        self.assertIn("example.com", error)
        self.assertNotIn("secret", error)

    def test_exec_and_update(self) -> None:
        """The same rules hold for exec and update."""
        self.assertEqual(rules_for("POST", "/containers/x/exec", {"privileged": True, "Cmd": ["sh"]}), ["privileged"])
        self.assertEqual(rules_for("POST", "/containers/x/exec", {"Cmd": ["sh"], "Tty": True}), [])
        self.assertEqual(rules_for("POST", "/containers/x/update", {"Devices": [{"PathOnHost": "/dev/sda"}]}), ["devices"])  # fmt: skip # noqa: E501
        self.assertEqual(rules_for("POST", "/containers/x/update", {"Memory": 1, "RestartPolicy": {"Name": "no"}}), [])

    def test_volumes_and_networks(self) -> None:
        """The same rules hold for volumes and networks."""
        disk = {"Name": "v", "Driver": "local", "DriverOpts": {"type": "ext4", "device": "/dev/sda1"}}
        self.assertEqual(rules_for("POST", "/volumes/create", disk), ["volume_types"])
        self.assertEqual(rules_for("POST", "/volumes/create", {"ClusterVolumeSpec": {"Group": "x"}}), ["fields"])
        self.assertEqual(rules_for("POST", "/networks/create", {"Name": "n", "Driver": "bridge", "IPAM": {}}), [])
        for network in (
            {"Name": "n", "Driver": "macvlan"},
            {"Name": "n", "Driver": "bridge", "IPAM": {"Driver": "other"}},
        ):
            self.assertEqual(rules_for("POST", "/networks/create", network), ["network_drivers"])
        bridge = {"Name": "n", "Options": {"com.docker.network.bridge.name": "docker0"}}
        self.assertEqual(rules_for("POST", "/networks/create", bridge), ["network_options"])
        self.assertEqual(rules_for("POST", "/networks/host/connect", {"Container": "x"}), ["host_namespaces"])

    def test_services(self) -> None:
        """Where services are allowed at all, what they ask for is judged."""
        mine = policy(swarm=True)
        spec = {"Image": "alpine", "CapabilityAdd": ["SYS_ADMIN"], "Privileges": {"Seccomp": {"Mode": "unconfined"}}}
        rules = rules_for("POST", "/services/create", {"TaskTemplate": {"ContainerSpec": spec}}, mine)
        self.assertEqual(sorted(rules), ["capabilities", "security_opt"])
        host = {"TaskTemplate": {"ContainerSpec": {"Image": "x"}, "Networks": [{"Target": "host"}]}}
        self.assertEqual(rules_for("POST", "/services/create", host, mine), ["host_namespaces"])
        plugin = {"TaskTemplate": {"Runtime": "plugin", "PluginSpec": {"Remote": "x"}}}
        self.assertEqual(rules_for("POST", "/services/x/update", plugin, mine), ["plugins"])


class ImageTests(SynchronousTestCase):
    def test_names(self) -> None:
        """Images are allowed by their full names."""
        mine = policy(images=["alpine", "ghcr.io/org/*:1.*", "reg.corp:5000/**"], deny_images=["reg.corp:5000/old/**"])

        def rules(image: str, **facts: Any) -> list[str]:
            return rules_for("POST", "/containers/create", {"Image": image}, mine, **facts)

        for image in ("alpine", "alpine:3", "docker.io/library/alpine@sha256:1", "index.docker.io/alpine",
                      "ghcr.io/org/app:1.2", "reg.corp:5000/a/b/c:x"):  # fmt: skip
            self.assertEqual(rules(image), [], image)
        for image in ("alpin", "evil/alpine", "ghcr.io/org/app", "ghcr.io/org/app/x:1.2", "ghcr.io/org/app@sha256:1"):
            self.assertEqual(rules(image), ["images"], image)
        self.assertEqual(rules("reg.corp:5000/old/x"), ["deny_images"])
        self.assertEqual(rules("sha256:1234"), ["images"])
        known = {"sha256:1234": ("alpine:3", "evil:1")}
        self.assertEqual(rules("sha256:1234", images=known), [])

    def test_pull_push_tag(self) -> None:
        """Pulls and pushes are judged by image and registry; making images is a rule of its own."""
        mine = policy(images=["reg.corp/**"], registries=["reg.corp"], make_images=False)
        for method, target, rules in (
            ("POST", "/images/create?fromImage=reg.corp/app&tag=1", []),
            ("POST", "/images/create?fromImage=alpine", ["images", "registries"]),
            ("POST", "/images/create?fromSrc=http://x/y&repo=reg.corp/app", ["make_images", "build_remotes"]),
            ("POST", "/images/create?fromSrc=-", ["make_images"]),
            ("POST", "/images/load", ["make_images"]),
            ("POST", "/images/alpine/tag?repo=reg.corp/app", ["make_images"]),
            ("POST", "/images/reg.corp/app/push", []),
            ("POST", "/images/evil.com/app/push", ["images", "registries"]),
            ("POST", "/commit?container=x&repo=reg.corp/app", ["make_images"]),
            ("GET", "/distribution/evil.com/x/json", ["registries"]),
            ("GET", "/images/search?term=evil.com/x", ["registries"]),
        ):
            self.assertEqual(rules_for(method, target, policy=mine), rules, target)
        self.assertEqual(rules_for("POST", "/auth", {"ServerAddress": "https://evil.com/v1/"}, mine), ["registries"])
        self.assertEqual(rules_for("POST", "/auth", {"serveraddress": "reg.corp"}, mine), [])


class ConfigurationTests(SynchronousTestCase):
    def test_none(self) -> None:
        """Without a policy everything is allowed."""
        self.assertIsNone(access().policy_of("ann"))
        self.assertFalse(access())

    def test_users(self) -> None:
        """A user's table changes what the context's says; denials add up."""
        found = access(
            policy={"deny_capabilities": ["SYS_ADMIN"], "max_containers": 3},
            user={"ann": {"preset": "open", "deny_images": ["evil"]}, "bob": {"privileged": True}},
        )
        ann, bob, carl = (found.policy_of(name) for name in ("ann", "bob", "carl"))
        assert ann is not None
        assert bob is not None
        assert carl is not None
        self.assertEqual((ann.flags["privileged"], ann.limits), (True, {"max_containers": 3}))
        self.assertEqual(ann.deny, {"capabilities": ("SYS_ADMIN",), "images": ("evil",)})
        self.assertEqual((bob.flags["privileged"], carl.flags.get("privileged")), (True, None))
        self.assertIn("ann", ann.scope)

    def test_owner_filter_needs_a_policy(self) -> None:
        """Whoever may have the host may have what is others': with a filter alone, the default preset holds."""
        self.assertEqual(access(owner_filter=True).policy_of("ann"), access(policy={}).policy_of("ann"))

    def test_all_problems_at_once(self) -> None:
        """Every problem is told, each with its key."""
        problems: list[str] = []
        table: dict[str, Any] = {
            "owner_filter": "yes",
            "policy": {"preset": "x", "binds": ["src"], "ports": ["0-99999"], "addresses": ["home"], "privileged": 1,
                       "max_containers": -1, "endpoints": ["start"], "capabilities": ["CAP_CHOWN"], "nonsense": 1,
                       "host_namespaces": ["net"], "images": [1]},
            "user": {"ann": {"deny_ports": "x"}},
        }  # fmt: skip
        read_access(TableReader("context.a.", table, problems), "a")
        keys = [problem.partition(":")[0] for problem in problems]
        names = (
            "preset binds ports addresses privileged max_containers endpoints capabilities nonsense host_namespaces "
            "images"
        )
        expected = {f"context.a.policy.{name}" for name in names.split()}
        self.assertEqual(set(keys), expected | {"context.a.owner_filter", "context.a.user.ann.deny_ports"})

    def test_users_without_policy(self) -> None:
        """Rules for some users need a rule for everybody else."""
        with self.assertRaises(ConfigError):
            access(user={"ann": {}})

    def test_own_files(self) -> None:
        """rda's own files are in no mount, nor anything above them."""
        closed = access(policy={"preset": "open"}, user={"ann": {"binds": ["/"]}}).without(("/state/rda",))
        for user in ("ann", "bob"):
            policy = closed.policy_of(user)
            assert policy is not None
            for path, rules in (("/state/rda/audit.jsonl", ["deny_binds"]), ("/state", ["deny_binds"]), ("/srv", [])):
                facts = Facts(local=((path, path),))
                self.assertEqual([one.rule for one in judge(facts, (), policy)], rules, path)

    def test_sample(self) -> None:
        """The sample shows every key, with the values of the preset that holds when none is named."""
        sample = (Path(__file__).parent.parent / "etc/rda.toml").read_text(encoding="utf-8")
        section = sample.partition("# [policy]\n")[2].partition("\n#\n# For some users")[0]
        lines = [line.removeprefix("# ") for line in section.splitlines()]
        table = tomllib.loads("\n".join(line for line in lines if not re.match("#|  \\S", line)))
        self.assertEqual(set(table), {"preset", *LISTS, *FLAGS, *LIMITS})
        shown = policy(**{key: value for key, value in table.items() if key != "preset"})
        self.assertEqual({key: value for key, value in shown.allow.items() if value}, DEVELOPER.allow)
        self.assertEqual({key: value for key, value in shown.flags.items() if value}, DEVELOPER.flags)
        self.assertEqual(set(shown.limits.values()), {0})

    def test_canonical(self) -> None:
        """The test's own documents are canonical ones."""
        self.assertEqual(canonical_create({"hostconfig": {"PRIVILEGED": True}}), {"HostConfig": {"Privileged": True}})
