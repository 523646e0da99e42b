# SPDX-License-Identifier: Apache-2.0
"""A second directory of one tenant, for another container of its pod.

A device plugin gives each container a directory before it can know the pod. What turns out to
be the same pod's becomes the same tenant's: its files, sockets among them, are hard links to
the first directory's. connect(2) looks a socket up by its inode, whatever its name is.
"""

import os
from pathlib import Path


def renew(twin: Path, original: Path) -> None:
    """Makes twin, which containers may have mounted, hold what original holds. OSError."""
    twin.mkdir(parents=True, exist_ok=True)
    kept = set()
    for folder, folders, files in os.walk(original):
        target = twin / Path(folder).relative_to(original)
        target.mkdir(exist_ok=True)
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in (*files, *links):
            new = target / f".{name}.new"
            new.unlink(missing_ok=True)
            os.link(Path(folder) / name, new, follow_symlinks=False)
            # Renaming one link of a file to another of the same file does nothing, and leaves both.
            new.replace(target / name)
            new.unlink(missing_ok=True)
        kept |= {target / name for name in (*folders, *files)}
    for folder, folders, files in os.walk(twin, topdown=False):
        for path in (Path(folder) / name for name in (*folders, *files)):
            if path not in kept:
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
