"""What a native engine is locked into: namespaces, a root of its own, a user of its own, a control group.

Standard library and `native_group.py` only: `native_shim.py` carries it into a program that stands alone. Each part is
tried on the machine before it is relied upon (`probe`), and what a machine does not permit is not enforced, which the
backend then says.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from runtime.backends.native_group import Group

if TYPE_CHECKING:
    from collections.abc import Iterable

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWNET: Final = 0x40000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWIPC: Final = 0x08000000
"""Flags of unshare(2), from linux/sched.h; `os.unshare` exists from Python 3.12 only."""

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
"""From linux/sockios.h and linux/if.h."""

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x8, 0x1000, 0x4000, 0x40000
MNT_DETACH: Final = 2
"""From linux/mount.h."""

ATTR_READ_ONLY, ATTR_NOSUID = 0x1, 0x2
AT_RECURSIVE, AT_FDCWD = 0x8000, -100
MOUNT_SETATTR: Final = 442
"""mount_setattr(2), Linux 5.12; its number is the same on every architecture."""
PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41}.get(platform.machine(), 0)
"""pivot_root(2) has no wrapper in libc; 0 where its number is not known here."""

PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
"""Options of prctl(2), from linux/prctl.h."""

CAPABILITY_VERSION_3: Final = 0x20080522
"""Header of capset(2) for 64 capabilities, from linux/capability.h."""
CAPABILITIES: Final = 64

SYSTEM: Final = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/etc",
    "/opt",
    "/nix",
    "/proc",
    "/sys",
)
"""What every program may need of the host, read-only."""
DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
GPU_DEVICES: Final = ("nvidia*",)

SOCKET_FOLDER: Final = b"size=64k,nr_inodes=16,mode=0777"
"""As `socket_folder.OPTIONS`: room for a socket and little more."""

ENGINE_IDS: Final = 1_900_000_000
"""First of 2**24 user ids for engines: above every range that systemd's UIDS-GIDS document gives to anybody."""

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def prctl(option: int, argument: int = 0) -> None:
    """Set an attribute of this process, as its manual says.

    Raises:
        OSError: refused.
    """
    unsigned = [ctypes.c_ulong(value) for value in (argument, 0, 0, 0)]
    _check(_libc.prctl(ctypes.c_int(option), *unsigned), f"prctl {option}")


# --- namespaces ---------------------------------------------------------------------------------------------------


def unshare(namespaces: str, *, mounts: bool = False) -> None:
    """Leave the host's network and its System V memory; `user` first takes a user namespace, which needs no root.

    Args:
        namespaces: `none`, `plain` or `user`.
        mounts: whether to leave the host's mounts too.

    Raises:
        OSError: this host does not permit it.
    """
    if namespaces == "none":
        return
    uid, gid = os.geteuid(), os.getegid()
    flags = CLONE_NEWNET | CLONE_NEWIPC
    flags |= (CLONE_NEWUSER if namespaces == "user" else 0) | (CLONE_NEWNS if mounts else 0)
    _check(_libc.unshare(flags), "unshare")
    if namespaces == "user":
        # user_namespaces(7): a process without privileges may map its own ids only, and gives setgroups up first.
        for name, line in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            Path("/proc/self", name).write_text(line, encoding="ascii")
    _raise_loopback()


def _raise_loopback() -> None:
    """Bring up the new network's own loopback, as containers have it: engines of several processes talk over it.

    It is this namespace's alone, and leads nowhere else (network_namespaces(7), netdevice(7)).
    """
    import socket  # noqa: PLC0415 - 2 ms, once per start

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        flags = fcntl.ioctl(asked, SIOCGIFFLAGS, struct.pack("16sh14x", b"lo", 0))
        up = struct.unpack_from("16sh", flags)[1] | IFF_UP
        fcntl.ioctl(asked, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", up))


# --- a root of its own --------------------------------------------------------------------------------------------


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: bytes = b"") -> None:
    """Call the kernel to mount, with its own words for kinds and options.

    Raises:
        OSError: refused.
    """
    arguments = (source.encode(), os.fsencode(target), kind.encode() or None, ctypes.c_ulong(flags), options or None)
    _check(_libc.mount(*arguments), f"mount {target}")


