"""Is a snapshot whole, and could it be restored now?"""

from __future__ import annotations

from pathlib import Path

from headrace.config import Settings
from headrace.snapshots import folder, positions
from headrace.snapshots.manifest import Manifest
from headrace.stores import migrate
from headrace.stream import clients
from headrace.stream import topology as topologies
from headrace.stream.clients import Admin
from headrace.stream.topology import Topology


def verify(settings: Settings, name: str) -> list[str]:
    """What is wrong with a snapshot, a line each; nothing where it can be restored."""
    with folder.locked(settings) as place:
        folder.sweep(place)
        path = folder.find(settings, name)
        manifest = folder.read(path)
        faults = of_origin(settings, manifest) + of_files(path, manifest, rows=True)
    topology = topologies.load(settings)
    with clients.admin(settings) as admin:
        now = positions.logs(admin, topology)
    return faults + positions.out_of_reach(manifest.positions, topology, now)


def lost(settings: Settings, admin: Admin, topology: Topology) -> dict[str, list[str]]:
    """The snapshots that can no longer be restored, the oldest first, and why. Their rows are not
    looked at, and nobody who works on them is waited for."""
    listed = [each for each in folder.listed(settings) if not each.name.endswith(folder.PARTIAL)]
    now = positions.logs(admin, topology) if listed else {}
    found = {}
    for each in listed:
        if each.manifest is None:
            faults = [each.fault]
        else:
            faults = of_origin(settings, each.manifest)
            faults += positions.out_of_reach(each.manifest.positions, topology, now)
        if faults:
            found[each.name] = faults
    return found


def of_origin(settings: Settings, manifest: Manifest) -> list[str]:
    faults = []
    if manifest.project != settings.project:
        faults.append(f"it is of project {manifest.project}, not of {settings.project}")
    if manifest.revision not in migrate.revisions():
        faults.append(
            f"its schema is at version {manifest.revision}, which this headrace does not know: use"
            " the version that made it, or a newer one"
        )
    return faults


def of_files(path: Path, manifest: Manifest, *, rows: bool = False) -> list[str]:
    found = (folder.fault(path, file, rows=rows) for file in manifest.files.values())
    return [fault for fault in found if fault]
