"""What would not work on Windows is found in what local mode imports, and nothing else is."""

from pathlib import Path

import check_portable
import pytest


def _faults(text: str) -> list[str]:
    return [why for _, why in check_portable.faults(text)]


@pytest.mark.parametrize(
    "line",
    [
        "fresh.replace(path)",
        "fresh.rename(path)",
        "path.unlink(missing_ok=True)",
        "os.replace(a, b)",
        "shutil.move(a, b); os.remove(a)",
        "path.read_text()",
        "path.write_text(text)",
        "open(path)",
        "path.open('w')",
        "os.fdopen(number, 'w')",
        "subprocess.run(command, text=True)",
        "subprocess.Popen(command, start_new_session=True)",
        "loop.add_signal_handler(15, stop)",
        "os.open(folder, os.O_RDONLY)",
        "tempfile.NamedTemporaryFile()",
    ],
)
def test_what_breaks_on_windows_is_found(line: str) -> None:
    assert len(_faults(line)) == 1


@pytest.mark.parametrize(
    "line",
    [
        "text.replace('a', 'b')",
        "now.replace(tzinfo=None)",
        "dataclasses.replace(settings, port=1)",
        "names.remove(name)",
        "path.read_text('ascii')",
        "path.read_text(encoding='utf-8')",
        "path.open('rb')",
        "connection.open()",
        "open(path, 'rb')",
        "if sys.platform != 'win32':\n    subprocess.Popen(command, user=1)",
        "if sys.platform == 'win32':\n    pass\nelse:\n    path.unlink()",
        "try:\n    loop.add_signal_handler(15, stop)\nexcept NotImplementedError:\n    pass",
        "path.unlink()  # windows: nobody knows its name",
    ],
)
def test_what_works_on_windows_is_not(line: str) -> None:
    assert _faults(line) == []


def test_the_module_that_waits_for_whoever_has_a_file_open_may_move_it() -> None:
    assert check_portable.faults("fresh.replace(path)", waits=True) == []


def test_lazy_imports_count_and_what_is_not_for_local_mode_does_not(tmp_path: Path) -> None:
    package = tmp_path / "lib" / "mailrail"
    for name, text in {
        "__init__": "",
        "local/__init__": "",
        "local/supervisor": "def start():\n    from mailrail.kit import late\n    import mailrail.sendmail.folder\n",
        "kit/__init__": "",
        "kit/late": "import os\n",
        "sendmail/__init__": "",
        "sendmail/folder": "",
    }.items():
        path = (package / name).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    found = check_portable.reached(["mailrail.local.supervisor"], tmp_path)
    assert set(found) == {
        "mailrail",
        "mailrail.local",
        "mailrail.local.supervisor",
        "mailrail.kit",
        "mailrail.kit.late",
    }


def test_every_entrance_is_there() -> None:
    modules = check_portable.reached()
    assert set(check_portable.ENTRANCES) <= set(modules)
    assert {"mailrail.kit.files", "mailrail.local.forks", "mailrail_queue.store.connection"} <= set(modules)
