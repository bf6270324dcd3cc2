"""Fetch real text for examples/ingest-docs.toml: manual pages and books of Debian in several languages, Python's documentation.

Packages are downloaded and unpacked, one folder each, never installed, so it needs no root where apt's lists are there. Run by
`make documents`. Where Debian's archive cannot be reached, the manual pages and documents of this machine and Python's own
docstrings take their place, and the last line says so. What is there already is left alone.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

LANGUAGES = {
    "manpages": ("", "dev", "de", "es", "fr", "it", "ja", "pl", "pt-br", "ru", "zh"),
    "debian-reference": ("en", "de", "es", "fr", "it", "ja", "pt", "zh-cn"),
    "debian-faq": ("", "de", "fr", "it", "ja", "ru", "zh-cn"),
    "developers-reference": ("", "de", "fr", "it", "ja", "ru"),
}
PACKAGES = [f"{name}-{language}".rstrip("-") for name, languages in LANGUAGES.items() for language in languages]
PACKAGES += ["debian-policy", "doc-debian", "maint-guide", "python3.11-doc"]
TEXT = {"", ".gz", ".txt", ".md", ".rst", ".html", *(f".{section}" for section in range(1, 10))}


def run(*command: str, folder: Path | None = None) -> bool:
    """Run a program; tell whether it was there and succeeded."""
    try:
        done = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=600)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def package(name: str, target: Path) -> bool:
    """Download and unpack one package into `target`, whole or not at all."""
    if target.is_dir():
        return True
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        if not run("apt-get", "download", name, folder=Path(work)):
            return False
        (archive,) = Path(work).glob("*.deb")
        if not run("dpkg-deb", "-x", str(archive), f"{work}/tree"):
            return False
        os.chmod(f"{work}/tree", 0o755)
        os.rename(f"{work}/tree", target)
    return True


def machine(target: Path) -> None:
    """Copy the manual pages and plain documents of this machine, and the docstrings of Python's library."""
    for source in (Path("/usr/share/man"), Path("/usr/share/doc")):
        for folder, _, files in os.walk(source):
            for name in files:
                path = Path(folder, name)
                if path.suffix in TEXT and path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 20:
                    place = target / "local" / path.relative_to(source.parent)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, place)
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef
        texts = [text for node in ast.walk(tree) if isinstance(node, kinds) and (text := ast.get_docstring(node))]
        if texts:
            place = target / "python" / path.relative_to(library).with_suffix(".txt")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text("\n\n".join(texts), encoding="utf-8", errors="replace")


def main() -> int:
    """Fill the folder named on the command line."""
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    if not (target / PACKAGES[0]).is_dir() and not any(Path("/var/lib/apt/lists").glob("*Packages*")) and os.geteuid() == 0:
        run("apt-get", "update", "-qq")
    absent = [name for name in PACKAGES if not package(name, target / name)]
    if absent and len(absent) < len(PACKAGES):
        print(f"not in the archive of this machine, left out: {', '.join(absent)}")
    if len(absent) == len(PACKAGES):
        print("no package of Debian could be downloaded (no apt, or no connection): taking the documents of this machine instead")
        machine(target)
    files = [path for path in target.rglob("*") if path.is_file()]
    print(f"{target}: {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.0f} MB")
    return 0 if files else 1


if __name__ == "__main__":
    sys.exit(main())
