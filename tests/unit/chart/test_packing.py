"""The chart of a release: equal content gives equal octets, and helm reads it."""

import io
import subprocess
import tarfile
from pathlib import Path

from release import ROOT, ReleaseBuild, chart, repack

from testkit.chart import needs_helm

EPOCH = 1_893_553_445


def repacked(*names: str, at: int, epoch: int = EPOCH) -> bytes:
    made, again = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.mode = 1, at, 0o600 + at % 2
            archive.addfile(member, io.BytesIO(b"x"))
    made.seek(0)
    repack(made, again, epoch)
    return again.getvalue()


def test_order_time_and_mode_of_packing_make_no_difference() -> None:
    one = repacked("chart/b", "chart/a", at=1)
    assert one == repacked("chart/a", "chart/b", at=2)
    assert one != repacked("chart/a", "chart/c", at=2)
    assert one != repacked("chart/a", "chart/b", at=2, epoch=EPOCH + 1)


@needs_helm
def test_the_chart_has_the_version_and_the_time_of_the_commit_and_helm_reads_it(tmp_path: Path) -> None:
    made = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (file,) = chart(ReleaseBuild("7.0.0", "c0ffee", EPOCH, ROOT, tmp_path / name, "", ()))
        made.append(file)
    assert made[0].read_bytes() == made[1].read_bytes()
    with tarfile.open(made[0]) as archive:
        members = list(archive)
    assert {member.mtime for member in members} == {EPOCH}
    names = {member.name for member in members}
    assert {"mailrail/values.schema.json", "mailrail/files/crds/mailrail.dev_mailroutes.yaml"} <= names
    shown = subprocess.run(["helm", "show", "chart", made[0]], capture_output=True, text=True, check=True).stdout
    assert "\nversion: 7.0.0\n" in shown
    assert "appVersion: 7.0.0\n" in shown
    rendered = subprocess.run(["helm", "template", "x", made[0]], capture_output=True, text=True, check=True).stdout
    assert "mailrail:7.0.0" in rendered
