"""Go's ``encoding/json``, as far as it decides what a daemon makes of a document: an oracle for tests.

Written from Go's documentation and not from rda's own reader, so that the two can be compared: keys match fields
whatever their case, by Unicode simple folding; of a key that comes twice, structs and maps merge and the last of other
values counts; null leaves what is there.
"""

from __future__ import annotations

import json
from typing import Any

#: A struct: field -> what it holds. A map: {"*": what its values are}. A list of something: [it]. Anything else: None.
Shape = Any

_DRIVER: Shape = {"Name": None, "Options": {"*": None}}

_HOST_CONFIG: Shape = {
    "Privileged": None,
    "Binds": None,
    "CapAdd": None,
    "PidMode": None,
    "NetworkMode": None,
    "IpcMode": None,
    "UsernsMode": None,
    "UTSMode": None,
    "CgroupnsMode": None,
    "SecurityOpt": None,
    "Runtime": None,
    "MaskedPaths": None,
    "Devices": [{"PathOnHost": None}],
    "DeviceCgroupRules": None,
    "Mounts": [{"Type": None, "Source": None, "VolumeOptions": {"DriverConfig": _DRIVER}}],
    "VolumesFrom": None,
    "Sysctls": {"*": None},
}

CREATE: Shape = {"Image": None, "Labels": {"*": None}, "HostConfig": _HOST_CONFIG, **_HOST_CONFIG}


def fold(key: str) -> str:
    """Fold a key as ``strings.EqualFold`` does for ASCII field names."""
    return "".join({"\u017f": "s", "\u212a": "k"}.get(letter, letter) for letter in key).lower()


def decode(body: bytes, shape: Shape = CREATE) -> Any:
    """Decode a document into the fields of a shape.

    :raises ValueError: Go would refuse it.
    """
    decoder = json.JSONDecoder(object_pairs_hook=lambda pairs: pairs)
    pairs, _ = decoder.raw_decode(body.decode("utf-8", "replace").lstrip())
    return _into({}, pairs, shape)


def _into(target: Any, value: Any, shape: Shape) -> Any:
    is_object = isinstance(value, list) and all(isinstance(item, tuple) for item in value) and value != []
    if isinstance(shape, dict) and (is_object or value == []):
        target = dict(target or {})
        names = {fold(name): name for name in shape}
        for key, item in value:
            if "*" in shape:
                target[key] = _into(target.get(key), item, shape["*"])
            elif (name := names.get(fold(key))) is not None and item is not None:
                target[name] = _into(target.get(name), item, shape[name])
        return target
    if isinstance(shape, list) and isinstance(value, list):
        return [_into({}, item, shape[0]) for item in value]
    if is_object:
        return {key: _into(None, item, None) for key, item in value}
    return value