def unmount(target: str) -> None:
    """Take a mount away once nobody uses it; fine if there is none."""
    _libc.umount2(os.fsencode(target), MNT_DETACH)


def _set_attributes(target: str, *, add: int = 0, remove: int = 0, flags: int = 0) -> None:
    attributes = struct.pack("QQQQ", add, remove, 0, 0)
    result = _libc.syscall(
        ctypes.c_long(MOUNT_SETATTR),
        ctypes.c_int(AT_FDCWD),
        ctypes.c_char_p(os.fsencode(target)),
        ctypes.c_uint(flags),
        attributes,
        ctypes.c_size_t(len(attributes)),
    )
    _check(result, f"mount_setattr {target}")


def enter_root(root: str, *, read: Iterable[str], write: Iterable[str], gpus: bool, shm: int, tmp: int) -> None:
    """Exchange the root for one with nothing in it but the system's programs, what is named, and a private /tmp.

    An engine cannot open what is not there: the sockets of container engines, other users' folders, the agent's state.

    Args:
        root: an empty folder, on which the new root is built.
        read: absolute paths that are there read-only.
        write: absolute paths of folders that may be written in.
        gpus: whether the GPUs' devices are there.
        shm: bytes of /dev/shm.
        tmp: bytes of /tmp.

    Raises:
        OSError: this host does not permit it.
    """
    if not PIVOT_ROOT:
        raise OSError(errno.ENOSYS, "pivot_root is not known on this machine")
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, b"size=1m,mode=0755")
    # Before anything that lies in them on the host.
    writable = [_tmpfs(root, "/tmp", tmp), _tmpfs(root, "/dev/shm", shm)]  # noqa: S108 - the engine's own
    for path in (*SYSTEM, *sorted({*read})):
        _show(root, path)
    devices = [f"/dev/{name}" for name in DEVICES]
    if gpus:
        devices += [str(path) for pattern in GPU_DEVICES for path in sorted(Path("/dev").glob(pattern))]
    for path in devices:
        _show(root, path)
    Path(root, "dev/fd").symlink_to("/proc/self/fd")
    for path in write:
        _show(root, path)
        writable.append(root + path)
    _set_attributes(root, add=ATTR_READ_ONLY | ATTR_NOSUID, flags=AT_RECURSIVE)
    for path in writable:
        _set_attributes(path, remove=ATTR_READ_ONLY)
    os.chdir(root)
    # pivot_root(2): the old root ends up over the new one, and is taken away with all that hangs on it.
    _check(_libc.syscall(ctypes.c_long(PIVOT_ROOT), b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", MNT_DETACH), "umount2")
    os.chdir("/")


def _tmpfs(root: str, path: str, size: int) -> str:
    os.makedirs(root + path, mode=0o755, exist_ok=True)  # noqa: PTH103 - a path in another root
    mount("tmpfs", root + path, "tmpfs", MS_NOSUID | MS_NODEV, b"mode=1777,size=%d" % size)
    return root + path


def _show(root: str, path: str) -> None:
    """Let a path of the host be seen in the new root, if it exists; a link of the top level stays one."""
    seen, shown = Path(path), Path(root + path)
    if seen.is_symlink() and seen.parent == Path("/"):
        shown.symlink_to(str(seen.readlink()).lstrip("/"))
        return
    if not seen.exists() or str(seen) == "/":
        return
    if not shown.exists():
        shown.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        shown.mkdir() if seen.is_dir() else shown.touch()
    mount(path, str(shown), flags=MS_BIND | MS_REC)


def open_socket_folder(folder: str, *, capped: bool, user: int) -> None:
    """Let an engine make its socket in the folder that it shares with the agent. Fine if it was done before.

    Args:
        folder: the agent's own.
        capped: whether it is to be a small tmpfs; else it stays a folder of the host.
        user: of the engine; 0 for the agent's own.

    Raises:
        OSError: this host does not permit it.
    """
    if not capped:
        if user:
            os.chown(folder, user, user)
    elif not os.path.ismount(folder):
        _mount_capped(folder)


def _mount_capped(folder: str) -> None:
    mount("reconcile", folder, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, SOCKET_FOLDER)


# --- a user of its own --------------------------------------------------------------------------------------------


def drop_privileges(user: int = 0) -> None:
    """Give up every capability, and every way to gain one by executing something (capabilities(7)).

    Args:
        user: id of the user and group to become; 0 to stay who one is.

    Raises:
        OSError: refused.
    """
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    for capability in range(CAPABILITIES):
        # Refused where this kernel does not know it, or where nothing is held and so nothing need be dropped.
        with suppress(OSError):
            prctl(PR_CAPBSET_DROP, capability)
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    if user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")


# --- what this machine permits ------------------------------------------------------------------------------------


def probe(folder: str) -> dict[str, Any]:
    """What of this can be done here, found out by doing it in children.

    Args:
        folder: an empty folder of ours, on which a root may be built.

    Returns:
        `namespaces` (`plain`, `user` or `none`), `root` and `user` (whether they can be had), `refused` (controllers),
        `capped` (whether the socket's folder can be capped).
    """
    namespaces = next((way for way in ("plain", "user") if _works(lambda way=way: _try(way))), "none")
    root = namespaces != "none" and _works(lambda: _try(namespaces, root=folder))
    user = namespaces == "plain" and root and _works(lambda: _try(namespaces, root=folder, user=ENGINE_IDS), ENGINE_IDS)
    group = Group(f"probe-{os.getpid()}")
    refused = group.make(memory=2**26, pids=64, cpus=1)
    if not _works(lambda: group.join(refused)):
        refused = ("cpu", "memory", "pids")
    group.remove()
    return {"namespaces": namespaces, "root": root, "user": user, "refused": list(refused), "capped": _can_cap(folder)}


def mounts_end_with_us() -> bool:
    """Whether this process was given mounts of its own that nobody outside follows.

    As systemd does for ProtectSystem= and its like, anew at every start: a socket's folder that the next agent does not
    have would take the runtime from it. Such mounts follow the host's (`master:` in proc_pid_mountinfo(5)), and are not
    those of the first process.
    """
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    root = next((fields for fields in map(str.split, lines) if fields[4] == "/"), [])
    if not any(field.startswith("master:") for field in root[6:]):
        return False
    try:
        return not Path("/proc/self/ns/mnt").samefile("/proc/1/ns/mnt")
    except OSError:
        return False


def _try(namespaces: str, *, root: str = "", user: int = 0) -> None:
    unshare(namespaces, mounts=bool(root))
    if root:
        enter_root(root, read=(), write=(), gpus=False, shm=2**20, tmp=2**20)
    drop_privileges(user)


def _works(attempt: Any, user: int = 0) -> bool:
    """Whether a child does it; as another user, whether that one's processes can still be recognised and signalled."""
    done, told = os.pipe()
    go, release = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(done)
        os.close(release)
        try:
            attempt()
            os.write(told, b"1")
            os.read(go, 1)
        except BaseException:  # noqa: BLE001 - a forked child must not return
            os._exit(1)
        os._exit(0)
    os.close(told)
    os.close(go)
    worked = os.read(done, 1) == b"1"
    if worked and user:
        try:
            with open(f"/proc/{child}/environ", "rb") as file:  # noqa: PTH123 - a kernel file
                file.read(1)
            os.kill(child, 0)
        except OSError:
            worked = False
    os.close(release)
    os.close(done)
    os.waitpid(child, 0)
    return worked


def _can_cap(folder: str) -> bool:
    if mounts_end_with_us():
        return False
    try:
        _mount_capped(folder)
    except OSError:
        return False
    unmount(folder)
    return True
