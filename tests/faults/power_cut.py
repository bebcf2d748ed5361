"""What a disk may hold after a power cut in the middle of a merge, from the log of its system calls.

Nothing is certain of a file but what was written before an fsync of it that succeeded, and nothing of a name but what
was done in its folder before an fsync of that folder. So at each call of the log two disks are looked at: one that lost
all that was not synced, and one that kept every name and lost every byte that was not synced.
"""

import re
from dataclasses import dataclass, field

_CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)")
_FD = re.compile(r"^(-?\w+)<([^>]*)>")
CALLS = "mkdirat,openat,fallocate,ftruncate,pwrite64,write,fsync,fdatasync,renameat2,renameat,unlinkat,unlink,rename"


def finished(lines: list[str]) -> list[str]:
    """The calls in the order in which they ended: the log shows one that another thread's came into in two parts."""
    begun: dict[str, str] = {}
    whole = []
    for line in lines:
        thread = line.split(" ", 1)[0]
        if line.endswith("<unfinished ...>"):
            begun[thread] = line.removesuffix("<unfinished ...>").rstrip()
        elif " resumed>" in line:
            whole.append(begun.pop(thread, "") + line.split(" resumed>", 1)[1])
        else:
            whole.append(line)
    return whole


@dataclass
class File:
    """Bytes that are in the cache, and those on the disk."""

    size: int = 0
    written: set[tuple[int, int]] = field(default_factory=set)
    synced: set[tuple[int, int]] = field(default_factory=set)

    def whole(self, ranges: set[tuple[int, int]]) -> bool:
        """Whether ranges cover the file."""
        end = 0
        for begin, stop in sorted(ranges):
            if begin > end:
                return False
            end = max(end, stop)
        return end >= self.size


class Disk:
    """Folders by path; a folder's names map to files or to folders."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.live: dict[str, dict[str, object]] = {root: {}}
        self.names: dict[str, dict[str, object]] = {root: {}}
        self.folder_of: dict[int, str] = {}

    def replay(self, lines: list[str], out: str) -> tuple[int, list[str]]:
        """Replays a log; gives the number of states that were looked at, and what was wrong."""
        wrong, states = [], 0
        for number, line in enumerate(finished(lines), 1):
            found = _CALL.match(line)
            if found is None or int(found[3]) < 0:
                continue
            self._call(found[1], found[2], int(found[3]))
            states += 2
            for kept, names in (("every name", self.live), ("nothing that was not synced", self.names)):
                inside = names[self.root].get(out)
                if inside is None:
                    continue
                entries = names.get(inside) if kept != "every name" else self.live.get(inside)
                files = dict(entries or {})
                if not files:
                    wrong.append(f"call {number}: {out} is empty on a disk that kept {kept}")
                for name, file in files.items():
                    if isinstance(file, File) and not file.whole(file.synced):
                        wrong.append(f"call {number}: {out}/{name} is not whole on a disk that kept {kept}")
        return states, wrong

    def _split(self, path: str) -> tuple[str, str]:
        folder, _, name = path.rpartition("/")
        return folder, name

    def _path(self, arguments: str, at: int = 0) -> str | None:
        parts = [part.strip() for part in arguments.split(", ")]
        folder, name = _FD.match(parts[at]), parts[at + 1].strip('"')
        if folder is None or not folder[2].startswith(self.root):
            return None
        return f"{self._live_path(folder[2])}/{name}"

    @staticmethod
    def _live_path(path: str) -> str:
        return path.removesuffix(" (deleted)")

    def _file(self, arguments: str) -> File | None:
        found = _FD.match(arguments)
        if found is None:
            return None
        folder, name = self._split(found[2])
        file = self.live.get(folder, {}).get(name)
        return file if isinstance(file, File) else None

    def _call(self, call: str, arguments: str, result: int) -> None:
        numbers = [int(n) for n in re.findall(r", (\d+)", arguments)]
        if call in ("fallocate", "ftruncate"):
            if (file := self._file(arguments)) is not None:
                file.size = sum(numbers[-2:]) if call == "fallocate" else numbers[-1]
        elif call == "pwrite64":
            if (file := self._file(arguments)) is not None:
                file.written.add((numbers[-1], numbers[-1] + result))
                file.size = max(file.size, numbers[-1] + result)
        elif call == "write":
            if (file := self._file(arguments)) is not None:
                file.written.add((file.size, file.size + result))
                file.size += result
        elif call in ("fsync", "fdatasync"):
            found = _FD.match(arguments)
            if (file := self._file(arguments)) is not None:
                file.synced = set(file.written)
            elif found is not None and found[2] in self.live:
                self.names[found[2]] = dict(self.live[found[2]])
        elif call == "openat":
            path = self._path(arguments) if "O_CREAT" in arguments else None
            if path is not None:
                folder, name = self._split(path)
                self.live.setdefault(folder, {})[name] = File()
        elif call == "mkdirat":
            path = self._path(arguments)
            if path is not None:
                folder, name = self._split(path)
                self.live.setdefault(folder, {})[name] = path
                self.live[path] = {}
                self.names[path] = {}
        elif call == "unlinkat":
            path = self._path(arguments)
            if path is not None:
                folder, name = self._split(path)
                self.live.get(folder, {}).pop(name, None)
        elif call in ("renameat2", "renameat"):
            source, target = self._path(arguments), self._path(arguments, 2)
            if source is not None and target is not None:
                (folder, old), (to, new) = self._split(source), self._split(target)
                self.live.setdefault(to, {})[new] = self.live[folder].pop(old)
                # The folder that moved is known by its new path from now on; its names go with it.
                if source in self.live:
                    self.live[to][new] = target
                    self.live[target] = self.live.pop(source)
                    self.names[target] = self.names.pop(source)
