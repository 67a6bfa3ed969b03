"""The Dockerfile without Docker: every COPY and RUN, word for word, in a chroot with a bare Debian, for one target.

usage: python tests/cluster/image.py TARGET PREFIX     at the repository's root; TARGET is cpu or cuda

PREFIX is that of a Python 3.12, such as one of pyenv: it takes the place of the base image's. What is copied is what
git has of HEAD. At the end CMD is run as in the image. Needs root, debootstrap from Debian, and gigabytes below /tmp.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
MIRROR = "http://deb.debian.org/debian"
REACH = ["/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt"]
"""How this machine reaches the registries."""
BEGAN = time.monotonic()


def step(text: str) -> None:
    print(f"== {text} ({time.monotonic() - BEGAN:.0f} s)", flush=True)


def instructions(text: str) -> list[tuple[str, str]]:
    """(word, rest) of each, lines joined, comments left out."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(line.split()[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def bare(folder: Path, prefix: Path) -> None:
    """What the base image has: Debian, its certificates, and Python in /usr/local with the libraries that it needs."""
    options = ["--variant=minbase", "--include=ca-certificates"]
    subprocess.run(["debootstrap", *options, "bookworm", folder, MIRROR], check=True, stdout=subprocess.DEVNULL)
    (folder / "etc/apt/sources.list").write_text(
        f"deb {MIRROR} bookworm main\ndeb {MIRROR} bookworm-updates main\n"
        f"deb {MIRROR}-security bookworm-security main\n"
    )
    subprocess.run(["cp", "-a", f"{prefix}/.", folder / "usr/local"], check=True)
    for script in (folder / "usr/local/bin").iterdir():
        if script.is_file() and script.read_bytes().startswith(f"#!{prefix}/".encode()):
            script.write_text(script.read_text().replace(f"#!{prefix}/", "#!/usr/local/", 1))
    binaries = [prefix / "bin/python3.12", *prefix.glob("lib/python3.12/lib-dynload/*.so")]
    needed = subprocess.run(["ldd", *binaries], check=True, capture_output=True, text=True).stdout
    for path in {Path(found) for found in re.findall(r"=> (/\S+)", needed)}:
        if not path.is_relative_to(prefix) and not (folder / path.relative_to("/")).exists():
            put(path, folder)
    for path in map(Path, REACH):
        if path.exists():
            put(path, folder)
    (folder / "etc/ld.so.conf.d/python.conf").write_text("/usr/local/lib\n")
    subprocess.run(["chroot", folder, "ldconfig"], check=True)


def put(path: Path, folder: Path) -> None:
    target = folder / path.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    shutil.copyfile(path, target)


class Stage:
    """An image under way. Commands see /proc; the mount goes with them."""

    def __init__(self, folder: Path, other: Stage | None = None) -> None:
        self.folder = folder
        self.user, self.place = (other.user, other.place) if other else ("0", "/")
        self.env = dict(other.env) if other else {key: os.environ[key] for key in os.environ if key.startswith("PIP_")}

    def run(self, *command: str) -> None:
        env = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp", **self.env}
        inside = ["chroot", f"--userspec={self.user}:{self.user}", self.folder, "/bin/sh", "-c", 'cd "$0" && exec "$@"']
        alone = ["unshare", "--mount", "/bin/sh", "-c", 'mount --bind /proc "$0/proc" && exec "$@"', self.folder]
        subprocess.run([*alone, *inside, self.place, *command], env=env, check=True)

    def copy(self, words: str, context: Path, stages: dict[str, Stage]) -> None:
        *sources, target = shlex.split(words)
        if sources[0].startswith("--from="):
            context = stages[sources.pop(0).removeprefix("--from=")].folder
        goal = self.folder / Path(self.place, target).relative_to("/")
        for source in (context / source.lstrip("/") for source in sources):
            if source.is_dir():
                shutil.copytree(source, goal, dirs_exist_ok=True)
            else:
                place = goal / source.name if target.endswith("/") else goal
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, place)


def build(target: str, prefix: Path, work: Path) -> None:
    context = work / "context"
    context.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", context], input=archive, check=True)
    bare(work / "base", prefix)
    step("a bare Debian with that Python")
    stages: dict[str, Stage] = {}
    command: list[str] = []
    for word, rest in instructions((context / "Dockerfile").read_text()):
        match word:
            case "FROM":
                if target in stages:
                    break
                image, _, name = rest.split()
                known = stages.get(image)
                subprocess.run(["cp", "-a", known.folder if known else work / "base", work / name], check=True)
                stage = stages[name] = Stage(work / name, known)
            case "RUN":
                step(f"{name}: {rest[:60]}")
                stage.run("/bin/sh", "-c", rest)
            case "COPY":
                stage.copy(rest, context, stages)
            case "ENV":
                stage.env |= dict(pair.split("=", 1) for pair in shlex.split(rest))
            case "USER":
                stage.user = rest
            case "WORKDIR":
                stage.place = rest
                (stage.folder / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "CMD":
                command = json.loads(rest)
            case _:
                raise SystemExit(f"error: {word} is not known here: teach it to {__file__}")
    step(f"{target}: {shlex.join(command)} as user {stage.user}")
    stage.run(*command)
    step("done")


def main() -> None:
    target, prefix = sys.argv[1], Path(sys.argv[2]).resolve()
    work = Path(tempfile.mkdtemp(prefix="es-image-", dir="/tmp"))
    try:
        build(target, prefix, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
