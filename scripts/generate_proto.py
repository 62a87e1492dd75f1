"""Generate lib/mailrail/pb from proto/. `make proto` runs it; `make check` compares.

protoc writes imports by proto path (`mailrail.queue.v1`); ours live below `mailrail.pb`, so they are rewritten.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def generate(target: Path) -> None:
    """Write the generated package into `target` (replaced whole)."""
    protos = sorted(p.relative_to(ROOT / "proto") for p in (ROOT / "proto").rglob("*.proto"))
    bin_dir = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        subprocess.run(
            [
                sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}",
                f"--plugin=protoc-gen-mypy_grpc={bin_dir / 'protoc-gen-mypy_grpc'}",
                f"--plugin=protoc-gen-mypy={bin_dir / 'protoc-gen-mypy'}",
                f"--python_out={out}", f"--mypy_out={out}", f"--grpc_python_out={out}", f"--mypy_grpc_out={out}",
                *map(str, protos),
            ],
            check=True, stdout=subprocess.DEVNULL, stderr=sys.stderr,
        )  # fmt: skip
        root = out / "mailrail"
        for path in root.rglob("*.py*"):
            text = path.read_text(encoding="utf-8")
            text = re.sub(r"\b(from|import) mailrail\.(?!pb\b)", r"\1 mailrail.pb.", text)
            text = re.sub(r"\bmailrail\.(\w+)\.v1\.(\w+_pb2)", r"mailrail.pb.\1.v1.\2", text)
            path.write_text(text, encoding="utf-8")
        for directory in [root, *(p for p in root.rglob("*") if p.is_dir())]:
            (directory / "__init__.py").write_text(
                '"""Generated from proto/; never edited by hand."""\n', encoding="utf-8"
            )
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(root, target)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "lib/mailrail/pb")
